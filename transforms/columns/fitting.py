"""Whether the shape of a column's row is that of a tensor, and what is said where it is not."""

from __future__ import annotations

import math
from dataclasses import replace

from ..errors import ColumnError
from ..models.spec import TensorSpec
from .column import Column
from .nesting import EqualLists, Level, PaddedLists, RaggedLists
from .struct_paths import member_type
from .wording import described, shown, within


def match(
    dims: tuple[int | None, ...], target: tuple[int | None, ...] | None
) -> tuple[tuple[int | None, ...], tuple[int, ...] | None] | None:
    """Holds the shape of a column's row against the tensor's: the lengths that the column's levels must have and the
    tensor's shape beyond the batch (None where the rows decide), or None where they do not fit.
    """
    if target is None:
        return dims, known(dims)
    if len(dims) == len(target) and all(d is None or t is None or d == t for d, t in zip(dims, target, strict=True)):
        lengths = tuple(t if d is None else d for d, t in zip(dims, target, strict=True))
        return lengths, known(lengths)
    if not dims and target == (None,):
        return (), (1,)
    inner = known(target)
    if inner is None:
        return None
    if len(dims) == 1 and dims[0] in (None, math.prod(inner)):
        return (math.prod(inner),), inner
    if None not in dims and [d for d in dims if d != 1] == [t for t in inner if t != 1]:
        return dims, inner
    return None


def known(dims: tuple[int | None, ...]) -> tuple[int, ...] | None:
    known = tuple(dim for dim in dims if dim is not None)
    return known if len(known) == len(dims) else None


def with_lengths(column: Column, lengths: tuple[int | None, ...]) -> Column:
    """The column, its lists held to these lengths from the outermost in."""
    levels: list[Level] = []
    at = 0
    for level in column.levels:
        levels.append(
            replace(level, dims=(lengths[at],)) if isinstance(level, EqualLists | PaddedLists | RaggedLists) else level
        )
        at += len(level.dims)
    return replace(column, levels=tuple(levels))


def misfit(spec: TensorSpec, column: Column, where: str, cure: str) -> ColumnError:
    kind = str(member_type(column.type, column.path))
    if column.rule.image is not None:
        kind += f", decoded to {shown(column.leaf.dims)}"
    return misfit_type(spec, column.name, kind, where, cure)


def misfit_type(spec: TensorSpec, name: str, kind: str, where: str, cure: str) -> ColumnError:
    return ColumnError(
        f"Column '{name}'{within(where)} does not fit tensor '{spec.name}'",
        expected=described(spec),
        found=kind,
        cure=cure,
    )
