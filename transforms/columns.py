"""One handler per kind of Arrow column: what it holds, and how its memory becomes a tensor.

A column is some levels of lists around a leaf. Which handlers serve it is decided from its type alone, before any data;
the handlers then work on whole batches, never on a row. Layouts: https://arrow.apache.org/docs/format/Columnar.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.errors import ColumnError, NullFeature
from transforms.models.dlpack import to_tensor

if TYPE_CHECKING:
    import tensorflow as tf


class Leaf(Protocol):
    """The innermost values. `dtype` is TensorFlow's name for what `tensor` gives."""

    @property
    def dtype(self) -> str: ...

    def plain(self, array: pa.Array) -> pa.Array:
        """The array in the encoding that `tensor` reads; nulls may come to light only here."""

    def tensor(self, array: pa.Array, shape: tuple[int, ...]) -> tf.Tensor:
        """The array, without nulls and of as many values as `shape` has, row-major."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Integers and floats: the tensor is Arrow's own memory where that is aligned."""

    dtype: str

    def plain(self, array: pa.Array) -> pa.Array:
        return array

    def numpy(self, array: pa.Array) -> np.ndarray[Any, Any]:
        return _view(array, 1, np.dtype(self.dtype), len(array))

    def tensor(self, array: pa.Array, shape: tuple[int, ...]) -> tf.Tensor:
        return to_tensor(self.numpy(array).reshape(shape))


@dataclass(frozen=True, slots=True)
class Bits:
    """Booleans: eight to a byte in Arrow, least significant first; a byte each in TensorFlow."""

    dtype: str = "bool"

    def plain(self, array: pa.Array) -> pa.Array:
        return array

    def numpy(self, array: pa.Array) -> np.ndarray[Any, Any]:
        first, skip = divmod(array.offset, 8)
        packed = (
            np.frombuffer(array.buffers()[1], np.uint8, (skip + len(array) + 7) // 8, first) if len(array) else _NONE
        )
        return np.unpackbits(packed, count=skip + len(array), bitorder="little")[skip:].view(np.bool_)

    def tensor(self, array: pa.Array, shape: tuple[int, ...]) -> tf.Tensor:
        return to_tensor(self.numpy(array).reshape(shape))


@dataclass(frozen=True, slots=True)
class Bytes:
    """Strings and binary: `substr` cuts the column's one blob into TensorFlow strings, so that no row is an object."""

    offsets: str
    dtype: str = "string"

    def plain(self, array: pa.Array) -> pa.Array:
        return array

    def tensor(self, array: pa.Array, shape: tuple[int, ...]) -> tf.Tensor:
        import tensorflow as tf

        if not len(array):
            return tf.zeros(shape, tf.string)
        offsets = _view(array, 1, np.dtype(self.offsets), len(array) + 1)
        first, data = int(offsets[0]), array.buffers()[2]
        blob = data.slice(first, int(offsets[-1]) - first).to_pybytes() if data is not None else b""
        starts = offsets[:-1] - first if first else offsets[:-1]
        # A list of one goes straight into a TensorFlow string; a bare bytes object takes a path 80 times slower.
        values = tf.strings.substr(tf.constant([blob]), to_tensor(starts), to_tensor(np.diff(offsets)))
        return values if shape == (len(array),) else tf.reshape(values, shape)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A leaf in another encoding (dictionary, view, fixed width): Arrow decodes it, then `leaf` reads `type`."""

    type: pa.DataType
    leaf: Numbers | Bits | Bytes

    @property
    def dtype(self) -> str:
        return self.leaf.dtype

    def plain(self, array: pa.Array) -> pa.Array:
        return array.cast(self.type)

    def numpy(self, array: pa.Array) -> np.ndarray[Any, Any]:
        assert not isinstance(self.leaf, Bytes)
        return self.leaf.numpy(array)

    def tensor(self, array: pa.Array, shape: tuple[int, ...]) -> tf.Tensor:
        return self.leaf.tensor(array, shape)


@dataclass(frozen=True, slots=True)
class FixedLists:
    """`arrow.fixed_shape_tensor`s and fixed-size lists: `dims` values each, row-major."""

    dims: tuple[int, ...]

    def open(self, array: pa.Array) -> tuple[pa.Array, tuple[int, ...]]:
        storage = array.storage if isinstance(array, pa.ExtensionArray) else array
        size = storage.type.list_size
        return storage.values.slice(storage.offset * size, len(storage) * size), self.dims


@dataclass(frozen=True, slots=True)
class EqualLists:
    """Lists that must be equally long: `dims[0]` values each, or where that is None, as many as the first has."""

    dims: tuple[int | None]

    def open(self, array: pa.Array) -> tuple[pa.Array, tuple[int, ...]]:
        wanted = self.dims[0]
        if not len(array):
            return array.values.slice(0, 0), (wanted or 0,)
        offsets = _view(array, 1, np.dtype("int64" if pa.types.is_large_list(array.type) else "int32"), len(array) + 1)
        lengths = np.diff(offsets)
        length = int(lengths[0]) if wanted is None else wanted
        wrong = lengths != length
        if wrong.any():
            at = int(wrong.argmax())
            raise UnequalListError(
                at, int(lengths[at]), f"{length} values" if wanted else f"{length}, as in the first list"
            )
        return array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0])), (length,)


class UnequalListError(Exception):
    """The list at `index` of its level has another length; `Column` turns this into a `ColumnError` with the row."""

    def __init__(self, index: int, length: int, wanted: str) -> None:
        super().__init__(index, length, wanted)
        self.index, self.length, self.wanted = index, length, wanted


Level = FixedLists | EqualLists


@dataclass(frozen=True, slots=True)
class Column:
    """How one column of exactly `type` is read."""

    name: str
    type: pa.DataType
    levels: tuple[Level, ...]
    leaf: Numbers | Bits | Bytes | Encoded

    @property
    def dims(self) -> tuple[int | None, ...]:
        """The shape of one row; () for a scalar, None for a length that only the data knows."""
        return tuple(dim for level in self.levels for dim in level.dims)

    def open(self, batch: pa.RecordBatch, where: str, first_row: int) -> tuple[pa.Array, tuple[int, ...]]:
        """All values of the column in one plain array without nulls, and the shape of one row.

        Raises `NullFeature` for a null at any level and `ColumnError` for a list of another length, both with the row.
        """
        array = batch.column(self.name)
        if array.type != self.type:
            raise ColumnError(
                f"Column '{self.name}'{_in(where)} has another type than the job was planned with",
                expected=str(self.type),
                found=str(array.type),
                cure="Write every input file with the same schema.",
            )
        dims: tuple[int, ...] = ()
        for level in self.levels:
            self._refuse_nulls(array, dims, where, first_row)
            try:
                array, opened = level.open(array)
            except UnequalListError as error:
                row = first_row + error.index // _product(dims)
                raise ColumnError(
                    f"Column '{self.name}'{_in(where)} has a list of another length in row {row}",
                    expected=error.wanted,
                    found=f"{error.length} values",
                    cure="Make the lists equally long before predicting.",
                ) from None
            dims += opened
        array = self.leaf.plain(array)
        self._refuse_nulls(array, dims, where, first_row)
        return array, dims

    def _refuse_nulls(self, array: pa.Array, dims: tuple[int, ...], where: str, first_row: int) -> None:
        if array.null_count:
            row = first_row + pc.index(array.is_null(), True).as_py() // _product(dims)
            raise NullFeature(
                f"Column '{self.name}'{_in(where)} is null in row {row}",
                expected="a value in every row: it is a feature of the model",
                found=f"{array.null_count} null{'s' * (array.null_count > 1)} in this batch",
                cure="Fill or drop these rows before predicting.",
            )


def column_of(name: str, kind: pa.DataType) -> Column | None:
    """The handlers for a column of that type; None where no tensor can hold it."""
    levels: list[Level] = []
    at = kind
    while True:
        if pa.types.is_fixed_size_list(at):
            levels.append(FixedLists((at.list_size,)))
        elif pa.types.is_list(at) or pa.types.is_large_list(at):
            levels.append(EqualLists((None,)))
        elif isinstance(at, pa.FixedShapeTensorType):
            if at.permutation is not None and at.permutation != sorted(at.permutation):
                return None
            levels.append(FixedLists(tuple(at.shape)))
        else:
            leaf = _leaf(at)
            return Column(name, kind, tuple(levels), leaf) if leaf else None
        at = at.value_type


def _leaf(kind: pa.DataType) -> Numbers | Bits | Bytes | Encoded | None:
    if pa.types.is_boolean(kind):
        return Bits()
    if pa.types.is_integer(kind):
        return Numbers(str(kind))
    if pa.types.is_floating(kind):
        return Numbers(f"float{kind.bit_width}")
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return Bytes("int32")
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return Bytes("int64")
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return Encoded(pa.large_binary(), Bytes("int64"))
    if pa.types.is_dictionary(kind):
        leaf = _leaf(kind.value_type)
        return Encoded(kind.value_type, leaf) if isinstance(leaf, Numbers | Bits | Bytes) else None
    return None


_NONE = np.empty(0, np.uint8)


def _view(array: pa.Array, buffer: int, dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    """`count` values of one of the array's buffers from the array's own offset on; keeps the buffer alive."""
    if not len(array):
        return np.empty(count, dtype)
    return np.frombuffer(array.buffers()[buffer], dtype, count, array.offset * dtype.itemsize)


def _product(dims: tuple[int, ...]) -> int:
    return int(np.prod(dims, dtype=np.int64)) if dims else 1


def _in(where: str) -> str:
    return f" of {where}" if where else ""
