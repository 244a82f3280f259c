"""Horizontal bars as one self-contained SVG, light or dark as its reader prefers: how benchmarks show their figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, LABELS, VALUES, MARGIN = 760, 250, 120, 16
HEAD, ROW, BAR, FOOT = 68, 30, 18, 14
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
STYLE = f"""
  text {{ font: 13px {FONT}; fill: #1f2328; }}
  .paper {{ fill: #ffffff; stroke: #d1d9e0; }}
  .title {{ font-size: 16px; font-weight: 600; }}
  .quiet {{ font-size: 12px; fill: #59636e; }}
  .bar {{ fill: #9aa5b1; }}
  .ours {{ fill: #0969da; }}
  .name {{ font-weight: 600; }}
  .goal {{ stroke: #bc4c00; stroke-dasharray: 4 3; }}
  .goal-text {{ font-size: 12px; fill: #bc4c00; }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #f0f6fc; }}
    .paper {{ fill: #0d1117; stroke: #3d444d; }}
    .quiet {{ fill: #9198a1; }}
    .bar {{ fill: #656c76; }}
    .ours {{ fill: #4493f8; }}
    .goal {{ stroke: #f0883e; }}
    .goal-text {{ fill: #f0883e; }}
  }}
"""


def bars(title: str, subtitle: str, rows: Sequence[tuple[str, float, str]], *, goal: float | None = None) -> str:
    """The SVG's text. A row is its label, its length and the text at the bar's end; rows of an empty label part groups.

    All lengths, and `goal`, are in one unit, 0 at the left edge. Rows whose label begins with "headrace" stand out; a row
    that parts groups bears its text as a heading. Raises `ValueError` where no row has a length above 0.
    """
    longest = max([value for _, value, _ in rows] + [goal or 0.0], default=0.0)
    if longest <= 0:
        raise ValueError("no row has a length above 0")
    left, room = MARGIN + LABELS, WIDTH - 2 * MARGIN - LABELS - VALUES
    height = HEAD + ROW * len(rows) + FOOT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title what">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="what">{escape("; ".join(f"{name}: {text}" if name else text for name, _, text in rows))}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        _text(MARGIN, 28, title, "title"),
        _text(MARGIN, 48, subtitle, "quiet"),
    ]
    for number, (name, value, text) in enumerate(rows):
        top = HEAD + ROW * number
        middle = top + ROW / 2 + 4.5
        if not name:
            lines.append(_text(MARGIN, middle, text, "name"))
            continue
        ours = name.startswith("headrace")
        length = max(room * value / longest, 1.0)
        place = f'x="{left}" y="{top + (ROW - BAR) / 2:g}" width="{length:.1f}" height="{BAR}" rx="2"'
        lines += [
            _text(left - 10, middle, name, "name" if ours else "", "end"),
            f'<rect class="{"ours" if ours else "bar"}" {place}/>',
            _text(left + length + 8, middle, text, "name" if ours else ""),
        ]
    if goal is not None:
        at = left + room * goal / longest
        lines += [
            f'<line class="goal" x1="{at:.1f}" y1="{HEAD}" x2="{at:.1f}" y2="{height - FOOT}"/>',
            _text(at, HEAD - 4, "goal", "goal-text", "middle"),
        ]
    return "\n".join([*lines, "</svg>", ""])


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
