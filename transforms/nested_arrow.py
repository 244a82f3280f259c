"""Members of Arrow's arrays and types that exist only for some kinds, and buffers: pyarrow's stubs know neither of them where
the kind is found out while the program runs. Whoever calls these has asked for the kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa


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


def map_of(key: pa.Field[Any], item: pa.Field[Any], keys_sorted: bool) -> pa.DataType:
    members: Any = (key, item)
    return pa.map_(*members, keys_sorted=keys_sorted)  # type: ignore[call-overload]  # the stubs take no fields


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
