"""The levels between a row and its values: fixed lists, equal lists, padded lists, members of structs.

A level opens an array of its kind: it gives the array within, the shape that it adds, and, once something is padded, for
each value the place in that array where it stands (row-major; -1 where nothing does). So values are gathered once, at
the leaf, however many levels are padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.leaves import nulls, offsets


@dataclass(slots=True)
class Opened:
    """`count` values of shape () stand in `array` at `places`, or one after the other where that is None.

    `dims` is what the levels so far make of one row.
    """

    array: pa.Array
    places: np.ndarray[Any, Any] | None = None
    dims: tuple[int, ...] = ()

    def row(self, index: int) -> int:
        """The row of the batch that the value at this index belongs to."""
        return index // math.prod(self.dims)

    def first_null(self) -> int | None:
        """The index of the first value that is null."""
        if not self.array.null_count:
            return None
        missing = nulls(self.array)
        if self.places is not None:
            missing = gather(missing, self.places)
        return int(missing.argmax()) if missing.any() else None


class ListLengthError(Exception):
    """The list at `index` of its level is of a length that the plan does not allow."""

    def __init__(self, index: int, length: int, wanted: str) -> None:
        super().__init__(index, length, wanted)
        self.index, self.length, self.wanted = index, length, wanted


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
        size = storage.type.list_size
        values = storage.values.slice(storage.offset * size, len(storage) * size)
        if storage.null_count:
            place = pa.array(np.arange(len(values)), mask=np.repeat(nulls(storage), size))
            values = values.take(place)
        if at.places is not None:
            firsts = at.places[:, None]
            at.places = np.where(firsts < 0, -1, firsts * size + np.arange(size)).reshape(-1)
        at.array, at.dims = values, at.dims + self.dims


@dataclass(frozen=True, slots=True)
class EqualLists:
    """Lists that must be equally long: `dims[0]` values each, or where that is None, as many as the first has."""

    dims: tuple[int | None]
    fills_nulls = False

    def open(self, at: Opened) -> None:
        array, wanted = at.array, self.dims[0]
        if not len(array):
            at.array, at.dims = array.values.slice(0, 0), (*at.dims, wanted or 0)
            return
        edges = offsets(array)
        lengths = np.diff(edges)
        length = int(lengths[0]) if wanted is None else wanted
        wrong = lengths != length
        if wrong.any():
            index = int(wrong.argmax())
            told = f"{length} values" if wanted is not None else f"{length} values, as in the first list"
            raise ListLengthError(index, int(lengths[index]), told)
        at.array = array.values.slice(int(edges[0]), int(edges[-1] - edges[0]))
        at.dims = (*at.dims, length)


@dataclass(frozen=True, slots=True)
class PaddedLists:
    """Lists of any length up to `dims[0]`, or where that is None, up to the longest of the batch. A null one is empty."""

    dims: tuple[int | None]
    fills_nulls = True

    def open(self, at: Opened) -> None:
        array, wanted = at.array, self.dims[0]
        edges = offsets(array) if len(array) else np.zeros(1, np.int64)
        first, last = int(edges[0]), int(edges[-1])
        starts = edges[:-1].astype(np.int64) - first
        lengths = np.diff(edges).astype(np.int64)
        if array.null_count:
            lengths[nulls(array)] = 0
        if at.places is not None:
            starts, lengths = gather(starts, at.places), gather(lengths, at.places)
        longest = int(lengths.max(initial=0))
        size = longest if wanted is None else wanted
        if longest > size:
            index = int((lengths > size).argmax())
            raise ListLengthError(index, int(lengths[index]), f"at most {size} values")
        values = array.values.slice(first, last - first)
        if at.places is None and bool((lengths == size).all()):
            at.array = values.slice(0, len(lengths) * size)
        else:
            steps = np.arange(size)
            at.places = np.where(steps < lengths[:, None], starts[:, None] + steps, -1).reshape(-1)
            at.array = values
        at.dims = (*at.dims, size)


def gather(values: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values at these places, 0 where nothing stands."""
    gathered = np.zeros(len(places), values.dtype)
    there = places >= 0
    gathered[there] = values[places[there]]
    return gathered


Level = Member | FixedLists | EqualLists | PaddedLists
