"""One handler per kind of Arrow column: what it holds, and how its memory becomes a tensor.

A column is some levels of lists around a leaf. Which handlers serve it is decided from its type alone, before any data;
the handlers then work on whole batches, never on a row. Layouts: https://arrow.apache.org/docs/format/Columnar.html
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.errors import ColumnError, DataError, NullFeature
from transforms.models.dlpack import to_tensor

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, slots=True)
class Leaf(ABC):
    """The innermost values. `dtype` is TensorFlow's name for what `tensor` gives.

    `decoded` is the type that Arrow casts the array to before it is read: of dictionaries, views and fixed widths.
    """

    dtype: str
    decoded: pa.DataType | None = None

    def plain(self, array: pa.Array) -> pa.Array:
        """The array as `tensor` reads it; nulls of a dictionary come to light only here."""
        return array if self.decoded is None else array.cast(self.decoded)

    @abstractmethod
    def tensor(self, array: pa.Array, shape: tuple[int, ...]) -> tf.Tensor:
        """The plain array, without nulls and of as many values as `shape` has, row-major."""


@dataclass(frozen=True, slots=True)
class Numbers(Leaf):
    """Integers and floats: the tensor is Arrow's own memory where that is aligned."""

    def numpy(self, array: pa.Array) -> np.ndarray[Any, Any]:
        return _view(array, np.dtype(self.dtype), len(array))

    def tensor(self, array: pa.Array, shape: tuple[int, ...]) -> tf.Tensor:
        return to_tensor(self.numpy(array).reshape(shape))


@dataclass(frozen=True, slots=True)
class Bits(Numbers):
    """Booleans: eight to a byte in Arrow, least significant first; a byte each in TensorFlow."""

    def numpy(self, array: pa.Array) -> np.ndarray[Any, Any]:
        if not len(array):
            return np.empty(0, np.bool_)
        first, skip = divmod(array.offset, 8)
        packed = np.frombuffer(array.buffers()[1], np.uint8, (skip + len(array) + 7) // 8, first)
        return np.unpackbits(packed, count=skip + len(array), bitorder="little")[skip:].view(np.bool_)


@dataclass(frozen=True, slots=True)
class Bytes(Leaf):
    """Strings and binary: `Substr` cuts the column's one blob into TensorFlow strings, so that no row is an object."""

    def tensor(self, array: pa.Array, shape: tuple[int, ...]) -> tf.Tensor:
        import tensorflow as tf

        if not len(array):
            return tf.zeros(shape, tf.string)
        offsets = _offsets(array)
        first, data = int(offsets[0]), array.buffers()[2]
        blob = data.slice(first, int(offsets[-1]) - first).to_pybytes() if data is not None else b""
        starts = offsets[:-1] - first if first else offsets[:-1]
        # A list of one goes straight into a TensorFlow string; a bare bytes object takes a path 80 times slower.
        blobs, lengths = tf.constant([blob]), np.diff(offsets)
        values = tf.raw_ops.Substr(input=blobs, pos=to_tensor(starts), len=to_tensor(lengths), unit="BYTE")
        return values if shape == (len(array),) else tf.reshape(values, shape)


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
        offsets = _offsets(array)
        lengths = np.diff(offsets)
        length = int(lengths[0]) if wanted is None else wanted
        wrong = lengths != length
        if wrong.any():
            at = int(wrong.argmax())
            raise UnequalListError(
                at,
                int(lengths[at]),
                f"{length} values" if wanted is not None else f"{length} values, as in the first list",
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
    leaf: Leaf

    @property
    def dims(self) -> tuple[int | None, ...]:
        """The shape of one row; () for a scalar, None for a length that only the data knows."""
        return tuple(dim for level in self.levels for dim in level.dims)

    def open(self, batch: pa.RecordBatch, where: str, first_row: int) -> tuple[pa.Array, tuple[int, ...]]:
        """All values of the column in one plain array without nulls, and the shape of one row.

        Raises `NullFeature` for a null at any level and `ColumnError` for a list of another length, both with the row.
        """
        array = batch.column(self.name)
        if array.type != self.type and not self._reads(array.type):
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

    def _reads(self, kind: pa.DataType) -> bool:
        """Whether the handlers serve that type too: files differ in what they call list items and whether these may be
        null, and pyarrow 25 forgets both when it pickles a fixed-size list's type.
        """
        other = column_of(self.name, kind)
        if other is None or other.leaf != self.leaf or len(other.levels) != len(self.levels):
            return False
        pairs = zip(self.levels, other.levels, strict=True)
        return all(type(a) is type(b) and (isinstance(a, EqualLists) or a.dims == b.dims) for a, b in pairs)

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


def _leaf(kind: pa.DataType) -> Leaf | None:
    if pa.types.is_boolean(kind):
        return Bits("bool")
    if pa.types.is_integer(kind):
        return Numbers(str(kind))
    if pa.types.is_floating(kind):
        return Numbers(f"float{kind.bit_width}")
    if kind in _BYTES:
        return Bytes("string")
    if kind in _VIEWS or pa.types.is_fixed_size_binary(kind):
        return Bytes("string", decoded=pa.large_binary())
    # Arrow 25 cannot decode a dictionary of views, and Parquet gives none.
    if pa.types.is_dictionary(kind) and kind.value_type not in _VIEWS:
        leaf = _leaf(kind.value_type)
        return leaf and replace(leaf, decoded=leaf.decoded or kind.value_type)
    return None


_LARGE = (pa.large_string(), pa.large_binary())
_VIEWS = (pa.string_view(), pa.binary_view())
_BYTES = (pa.string(), pa.binary(), *_LARGE)
_ARROW = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "bfloat16": pa.float32(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.binary(),
}


def arrow_type(dtype: str, inner: tuple[int | None, ...]) -> pa.DataType | None:
    """The type of a column whose rows have the shape `inner`; None where Arrow has nothing for the dtype."""
    kind = _ARROW.get(dtype)
    if kind is None:
        return None
    if len(inner) > 1 and None not in inner and dtype != "string":
        return pa.fixed_shape_tensor(kind, inner)
    for dim in reversed(inner):
        kind = pa.list_(pa.field("element", kind, nullable=False), -1 if dim is None else dim)
    return kind


def leaf_array(tensor: tf.Tensor, count: int) -> pa.Array:
    """All `count` values of the tensor, row-major, in its own memory (kept alive) except for bool and string."""
    import tensorflow as tf

    dtype = tensor.dtype.name
    if dtype == "string":
        flat = tensor if tensor.shape.rank == 1 else tf.reshape(tensor, [-1])
        joined = tf.raw_ops.ReduceJoin(inputs=flat, reduction_indices=[0])
        data = tf.raw_ops.DecodeRaw(bytes=joined, out_type=tf.uint8)
        _refuse_large(data.shape[0], "bytes of strings")
        offsets = np.zeros(count + 1, np.int32)
        np.cumsum(memoryview(tf.raw_ops.StringLength(input=flat, unit="BYTE")), out=offsets[1:])
        return pa.Array.from_buffers(_ARROW[dtype], count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    if dtype == "bool":
        bits = np.packbits(np.asarray(memoryview(tensor)).reshape(-1), bitorder="little")
        return pa.Array.from_buffers(_ARROW[dtype], count, [None, pa.py_buffer(bits)])
    if dtype == "bfloat16":
        tensor = tf.cast(tensor, tf.float32)
    # The tensor's buffer protocol lends its memory; numpy() would copy it.
    return pa.Array.from_buffers(_ARROW[dtype], count, [None, pa.py_buffer(tensor)])


def nested(kind: pa.DataType, values: pa.Array, shape: tuple[int, ...]) -> pa.Array:
    """The values as an array of `shape[0]` rows of type `kind`, which is `arrow_type`'s for `shape[1:]`."""
    if isinstance(kind, pa.FixedShapeTensorType):
        storage = pa.Array.from_buffers(kind.storage_type, shape[0], [None], children=[values])
        return pa.ExtensionArray.from_storage(kind, storage)
    if len(shape) == 1:
        return values
    child = nested(kind.value_type, values, (shape[0] * shape[1], *shape[2:]))
    if pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, shape[0], [None], children=[child])
    _refuse_large(shape[0] * shape[1], "values in lists")
    offsets = np.arange(shape[0] + 1, dtype=np.int32) * np.int32(shape[1])
    return pa.Array.from_buffers(kind, shape[0], [None, pa.py_buffer(offsets)], children=[child])


def _refuse_large(size: int, what: str) -> None:
    if size > np.iinfo(np.int32).max:
        raise DataError(
            "The predictions of one batch are too large for a column",
            expected=f"at most {np.iinfo(np.int32).max} {what}",
            found=str(size),
            cure="Choose a smaller --batch_size.",
        )


def _view(array: pa.Array, dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    """`count` values of the array's second buffer from the array's own offset on; keeps the buffer alive."""
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, count, array.offset * dtype.itemsize)


def _offsets(array: pa.Array) -> np.ndarray[Any, Any]:
    """Where each list or string of an array that is not empty begins in its child or blob, and where the last ends."""
    large = array.type in _LARGE or pa.types.is_large_list(array.type)
    return _view(array, np.dtype(np.int64 if large else np.int32), len(array) + 1)


def _product(dims: tuple[int, ...]) -> int:
    return int(np.prod(dims, dtype=np.int64)) if dims else 1


def _in(where: str) -> str:
    return f" of {where}" if where else ""
