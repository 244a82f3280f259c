"""Parts of the page: tables, charts with their numbers, and words for amounts. All input is shown as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ..printable import printable
from ..storage.store import public_uri
from .account import STAGES
from .charts import Areas, Bars, Chart, number

_ROWS_OF_NUMBERS = 64
_URL = re.compile(r"https?://[^\s'\"]+")


def track(begins: float, lasted: float, span: float, seconds: Sequence[float]) -> str:
    total = sum(seconds) or 1.0
    parts = "".join(
        f'<i class="of-{stage}" style="width:{100 * value / total:.1f}%"></i>'
        for stage, value in zip(STAGES[1:], seconds, strict=True)
    )
    left, width = 100 * begins / span, 100 * lasted / span
    place = f"left:{min(99.0, left):.2f}%;width:{max(0.3, min(width, 100 - left)):.2f}%"
    return f'<div class="track"><span style="{place}">{parts}</span></div>'


def bars_figure(chart: Bars, charts: list[Chart]) -> str:
    most = max(range(len(chart.now)), key=chart.now.__getitem__)
    names = chart.names()
    label = f"{chart.title}. Most are {names[most]}: {number(100 * chart.now[most])} % of this run."
    keys = [("now", "this run", ""), *([("before", "previous run", "edge")] if chart.before else [])]
    head = ["", "this run", *(["previous run"] if chart.before else [])]
    rows = []
    for at, name in enumerate(names[:_ROWS_OF_NUMBERS]):
        old = [f"{100 * chart.before[at]:.2f} %"] if chart.before else []
        if chart.now[at] or (chart.before and chart.before[at]):
            rows.append([name, f"{100 * chart.now[at]:.2f} %", *old])
    return figure_html(chart, charts, label, keys, table_html(head, rows, "tnn", kind="numbers"))


def areas_figure(chart: Areas, charts: list[Chart], spent: Sequence[float]) -> str:
    label = f"Threads at work over time. {spent_text(spent)} in all."
    keys = [(stage, stage, "") for stage in STAGES]
    at = range(0, len(chart.seconds), max(1, len(chart.seconds) // 20))
    rows = [[f"{chart.seconds[i]:.1f}", *(f"{stage[i]:.2f}" for stage in chart.stages)] for i in at]
    table = table_html(["second", *STAGES], rows, "nnnnn", kind="numbers")
    return figure_html(chart, charts, label, keys, table)


def figure_html(chart: Chart, charts: list[Chart], label: str, keys: Iterable[tuple[str, str, str]], table: str) -> str:
    charts.append(chart)
    key = "".join(f'<span><i class="of-{of} {kind}"></i>{said}</span>' for of, said, kind in keys)
    box = f'tabindex="0" role="group" aria-label="{say(chart.title)}: arrow keys read it out" data-label="{say(label)}"'
    return (
        f'<figure data-chart="{len(charts) - 1}"><figcaption>{say(chart.title)}<span class="keys">{key}</span></figcaption>'
        f'<div class="chart" {box}></div><output aria-live="polite"></output>'
        f'<details><summary>The numbers</summary><div class="scroll">{table}</div></details></figure>'
    )


def drawn(chart: Chart) -> dict[str, Any]:
    if isinstance(chart, Areas):
        return {"seconds": chart.seconds, "stages": chart.stages}
    now, before = (shares and [round(share, 6) for share in shares] for shares in (chart.now, chart.before))
    return {"labels": list(map(printable, chart.labels)), "between": chart.between, "now": now, "before": before}


def stage_keys() -> str:
    return "".join(f'<span><i class="of-{stage}"></i>{stage}</span>' for stage in STAGES[1:])


def answer(asked: str, says: str, more: str, kind: str) -> str:
    answer = f'<dd class="says {kind}">{say(says)}</dd><dd class="more">{say(more)}</dd>'
    return f'<div class="answer"><dt>{asked}</dt>{answer}</div>'


def facts_table(facts: Iterable[tuple[str, str]]) -> str:
    rows = (f'<tr><th scope="row">{say(name)}</th><td class="cut">{say(value)}</td></tr>' for name, value in facts)
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def table_html(
    head: Sequence[str], rows: Iterable[Sequence[str]], kinds: str, *, kind: str = "", raw: bool = False
) -> str:
    """`kinds` has a letter for each column: n for a number, t for text, c for text that may be cut anywhere."""
    classes = {"n": ' class="n"', "t": "", "c": ' class="cut"'}
    heads = "".join(
        f'<th scope="col"{classes[kind] if kind == "n" else ""}>{say(name)}</th>'
        for name, kind in zip(head, kinds, strict=False)
    )
    lines = []
    for row in rows:
        shown = zip(row if raw else map(say, row), kinds, strict=False)
        lines.append(f"<tr>{''.join(f'<td{classes[kind]}>{cell}</td>' for cell, kind in shown)}</tr>")
    named = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{named}><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def without_secrets(text: str) -> str:
    """With no user, password, query or fragment of a web address in it."""
    return _URL.sub(lambda found: public_uri(found[0]), text)


def say(text: str) -> str:
    return escape(printable(without_secrets(text)))


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def tail(uri: str) -> str:
    return uri if len(uri) <= 80 else f"…{uri[-79:]}"


def spent_text(spent: Sequence[float]) -> str:
    """Seconds of threads by stage."""
    return ", ".join(f"{stage} {duration_text(value)}" for stage, value in zip(STAGES, spent, strict=True))


def bytes_text(count: int) -> str:
    size, units = float(count), iter(("bytes", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while size >= 1024 and unit != "TiB":
        size, unit = size / 1024, next(units)
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def seconds_text(seconds: float | None) -> str:
    if seconds is None:
        return "\N{EN DASH}"
    return f"{number(seconds * 1000)} ms" if seconds < 1 else duration_text(seconds)


def duration_text(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
