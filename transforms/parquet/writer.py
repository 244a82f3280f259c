"""A stream of record batches as one committed file; memory is bounded by the row group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ColumnError, InvalidRequest
from ..nested_arrow import list_size, python_file
from ..storage.store import ObjectRef, Store, Writer
from .compression import codecs

# Arrow gathers what it writes up to this much before Python sees it.
_WRITE_BYTES = 1 << 20
# A row group is encoded whole, in several copies: large ones make the peak grow with the shard.
_ROW_GROUP_BYTES = 4 << 20


def write_batches(
    store: Store,
    uri: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    key_values: dict[str, str],
    at_end: Callable[[int], dict[str, str]] = lambda _: {},
) -> tuple[ObjectRef, int]:
    """Writes one file, whole or not at all; returns it and its rows.

    `at_end` is called with the rows written, before the footer is, and adds to the file's key values.
    Its CRC-32C is that of the bytes as they were written, whether the store keeps one or not.
    Raises `AlreadyExists` where an object of that name exists. An exception from `batches` leaves nothing behind.
    """
    rows = 0
    # A dictionary may save much in these columns; for scores it costs time and saves nothing. The stubs take no names.
    repetitive: Any = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_dictionary(f.type)]
    with _Summed(store.create(uri)) as sink:
        gathered = pa.BufferedOutputStream(python_file(sink, "w"), _WRITE_BYTES)
        groups = _row_groups(schema, batches)
        group = next(groups, None)
        with (
            pq.ParquetWriter(  # closing it writes a footer even after an exception, which is invisible without commit()
                gathered,
                schema.with_metadata(key_values),
                compression=codecs(schema, group),
                use_dictionary=repetitive,
                write_page_checksum=True,
            ) as writer
        ):
            while group is not None:
                writer.write_table(group)
                rows += group.num_rows
                group = None  # its memory is for the next
                group = next(groups, None)
            if more := at_end(rows):
                writer.add_key_value_metadata(more)
        gathered.flush()
        return sink.commit(), rows


def _row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    row_bytes = fixed_row_bytes(schema)
    held, held_bytes = list[pa.RecordBatch](), 0.0
    for batch in batches:
        held.append(batch)
        held_bytes += batch.nbytes if row_bytes is None else batch.num_rows * row_bytes
        if held_bytes >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(held, schema)
            del batch
            held, held_bytes = [], 0.0
            pa.default_memory_pool().release_unused()
    if held:
        yield pa.Table.from_batches(held, schema)


def check_writable(schema: pa.Schema, whose: str) -> None:
    """Raises `InvalidRequest` where `whose` columns make no Parquet file that can be read back."""
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    wrong = "no column" if not schema.names else f"two columns named {twice[0]!r}" if twice else ""
    if wrong or (wrong := ": ".join(_unwritable(schema))):
        raise InvalidRequest(
            f"The columns that {whose} gives cannot be written",
            expected="one column or more, each of its own name and of a type that Parquet holds",
            found=wrong,
            cure="Choose another --signature, or export one without this output"
            if whose == "the model"
            else "Fix the function, or leave such columns out",
        )


def check_kept(schema: pa.Schema) -> None:
    """Raises `ColumnError` where a column read from Parquet cannot be written there again, as a struct of no members."""
    if wrong := _unwritable(schema):
        raise ColumnError(
            f"The kept column {wrong[0]!r} cannot be written",
            expected="a column of a type that Arrow writes to Parquet",
            found=wrong[1],
            cure="Leave it out: name the other columns that you want in --keep",
        )


def _unwritable(schema: pa.Schema) -> tuple[str, str] | tuple[()]:
    """A column that makes no Parquet file that can be read back, and why; of each type the first column is tried."""
    for kind, name in {field.type: field.name for field in reversed(list(schema))}.items():
        parts = list(_within(pa.field(name, kind)))
        try:
            if any(pa.types.is_fixed_size_list(part.type) and not list_size(part.type) for part in parts):
                raise pa.ArrowInvalid("lists of no values cannot be read back")
            rows = (
                1 if all(part.nullable for part in parts) else 0
            )  # a null where one is required is none of the type's
            pq.write_table(pa.table([pa.nulls(rows, kind)], [name]), pa.BufferOutputStream())
        except (pa.ArrowException, OSError) as error:
            return name, f"{kind}: {error}"
    return ()


def _within(field: pa.Field[Any]) -> Iterator[pa.Field[Any]]:
    """The field and all in it, at any depth; extension types as they are stored."""
    kind = field.type
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    yield field.with_type(kind)
    for i in range(kind.num_fields):
        yield from _within(kind.field(i))


def fixed_row_bytes(schema: pa.Schema) -> float | None:
    """Bytes of a row in memory, validity aside; None where rows vary. Asking each batch hands the interpreter's lock over."""

    def bits(kind: pa.DataType) -> int:
        if isinstance(kind, pa.BaseExtensionType):
            return bits(kind.storage_type)
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size) * bits(kind.value_type)
        if pa.types.is_dictionary(kind):
            raise ValueError("its values are not counted")
        return int(kind.bit_width)

    try:
        return sum(bits(field.type) for field in schema) / 8
    except ValueError:
        return None


class _Summed(Writer):
    """Computes the checksum of what it passes on. Once it is committed or aborted it passes on nothing: Arrow writes the data
    that it has gathered even when it is thrown away.
    """

    closed = False  # for Arrow, which then closes it without an error

    def __init__(self, sink: Writer) -> None:
        self._sink, self._crc32c, self._closed = sink, 0, False

    def write(self, data: Any) -> int:
        if self._closed:
            return len(data)
        self._crc32c = crc32c.crc32c(data, self._crc32c)
        return self._sink.write(data)

    def tell(self) -> int:
        return self._sink.tell()

    def commit(self) -> ObjectRef:
        return replace(self._sink.commit(), crc32c=self._crc32c)

    def abort(self) -> None:
        self._closed = True
        self._sink.abort()
