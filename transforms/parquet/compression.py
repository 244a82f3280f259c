"""The codec of each column of a file that is written: zstd, but none where it saves too little.

Scores and embeddings are as good as random in most of their bits. Compressing them takes more time than writing them, at every
write and every read, and makes them a tenth smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ..nested_arrow import flat, is_any_list, storage, value_type

_MOST = 0.85
# Of each batch of the first row group, as bytes: its first values stand for the others.
_SAMPLE_BYTES = 16 << 10


def codecs(schema: pa.Schema, first: pa.Table | None) -> dict[str, Any]:
    """By path of a Parquet column, as `pyarrow.parquet.ParquetWriter` takes it, decided by the first row group."""
    chosen = dict[str, Any]()
    for field in schema:
        paths = list(_paths(field.name, field.type))
        as_it_is = first is not None and len(paths) == 1 and _saves_little(first.column(field.name))
        chosen |= dict.fromkeys(paths, "none" if as_it_is else "zstd")
    return chosen


def _paths(path: str, kind: pa.DataType) -> Iterator[str]:
    if isinstance(kind, pa.BaseExtensionType):
        yield from _paths(path, kind.storage_type)
    elif pa.types.is_dictionary(kind):
        yield from _paths(path, value_type(kind))
    elif pa.types.is_map(kind):
        yield from _paths(f"{path}.key_value.key", kind.key_type)
        yield from _paths(f"{path}.key_value.value", kind.item_type)
    elif pa.types.is_struct(kind):
        for member in kind:
            yield from _paths(f"{path}.{member.name}", member.type)
    elif is_any_list(kind):
        yield from _paths(f"{path}.list.element", value_type(kind))
    else:
        yield path


def _saves_little(column: pa.ChunkedArray[Any]) -> bool:
    """Only floating-point numbers are looked at, in lists or not."""
    codec, before, after = pa.Codec("zstd"), 0, 0
    for array in column.chunks:
        if isinstance(array, pa.ExtensionArray):
            array = storage(array)
        while is_any_list(array.type):
            array = flat(array)
        if not pa.types.is_floating(array.type):
            return False
        width = array.type.bit_width // 8
        some = array.slice(0, _SAMPLE_BYTES // width).drop_null()  # what is under a null may be anything
        if len(some) and (values := some.buffers()[1]) is not None:
            sample = values.slice(some.offset * width, len(some) * width)
            before += sample.size
            after += len(codec.compress(sample, asbytes=True))
    return after > before * _MOST
