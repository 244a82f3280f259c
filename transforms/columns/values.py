"""The innermost values of a column: one handler per kind, and how its memory becomes numpy's or TensorFlow's.

Layouts: https://arrow.apache.org/docs/format/Columnar.html
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..models.streaming.dlpack import to_tensor
from ..nested_arrow import numbers_in

if TYPE_CHECKING:
    import tensorflow as tf

_LARGE = (pa.large_string(), pa.large_binary())
_VIEWS = (pa.string_view(), pa.binary_view())
_BYTES = (pa.string(), pa.binary(), *_LARGE)


@dataclass(frozen=True, slots=True)
class Leaf(ABC):
    """`dtype` is TensorFlow's name for what `tensor` gives.

    `decoded` is the type that Arrow casts the array to before it is read: of dictionaries, views and fixed widths.
    `meaning` sets apart columns whose numbers are the same and say other things, as timestamps of another unit.
    `exact` is whether the dtype holds every value of the column.
    """

    dtype: str
    decoded: pa.DataType | None = None
    meaning: str = ""
    exact: bool = True

    @property
    def dims(self) -> tuple[int | None, ...]:
        """The shape of one value; None for a length that only the value knows."""
        return ()

    def plain(self, array: pa.Array[Any]) -> pa.Array[Any]:
        """The array as `tensor` reads it; nulls of a dictionary come to light only here."""
        return array if self.decoded is None else array.cast(self.decoded)

    @abstractmethod
    def tensor(self, array: pa.Array[Any], shape: tuple[int, ...]) -> tf.Tensor:
        """The plain array, without nulls and of as many values as `shape` has, row-major."""


class BadValueError(Exception):
    """The value at `index` of the array that a leaf was given cannot be read."""

    def __init__(self, index: int, *, expected: str, found: str, cure: str) -> None:
        super().__init__(index, expected, found, cure)
        self.index, self.expected, self.found, self.cure = index, expected, found, cure


@dataclass(frozen=True, slots=True)
class Numbers(Leaf):
    """Integers, floats, and what Arrow keeps as integers: the tensor is Arrow's own memory where that is aligned."""

    def numpy(self, array: pa.Array[Any]) -> np.ndarray[Any, Any]:
        """All values of the plain array; those under its nulls are undefined."""
        return view(array, np.dtype(self.dtype), len(array))

    def tensor(self, array: pa.Array[Any], shape: tuple[int, ...]) -> tf.Tensor:
        return to_tensor(self.numpy(array).reshape(shape))


@dataclass(frozen=True, slots=True)
class Decimals(Numbers):
    """Converts by digits: Arrow's own cast multiplies by a power of ten, and misses the nearest number once in five."""

    def plain(self, array: pa.Array[Any]) -> pa.Array[Any]:
        if isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        return array.cast(pa.string()).cast(pa.float64())


@dataclass(frozen=True, slots=True)
class Bits(Numbers):
    """Booleans: eight to a byte in Arrow, least significant first; a byte each in TensorFlow."""

    def numpy(self, array: pa.Array[Any]) -> np.ndarray[Any, Any]:
        if not len(array):
            return np.empty(0, np.bool_)
        first, skip = divmod(array.offset, 8)
        packed = numbers_in(array.buffers()[1], np.dtype(np.uint8), (skip + len(array) + 7) // 8, first)
        return np.unpackbits(packed, count=skip + len(array), bitorder="little")[skip:].view(np.bool_)


@dataclass(frozen=True, slots=True)
class Bytes(Leaf):
    """Strings and binary: `Substr` cuts the column's one blob into TensorFlow strings; no row is a Python object."""

    def tensor(self, array: pa.Array[Any], shape: tuple[int, ...]) -> tf.Tensor:
        import tensorflow as tf

        if not len(array):
            return tf.zeros(shape, tf.string)
        starts_and_end = offsets(array)
        first, data = int(starts_and_end[0]), array.buffers()[2]
        blob = data.slice(first, int(starts_and_end[-1]) - first).to_pybytes() if data is not None else b""
        starts = starts_and_end[:-1] - first if first else starts_and_end[:-1]
        # A list of one goes straight into a TensorFlow string; a bare bytes object takes a path 80 times slower.
        blobs, lengths = tf.constant([blob]), np.diff(starts_and_end)
        values = tf.raw_ops.Substr(input=blobs, pos=to_tensor(starts), len=to_tensor(lengths), unit="BYTE")
        return values if shape == (len(array),) else tf.reshape(values, shape)


def leaf_of(kind: pa.DataType) -> Leaf | None:
    """None where no tensor can hold such values.

    Points and spans of time are the integers that Arrow keeps, in the column's own unit: since 1970 in UTC with a zone or
    without, since midnight, or as long as they last. Decimals are the nearest float64.
    """
    if pa.types.is_boolean(kind):
        return Bits("bool")
    if pa.types.is_integer(kind):
        return Numbers(str(kind))
    if pa.types.is_floating(kind):
        return Numbers(f"float{kind.bit_width}")
    if pa.types.is_timestamp(kind):
        return Numbers("int64", meaning=f"timestamp[{kind.unit}]")
    if pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind):
        return Numbers(f"int{kind.bit_width}", meaning=str(kind))
    if pa.types.is_decimal(kind):
        return Decimals("float64", decoded=pa.float64(), exact=False)
    if kind in _BYTES:
        return Bytes("string")
    if kind in _VIEWS or pa.types.is_fixed_size_binary(kind):
        return Bytes("string", decoded=pa.large_binary())
    # Arrow 25 cannot decode a dictionary of views, and Parquet gives none.
    if pa.types.is_dictionary(kind) and kind.value_type not in _VIEWS:
        leaf = leaf_of(kind.value_type)
        return leaf and replace(leaf, decoded=leaf.decoded or kind.value_type)
    return None


def view(array: pa.Array[Any], dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    """`count` values of the array's second buffer from the array's own offset on; keeps the buffer alive."""
    if not len(array):
        return np.empty(0, dtype)
    return numbers_in(array.buffers()[1], dtype, count, array.offset * dtype.itemsize)


def offsets(array: pa.Array[Any]) -> np.ndarray[Any, Any]:
    """Where each list or string of an array begins in its child or blob, and where the last ends; 0 in an empty array."""
    if not len(array):
        return np.zeros(1, np.int64)
    large = array.type in _LARGE or pa.types.is_large_list(array.type)
    return view(array, np.dtype(np.int64 if large else np.int32), len(array) + 1)


def nulls(array: pa.Array[Any]) -> np.ndarray[Any, Any]:
    return Bits("bool").numpy(array.is_null())
