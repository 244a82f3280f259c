"""Tables of text that fit 80 columns: names and types are cut where they must be, with an ellipsis, and never wrapped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from headrace.transforms.models.spec import TensorSpec
from headrace.transforms.printable import printable

WIDTH = 80
_LEAST_CELL, _LEAST_FIRST = 8, 12


def tensor_cells(spec: TensorSpec) -> tuple[str, str]:
    dtype = spec.dtype if spec.example is None else spec.example.message
    if spec.composite is not None:
        dtype = f"{spec.composite.kind} {dtype}"
    if spec.shape is None:
        return dtype, "any shape"
    dims = ("batch" if i == 0 and dim is None else str(dim or "?") for i, dim in enumerate(spec.shape))
    return dtype, f"[{', '.join(dims)}]"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, *, first: int | None = None
) -> list[str]:
    """Cells side by side. Where lines would be longer than `width`, the widest columns of the table are cut, column `first`
    before the others.
    """
    lines = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in lines) for i in range(len(head))]
    while width is not None and sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > _LEAST_CELL:
        before = first is not None and widths[first] > _LEAST_FIRST
        widths[first if first is not None and before else widths.index(max(widths))] -= 1
    return [
        "  ".join(_cut(cell, size).ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in lines
    ]


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"


def wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(f"{label:<9}{text}", WIDTH, subsequent_indent=" " * 9, break_long_words=False)
