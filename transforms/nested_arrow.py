"""Members of Arrow's arrays and types that exist only for some kinds, and buffers: pyarrow's stubs know neither of them where
the kind is found out while the program runs. Whoever calls these has asked for the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

TEXTS = (pa.string(), pa.large_string(), pa.string_view())
BINARIES = (pa.binary(), pa.large_binary(), pa.binary_view())


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of a list's or a dictionary's values."""
    some: Any = kind
    return some.value_type


def value_field(kind: pa.DataType) -> pa.Field[Any]:
    """The field of a list's values."""
    some: Any = kind
    return some.value_field


def list_size(kind: pa.DataType) -> int:
    """The size of a fixed-size list."""
    some: Any = kind
    return some.list_size


def child(lists: pa.Array[Any]) -> pa.Array[Any]:
    """All values that the lists' offsets count in, whether a list holds them or not."""
    some: Any = lists
    return some.values


def flat(lists: pa.Array[Any]) -> pa.Array[Any]:
    """The values that lists hold which are not null."""
    some: Any = lists
    return some.flatten()


def members(structs: pa.Array[Any]) -> list[pa.Array[Any]]:
    """The members of structs; each is null where its struct is."""
    some: Any = structs
    return some.flatten()


def lengths(lists: pa.Array[Any]) -> pa.Array[Any]:
    some: Any = lists
    return some.value_lengths()


def storage(extension: pa.Array[Any]) -> pa.Array[Any]:
    some: Any = extension
    return some.storage


def decoded(dictionary: pa.Array[Any]) -> pa.Array[Any]:
    some: Any = dictionary
    return some.dictionary_decode()


def is_list(kind: pa.DataType) -> bool:
    """Lists of any length."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_any_list(kind: pa.DataType) -> bool:
    """Lists of any length, or of one size."""
    return is_list(kind) or pa.types.is_fixed_size_list(kind)


def with_fields(kind: pa.DataType, changed: Callable[[pa.Field[Any]], pa.Field[Any]]) -> pa.DataType:
    """The type with the members of its structs, or the values of its lists or maps, as `changed` gives them, in their order. Of
    another kind of type it is the very same.
    """
    some: Any = kind
    if pa.types.is_struct(kind):
        return pa.struct([changed(member) for member in some])
    if pa.types.is_map(kind):
        members: Any = (changed(some.key_field), changed(some.item_field))
        return pa.map_(*members, keys_sorted=some.keys_sorted)  # type: ignore[call-overload]  # the stubs take no fields
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(changed(some.value_field), some.list_size)
    if is_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(changed(some.value_field))
    return kind


def python_file(lends: Any, mode: Literal["r", "w"]) -> pa.PythonFile:
    """Whatever reads or writes as a file does."""
    return pa.PythonFile(lends, mode=mode)


def repeated(value: Any, kind: pa.DataType, rows: int) -> pa.Array[Any]:
    scalar: Any = pa.scalar(value, kind)
    return pa.repeat(scalar, rows)


def buffer_of(values: Any) -> pa.Buffer:
    """The memory of any object that lends it: an array of NumPy, a tensor."""
    return pa.py_buffer(values)


def numbers_in(buffer: pa.Buffer | None, dtype: np.dtype[Any], count: int = -1, start: int = 0) -> np.ndarray[Any, Any]:
    """`count` numbers from the byte `start` on, in the buffer's own memory, which they keep alive."""
    some: Any = buffer
    return np.frombuffer(some, dtype, count, start)


def one_batch(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    arrow: Any = pa
    return arrow.concat_batches(batches)


def schema_of(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema(columns)


def read_schema(serialized: bytes) -> pa.Schema:
    some: Any = pa.BufferReader(serialized)
    return pa.ipc.read_schema(some)
