"""The levels between a row and its values: fixed lists, equal lists, padded lists, ragged lists, members of structs.

A level opens an array of its kind, and gives the inner values and the shape that it adds. After the first padded level, a mask
records the places of these values, in order. The leaf then puts them there once, however many levels are padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..nested_arrow import child, list_size
from .values import nulls, offsets


@dataclass(slots=True)
class Opened:
    """The values of `array` belong, in order, at the places where `present` is true, or everywhere where that is None.

    `dims` is the shape of one row according to the levels so far; places are row-major. `kept` are the batch's rows that are
    not left out, None for all. `splits` are of the outermost lists, if these stay as long as they are: where each begins among
    the values of the next level, from 0, and where the last ends. `dims` is then the shape of one of the innermost values.
    """

    array: pa.Array[Any]
    present: np.ndarray[Any, Any] | None = None
    dims: tuple[int, ...] = ()
    kept: np.ndarray[Any, Any] | None = None
    splits: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def leave_out_nulls(self) -> None:
        """Called before any list is opened."""
        if self.array.null_count:
            there = ~nulls(self.array)
            self.array, self.kept = self.array.filter(pa.array(there)), np.flatnonzero(there)

    def row(self, index: int) -> int:
        """The row of the batch that the value at this index of the array belongs to."""
        return int(self.rows(np.array([index]))[0])

    def rows(self, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """`row` of each."""
        places = indices if self.present is None else np.flatnonzero(self.present)[indices]
        rows = places // math.prod(self.dims)
        for edges in reversed(self.splits):
            rows = np.searchsorted(edges, rows, side="right") - 1
        return rows if self.kept is None else self.kept[rows]


# One long list makes all of a batch long; this many values of eight bytes are 2 GiB.
MOST_PLACES = 1 << 28


class ListLengthError(Exception):
    """A list of a level, of these `lengths`, is of one that the plan does not allow: the first of those that are `wrong`."""

    def __init__(
        self, lengths: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any], wanted: str, *, alone: bool = True
    ) -> None:
        """`alone` says that each of the lists is wrong by itself, not only beside others."""
        self.index = int(wrong.argmax())
        self.length, self.wanted = int(lengths[self.index]), wanted
        super().__init__(self.index, self.length, wanted)
        self.lengths, self.wrong = lengths, wrong if alone else None


@dataclass(frozen=True, slots=True)
class Member:
    """One field of a struct, which is null where the struct is."""

    name: str
    dims: tuple[()] = ()
    fills_nulls = True

    def open(self, at: Opened) -> None:
        at.array = pc.struct_field(at.array, [at.array.type.get_field_index(self.name)])


@dataclass(frozen=True, slots=True)
class FixedLists:
    """`arrow.fixed_shape_tensor`s and fixed-size lists: `dims` values each, row-major. A null one is of nulls."""

    dims: tuple[int, ...]
    fills_nulls = True

    def open(self, at: Opened) -> None:
        storage = at.array.storage if isinstance(at.array, pa.ExtensionArray) else at.array
        size = list_size(storage.type)
        values = child(storage).slice(storage.offset * size, len(storage) * size)
        if storage.null_count:
            place: Any = pa.array(np.arange(len(values)), mask=np.repeat(nulls(storage), size))
            values = values.take(place)
        if at.present is not None:
            at.present = np.repeat(at.present, size)
        at.array, at.dims = values, at.dims + self.dims


@dataclass(frozen=True, slots=True)
class EqualLists:
    """Lists that must be equally long: `dims[0]` values each, or where that is None, as many as the first has."""

    dims: tuple[int | None]
    fills_nulls = False

    def open(self, at: Opened) -> None:
        array, wanted = at.array, self.dims[0]
        if not len(array):
            at.array, at.dims = child(array).slice(0, 0), (*at.dims, wanted or 0)
            return
        edges = offsets(array)
        lengths = np.diff(edges)
        length = int(lengths[0]) if wanted is None else wanted
        wrong = lengths != length
        if wrong.any():
            expected = f"{length} values" if wanted is not None else f"{length} values, as in the first list"
            # Without a length of the plan, lists only differ from one another.
            raise ListLengthError(lengths, wrong, expected, alone=wanted is not None)
        at.array = child(array).slice(int(edges[0]), int(edges[-1] - edges[0]))
        at.dims = (*at.dims, length)


@dataclass(frozen=True, slots=True)
class PaddedLists:
    """Lists of any length up to `dims[0]`, or where that is None, up to the longest of the batch. A null one is empty."""

    dims: tuple[int | None]
    fills_nulls = True

    def open(self, at: Opened) -> None:
        array, wanted = at.array, self.dims[0]
        edges = offsets(array)
        first, last = int(edges[0]), int(edges[-1])
        lengths = np.diff(edges)
        values = child(array).slice(first, last - first)
        if array.null_count and lengths[missing := nulls(array)].any():
            values = values.filter(pa.array(np.repeat(~missing, lengths)))
            lengths[missing] = 0
        longest = int(lengths.max(initial=0))
        size = longest if wanted is None else wanted
        places = len(lengths) if at.present is None else len(at.present)
        if longest > size:
            raise ListLengthError(lengths, lengths > size, f"at most {size} values")
        if places * size > MOST_PLACES:
            expected = f"at most {MOST_PLACES // places} values, since {places} lists of the batch are padded alike"
            raise ListLengthError(lengths, lengths == longest, expected, alone=False)
        if at.present is not None or longest < size or int(lengths.min(initial=size)) < size:
            present = np.arange(size) < lengths[:, None]
            if at.present is not None:
                everywhere = np.zeros((len(at.present), size), np.bool_)
                everywhere[at.present] = present
                present = everywhere
            at.present = present.reshape(-1)
        at.array, at.dims = values, (*at.dims, size)


@dataclass(frozen=True, slots=True)
class RaggedLists:
    """Outermost lists that stay as long as they are; of `dims[0]` values each where that is known, and of `most` at most.
    A null one is empty.
    """

    dims: tuple[int | None]
    most: int | None = None
    fills_nulls = True

    def open(self, at: Opened) -> None:
        array, wanted = at.array, self.dims[0]
        if pa.types.is_fixed_size_list(array.type):
            size = list_size(array.type)
            edges = np.arange(array.offset, array.offset + len(array) + 1, dtype=np.int64) * size
        else:
            edges = offsets(array)
        values = child(array).slice(int(edges[0]), int(edges[-1] - edges[0]))
        splits = edges.astype(np.int64, copy=False) - edges[0] if edges[0] else edges.astype(np.int64, copy=False)
        if array.null_count:
            lengths, missing = np.diff(splits), nulls(array)
            if lengths[missing].any():
                values = values.filter(pa.array(np.repeat(~missing, lengths)))
            lengths[missing] = 0
            splits = np.concatenate([[0], np.cumsum(lengths)])
        if wanted is not None or self.most is not None:
            lengths = np.diff(splits)
            wrong = lengths != wanted if wanted is not None else lengths > (self.most or 0)
            if wrong.any():
                expected = f"{wanted} values" if wanted is not None else f"at most {self.most} values"
                raise ListLengthError(lengths, wrong, expected)
        at.array = values
        at.splits.append(splits)


Level = Member | FixedLists | EqualLists | PaddedLists | RaggedLists
