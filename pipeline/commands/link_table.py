"""The table of what feeds what: columns on the left, tensors on the right, and what leads from one to the other."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import pyarrow as pa

from headrace.transforms.errors import HeadraceError

from ..checks.column_links import Link
from ..terminal.tables import WIDTH, table, tensor_cells

_MOST_COLUMNS = 40
_ARROWS = {
    ("feature", ""): "───────▶",
    ("feature", "packed"): "───────▶",
    ("feature", "encoded"): "───────▶",
    ("feature", "widened"): "─widen─▶",
    ("feature", "cast"): "─ cast ▶",
    ("feature", "decoded"): "─image─▶",
    ("prediction", ""): "◀───────",
}
_WRONG, _KEPT = "─── ✗ ──", "════════"
# Arrow's name for the values of lists, and that they are never null, are noise here.
_ITEM = re.compile(r"(?<=<)(element|item|list): | not null(?=>)")


def drawn(links: Sequence[Link], title: str) -> list[str]:
    """Columns on the left, tensors on the right, what leads from one to the other between them; below, what does not fit."""
    rows: list[tuple[str, ...]] = [("column", "type", "", "tensor", "")]
    shown = [link for link in links if link.kind in ("feature", "prediction", "aside")]
    for link in shown:
        rows += _rows(link)
    for kind, say in (("kept", "kept"), ("unused", "not read")):
        others = [link for link in links if link.kind == kind]
        for link in others[:_MOST_COLUMNS]:
            name, found = link.columns[0]
            arrow = _WRONG if link.problem else _KEPT if kind == "kept" else ""
            rows.append((name, _kind(found), arrow, say, ""))
        if len(others) > _MOST_COLUMNS:
            rows.append((f"{len(others) - _MOST_COLUMNS:,} more", "", _KEPT if kind == "kept" else "", say, ""))
    lines = [f"The input's columns, and {title}", "", *table(rows[0], rows[1:], WIDTH, first=1)]
    for link in links:
        if link.problem:
            text = str(HeadraceError(link.problem, cure=link.cure))
            lines += ["", *textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)]
    return lines


def _rows(link: Link) -> list[tuple[str, ...]]:
    """A line for each column; the tensor is next to the first."""
    name = f"{link.model}.{link.tensor.name}" if link.model and link.tensor else link.tensor.name if link.tensor else ""
    cells = (name, " ".join(tensor_cells(link.tensor)) if link.tensor and link.tensor.dtype else "no such tensor")
    if link.kind == "aside":
        return [(f"({link.how})", "", "", *cells)]
    columns = [(column, _kind(kind)) for column, kind in link.columns] or [("", "")]
    arrow = _WRONG if link.problem else _ARROWS[link.kind, link.how]
    if len(columns) == 1:
        return [(*columns[0], arrow, *cells)]
    side = arrow[:3] if link.kind == "prediction" else "───"
    joined = [f"{arrow[:3]}┬{arrow[4:]}", *[f"{side}┤"] * (len(columns) - 2), f"{side}┘"]
    return [
        (*column, joint, *(cells if not at else ("", "")))
        for at, (column, joint) in enumerate(zip(columns, joined, strict=True))
    ]


def _kind(kind: pa.DataType | None) -> str:
    return "(missing)" if kind is None else _ITEM.sub("", str(kind))
