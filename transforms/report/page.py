"""The page: one HTML text that loads nothing, says what matters first, and holds what the next run compares itself with."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ..columns.wording import counted
from ..jobs.job import Job
from ..shards.column_statistics import Column
from ..shards.shard import FailedShard
from .account import Account
from .charts import Chart, column_charts, histogram, number, time_line
from .drift import Drift, shifts, worst
from .explanation import explanation
from .failed_shards import failed_answer, failed_section
from .html import (
    answer,
    areas_figure,
    bars_figure,
    bytes_text,
    cut,
    drawn,
    duration_text,
    facts_table,
    say,
    seconds_text,
    spent_text,
    stage_keys,
    table_html,
    tail,
    track,
)
from .kept import Kept, embedded

_NAMES_SHOWN = 12
_MOST_CHARTS = 80
_MARKS = {"steady": ("good", "steady"), "slight": ("warn", "shifted"), "marked": ("bad", "shifted much")}


@dataclass(frozen=True, slots=True)
class Run:
    """The content of a page. `compared` is the reason why there is no `before`, or its place."""

    job: Job
    account: Account
    kept: Kept
    before: Kept | None
    compared: str
    failed: tuple[FailedShard, ...] = ()


def page(run: Run) -> str:
    charts: list[Chart] = []
    found = _shifts(run)
    body = "\n".join(
        [
            *_head(run, found),
            *failed_section(run.failed),
            *_predictions(run, found, charts),
            *_time(run, charts),
            *_dead_letters(run),
            *_what_ran(run),
            explanation(run.compared if run.before is not None else None),
        ]
    )
    assets = files("headrace.transforms.report")
    script = "\n".join(
        [
            f"/* uPlot\n{assets.joinpath('uplot/LICENSE').read_text('utf-8').strip()}\n*/",
            assets.joinpath("uplot/uPlot.iife.min.js").read_text("utf-8").strip(),
            assets.joinpath("page.js").read_text("utf-8").strip(),
        ]
    )
    style = assets.joinpath("uplot/uPlot.min.css").read_text("utf-8") + assets.joinpath("page.css").read_text("utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    title = f"{counted(run.account.rows - run.account.bad_rows, 'row')} predicted, headrace"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{say(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="headrace-report">{embedded(run.kept.dump())}</script>
<script type="application/json" id="charts">{embedded([drawn(chart) for chart in charts])}</script>
<script>{script}</script>
</body>
</html>
"""


def _shifts(run: Run) -> dict[str, list[Drift]]:
    """By the name of a column that both runs have."""
    before = {column.name: column for column in run.before.columns} if run.before else {}
    return {
        column.name: list(shifts(column, before[column.name])) for column in run.kept.columns if column.name in before
    }


def _head(run: Run, found: dict[str, list[Drift]]) -> Iterator[str]:
    account, job = run.account, run.job
    yield "<header>"
    yield f'<p class="eyebrow">headrace, {say(run.kept.written)}</p>'
    yield f"<h1>Predictions in {say(job.output)}</h1>"
    yield "</header>"
    yield '<dl class="answers">'
    if run.failed:
        yield failed_answer(run.failed, account)
    elif account.bad_rows:
        share = account.bad_rows / max(1, account.rows)
        are = "is" if account.bad_rows == 1 else "are"
        yield answer(
            "Did it work?",
            "Yes, but",
            f"{counted(account.bad_rows, 'row')} ({number(100 * share)} %) could not be predicted and {are} in dead letters. "
            f"{_allowed(job, account.rows)} Every other row is predicted.",
            "warn",
        )
    else:
        yield answer("Did it work?", "Yes", "Every row of the input is accounted for, and none failed.", "good")
    if differs := job.differs_from_run_to_run:
        yield answer("Is it repeatable?", "No", f"{'. '.join(differs)}.", "warn")
    trial = f" A trial: only the first {counted(job.limit, 'row')} (--limit)." if job.limit is not None else ""
    where = ""
    if job.where is not None:
        where = f" Of these, {account.filtered_rows:,} are left out of the output by --where."
    yield answer("How many rows?", f"{account.rows - account.bad_rows:,}", f"{_done(account)}{where}{trial}", "")
    yield answer("Is it like the previous run?", *_like(run, found))
    yield "</dl>"


def _allowed(job: Job, rows: int) -> str:
    """The number of rows that may be bad; for a share, also that it is rounded up."""
    most, allowed = job.on_error.most, job.on_error.allowed(rows)
    if not most.endswith("%"):
        return f"The limit is {allowed:,}."
    return f"The limit is {most[:-1]} %, rounded up to whole rows: {allowed:,} of {rows:,}."


def _done(account: Account) -> str:
    found = account.rows - account.computed_rows
    parts = []
    if account.computed_shards:
        lasted, rows = account.ended - account.began, counted(account.computed_rows, "row")
        rate = account.computed_rows / max(lasted, 1e-3)
        rate_text = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        parts.append(f"{rows} computed in {duration_text(lasted)}, {rate_text} per second")
    if found or not account.computed_shards:
        parts.append(f"{counted(found, 'row')} found done from earlier runs")
    return f"{'; '.join(parts)}."


def _like(run: Run, found: dict[str, list[Drift]]) -> tuple[str, str, str]:
    before = run.before
    if before is None:
        return "Nothing to compare", run.compared, ""
    change = ""
    if before.rows:
        more = 100 * (run.account.rows / before.rows - 1)
        change = f" {abs(more):.3g} % {'more' if more > 0 else 'fewer'} rows."
        if abs(more) < 0.05:
            change = " As many rows."
    model = "" if before.model == run.kept.model else " Another model."
    said = f"Compared with the run of {before.written}.{change}{model}"
    if bad := {name: drift for name, some in found.items() if (drift := worst(some)) and drift.grade != "steady"}:
        top = max(bad, key=lambda name: bad[name].distance)
        others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        grade = "bad" if any(drift.grade == "marked" for drift in bad.values()) else "warn"
        shifted = f"{top}{others} shifted: the distance between the {bad[top].of} is {bad[top].distance:.2f}."
        return "No" if grade == "bad" else "Nearly", f"{shifted} {said}", grade
    if not found:
        return "Nothing to compare", f"No column is in both runs. {said}", ""
    return "Yes", f"No column shifted. {said}", "good"


def _predictions(run: Run, found: dict[str, list[Drift]], charts: list[Chart]) -> Iterator[str]:
    account = run.account
    yield "<section>"
    yield "<h2>What was predicted</h2>"
    if not run.kept.columns:
        yield f"<p>{'No statistics of the predictions are known.' if account.shards else 'There were no rows.'}</p>"
        yield "</section>"
        return
    yield f'<p class="soft">{_coverage(account)}</p>'
    before = {column.name: column for column in run.before.columns} if run.before else {}
    for column in run.kept.columns:
        old = before.get(column.name)
        yield f"<h3>{say(column.name)} <small>{say(column.kind)}</small> {_mark(found.get(column.name, []))}</h3>"
        made = column_charts(column, old) if len(charts) < _MOST_CHARTS else []
        if made:
            yield f'<div class="charts">{"".join(bars_figure(chart, charts) for chart in made)}</div>'
        yield _column_table(column, old, found.get(column.name, []))
    yield "</section>"


def _coverage(account: Account) -> str:
    if account.described == account.shards:
        every = "the only shard" if account.shards == 1 else f"all {account.shards:,} shards"
        read = f", {account.footers:,} of them done by earlier runs" if account.footers else ""
        return f"Statistics of {every}{read}. Bars show this run, lines the previous run."
    return (
        f"Statistics of {account.described:,} of {counted(account.shards, 'shard')} only: those that this run computed, and "
        f"{account.footers:,} of those done by earlier runs. The other files were not read again."
    )


def _mark(found: Sequence[Drift]) -> str:
    drift = worst(found)
    if drift is None:
        return ""
    kind, said = _MARKS[drift.grade]
    return f'<span class="mark {kind}">{said}</span>'


def _column_table(column: Column, old: Column | None, found: Sequence[Drift]) -> str:
    head = ["", "rows", "null", "NaN", "infinite", "min", "mean", "median", "max", "std. dev."]
    if column.numbers is None:
        head = head[:3]
    rows = [_column_row("This run", column)] + ([_column_row("Before", old)] if old is not None else [])
    table = table_html(head, [row[: len(head)] for row in rows], "t" + "n" * len(head), kind="statistics")
    if not found:
        return table
    each = (f"{shift.of} {shift.distance:.3f} ({shift.grade}; chance alone {shift.chance:.3f})" for shift in found)
    return f'{table}<p class="soft">Jensen-Shannon distance to the previous run: {"; ".join(each)}.</p>'


def _column_row(name: str, column: Column) -> list[str]:
    row = [name, f"{column.rows:,}", f"{column.nulls:,}"]
    if (some := column.numbers) is None:
        return row
    middle = some.quantile(0.5)
    if middle is not None and not any(kind in column.kind for kind in ("float", "double")):
        middle = round(middle)
    numbers = (some.least, some.mean, middle, some.most, some.deviation)
    return [*row, f"{some.nan:,}", f"{some.infinite:,}", *(number(value) for value in numbers)]


def _time(run: Run, charts: list[Chart]) -> Iterator[str]:
    account = run.account
    yield "<section>"
    yield "<h2>Where the time went</h2>"
    if not account.computed_shards:
        yield "<p>This run computed nothing: every shard was in the output already.</p></section>"
        return
    began, lasted = account.began, max(account.ended - account.began, 1e-3)
    load = sum(process.load_seconds for process in account.loads())
    spent = [load, *account.seconds]
    yield '<div class="charts">'
    yield areas_figure(time_line(account.time_line, began), charts, spent)
    if (latency := histogram("Time of a batch, in seconds", account.batch_seconds, None)) is not None:
        yield bars_figure(latency, charts)
    yield "</div>"
    batch = account.batch_seconds
    batches = counted(account.batches, "batch", "batches")
    if batch.count:
        within = (f"{share * 100:g} % within {seconds_text(batch.quantile(share))}" for share in (0.5, 0.95, 0.99))
        batches += f": {', '.join(within)}, {seconds_text(batch.most)} at most"
    batches += "."
    if halved := account.batches_halved:
        batches += f" {counted(halved, 'batch', 'batches')} did not fit into memory and were halved."
    yield facts_table(
        {
            "Threads' time": spent_text(spent),
            "Batches": batches,
            "Bytes": f"{bytes_text(account.read_bytes)} of Parquet read, {bytes_text(account.written_bytes)} written",
            "Retried requests": f"{account.retries:,}, in {counted(len(account.processes), 'process', 'processes')}",
        }.items()
    )
    slow, title = account.slowest, f"The {len(account.slowest)} slowest of {account.computed_shards:,} shards"
    if account.computed_shards <= len(slow):
        slow, title = sorted(slow, key=lambda shard: shard.began), "Shards, in the order of their start"
    yield f"<h3>{title}</h3>"
    yield '<p class="soft">A bar shows when the shard ran. Its colours show the shares of reading, predicting and writing.</p>'
    yield f'<p class="keys">{stage_keys()}</p>'
    rows = []
    for shard in slow:
        bar = track(shard.began - began, shard.lasted, lasted, shard.seconds)
        rows.append([f"<code>{say(shard.output)}</code>", f"{shard.rows:,}", seconds_text(shard.lasted), bar])
    yield table_html(["shard", "rows", "time", f"0 to {duration_text(lasted)}"], rows, "tnnt", raw=True)
    yield "</section>"


def _dead_letters(run: Run) -> Iterator[str]:
    account, folder = run.account, run.job.on_error.dead_letters
    if folder is None or not account.bad_rows:
        return
    yield "<section>"
    yield "<h2>Rows that could not be predicted</h2>"
    are = "is" if account.bad_rows == 1 else "are"
    yield f"<p>{counted(account.bad_rows, 'row')} {are} in <code>{say(folder)}</code>, with the columns of the input.</p>"
    if not account.bad_rows_read:
        yield "<p>Their reasons could not be read.</p></section>"
        return
    every = account.bad_rows_read == account.bad_rows
    note = "" if every else f" (of the {account.bad_rows_read:,} that were looked at)"
    yield f"<h3>Reasons{note}</h3>"
    reasons = account.reasons.most_common(_NAMES_SHOWN)
    yield table_html(["rows", "stage", "reason"], [[f"{count:,}", *key] for key, count in reasons], "ntc")
    yield "<h3>Examples</h3>"
    examples = [[tail(bad.where), f"{bad.row:,}", bad.stage, cut(bad.error, 500)] for bad in account.examples]
    yield table_html(["file", "row", "stage", "error"], examples, "cntc")
    yield "</section>"


def _what_ran(run: Run) -> Iterator[str]:
    yield "<section>"
    yield "<h2>What ran</h2>"
    yield facts_table(_facts(run))
    yield "</section>"


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    job, account, record = run.job, run.account, run.job.record()
    for name, model in record["models"].items():
        of = f" {name}" if name else ""
        features = (f"{tensor} ← {', '.join(columns)}" for tensor, columns in model["feature"].items())
        predictions = (f"{output} → {column}" for output, column in model["prediction"].items())
        yield f"Model{of}", f"{model['uri']} ({model['format']}, signature {model['signature']})"
        yield f"Digest{of}", model["digest"]
        yield f"Features{of}", "; ".join(features)
        yield f"Predictions{of}", "; ".join(predictions)
        for key, value in model.items():
            if key not in _OF_A_MODEL:
                yield f"{key.replace('_', ' ').capitalize()}{of}", _words(value)
    functions = [function.name for function in (job.preprocess, job.postprocess) if function]
    devices = [f"{device} ({counted(shards, 'shard')})" for device, shards in account.devices.most_common()]
    letters = job.on_error.dead_letters
    yield "Kept columns", ", ".join(job.keep) or "none"
    yield "Your functions", " and ".join(functions) or "none"
    if job.where is not None:
        yield "Rows in the output", f"where {job.where}"
    yield "Input", _first_of(record["input"])
    yield "Output", f"{job.output}: {counted(account.shards, 'file')}, {bytes_text(account.output_bytes)}"
    yield "Batches", f"of {job.batch_rows:,} rows ({job.batch_rule}){', compiled with XLA' if job.jit_compile else ''}"
    yield "Device", ", ".join(devices) or "none: nothing was computed"
    yield "Bad rows", f"at most {job.on_error.most}, to {letters}" if letters else "fail the job"
    yield "Versions", ", ".join(f"{name} {version}" for name, version in job.versions)
    yield "Job", job.fingerprint
    yield "Manifest", _first_of(run.kept.manifest)


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (" …" if len(names) > _NAMES_SHOWN else "")


def _words(value: Any) -> str:
    """A setting as a person writes it; none of Python's or JSON's signs."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        numbers = len(value) > 1 and all(isinstance(item, int) for item in value)
        return (" \N{MULTIPLICATION SIGN} " if numbers else ", ").join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


_OF_A_MODEL = ("uri", "format", "digest", "signature", "feature", "prediction")
