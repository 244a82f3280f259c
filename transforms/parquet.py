"""A Shard as a stream of record batches; such a stream as one committed file. Memory is bounded by the batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.errors import ColumnError, DataError, NotParquet, NullFeature
from transforms.parquet_guard import (
    BATCH_BYTES,
    FEW_MEMBERS,
    MOST_FOOTER_BYTES,
    MOST_NESTED,
    DictionaryTooLarge,
    GuardedFile,
    check_nesting,
    column_chunks,
    nested_too_deep,
    parse_footer,
)
from transforms.shard import Shard
from transforms.storage.base import ObjectRef, Store, Writer

# A column chunk is read through a window of this many bytes, so that a row group of any size costs the same memory.
_READ_WINDOW = 1 << 20
# Of a file's end, the first read: few footers are longer.
_FOOTER_READ = 256 << 10
# A row group is encoded whole, in several copies: large ones make the peak grow with the shard.
_ROW_GROUP_BYTES = 4 << 20
_T = TypeVar("_T")
_NULL_LIST = re.compile(r"lists to be of size=(?P<size>\d+) but index (?P<index>\d+) had size=0")


@dataclass(frozen=True, slots=True)
class Footer:
    """Rows and compressed bytes per row group; of the bytes each has its share by what it decompresses to."""

    schema: pa.Schema
    row_group_rows: list[int]
    row_group_bytes: list[int]
    key_values: dict[bytes, bytes]

    @property
    def rows(self) -> int:
        return sum(self.row_group_rows)


def read_footer(store: Store, source: ObjectRef) -> Footer:
    """Of the object's end, in one request where the footer is not unusually long.

    Raises `NotParquet` where the object is none, is cut short, or contradicts itself.
    """
    _check_size(source)
    tail = _read_tail(store, source)
    metadata, schema = _parse(
        source, lambda: tail[-4:], lambda members: _metadata(tail, members), lambda: pa.BufferReader(tail), len(tail)
    )
    schema = _schemas.read(source, schema)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows, unpacked = [group.num_rows for group in groups], [group.total_byte_size for group in groups]
    if min([*rows, *unpacked], default=0) < 0 or sum(rows) != metadata.num_rows:
        raise NotParquet(
            f"{source.uri} has a footer that contradicts itself",
            expected=f"row groups of {metadata.num_rows} rows in all, none of less than 0",
            found=f"{len(rows)} of {sum(rows)} rows, the least of {min(rows, default=0)}",
            cure="Leave it out of --input, or write it again",
        )
    # A column chunk's own size would be exact, but pyarrow 25 ends the process on some that are damaged.
    data_bytes, whole = max(0, source.size - metadata.serialized_size - 12), sum(unpacked) or 1
    sizes = [data_bytes * size // whole for size in unpacked]
    return Footer(schema, rows, sizes, dict(metadata.metadata or {}))


def _read_tail(store: Store, source: ObjectRef) -> bytes:
    """The footer, which its length and b"PAR1" end, and what lies before it; no more than that where the length is a lie."""
    tail = store.read(source, max(0, source.size - _FOOTER_READ), min(source.size, _FOOTER_READ))
    whole = int.from_bytes(tail[-8:-4], "little") + 8
    if tail.endswith(b"PAR1") and len(tail) < whole <= min(source.size, MOST_FOOTER_BYTES):
        tail = store.read(source, source.size - whole, whole)
    return tail


def _metadata(tail: bytes, members: int | None) -> tuple[pq.FileMetaData, pa.Schema]:
    with pq.ParquetFile(pa.BufferReader(tail), thrift_container_size_limit=members) as file:
        # Not the metadata's own, which knows no UUID or JSON that other programs than Arrow wrote.
        return file.metadata, file.schema_arrow


def read_batches(store: Store, shard: Shard, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The shard's rows in order: batch i holds its rows [i * batch_rows, (i + 1) * batch_rows); the last may hold fewer.

    Raises `ColumnError` where a column is gone, `NotParquet` where the data contradict the footer, or claim to be more than
    such bytes can hold, `DataError` where a batch does not fit into memory.
    """
    constant = dict(shard.partitions)
    stored = [name for name in columns if name not in constant]
    with _open(store, shard.source) as (file, guard, schema):
        if missing := sorted(set(stored) - set(schema.names)):
            raise ColumnError(
                f"{shard.source.uri} lacks the column {missing[0]!r}",
                expected=f"columns {', '.join(columns)}",
                found=f"columns {', '.join(schema.names)}",
                cure="Leave this file out of --input, or write it again with that column",
            )
        schema = pa.schema([field for field in schema if field.name in stored])
        left, decoded = shard.rows, 0

        def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            nonlocal decoded
            for batch in batches:
                decoded += batch.num_rows
                yield batch

        try:
            for batch in _full(count(_decoded(file, guard, shard, stored, batch_rows)), shard.skip, batch_rows):
                part = batch if batch.num_rows <= left else batch.slice(0, left)
                left -= part.num_rows
                yield _with_constants(_cast(part, schema), columns, constant)
                if not left:
                    return
        except MemoryError as error:
            raise _too_large(shard, batch_rows, str(error) or "no memory left") from error
        except (pa.ArrowException, OSError) as error:
            if null := _NULL_LIST.search(str(error)):
                # Arrow cannot decode a null in a fixed-size list; `index` counts from 1 in the batch that failed.
                row = shard.first_row - shard.skip + decoded + int(null["index"]) - 1
                raise _null_list(shard, schema, stored, row, null["size"]) from error
            raise NotParquet(
                f"{shard.source.uri} cannot be decoded in rows {shard.first_row} to {shard.end_row}",
                expected="Parquet data pages that fit the file's footer",
                found=str(error),
                cure="Write that file again",
            ) from error
    if left:
        raise NotParquet(
            f"{shard.source.uri} ends {left} rows early",
            expected=f"{shard.rows} rows from row {shard.first_row} on, as its footer says",
            found=f"{shard.rows - left} rows",
            cure="Write that file again",
        )


def _without_views(schema: pa.Schema) -> pa.Schema:
    """The schema with plain strings within structs: pyarrow 25 cannot write slices of views there."""
    for i, field in enumerate(schema):
        if (kind := _plain(field.type)) != field.type:
            schema = schema.set(i, field.with_type(kind))
    return schema


def _plain(kind: pa.DataType, *, in_struct: bool = False) -> pa.DataType:
    def field(of: pa.Field) -> pa.Field:
        return of.with_type(_plain(of.type, in_struct=in_struct or pa.types.is_struct(kind)))

    if in_struct and (pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)):
        return pa.string() if pa.types.is_string_view(kind) else pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field(member) for member in kind])
    if pa.types.is_map(kind):
        return pa.map_(field(kind.key_field), field(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(field(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(field(kind.value_field))
    return kind


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema.equals(schema):
        return batch
    for i, field in enumerate(batch.schema):
        if (wanted := schema.field(field.name)).type != field.type:
            batch = batch.set_column(i, wanted, batch.column(i).cast(wanted.type))
    return batch


def _decoded(
    file: pq.ParquetFile, guard: GuardedFile, shard: Shard, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Fewer rows at once where a dictionary's long values could make so many too large; `MemoryError` where they do."""
    leaves, wanted = (file.schema.column(i) for i in range(len(file.schema))), set(columns)
    read = [leaf for leaf in leaves if leaf.path.partition(".")[0] in wanted]
    text = any(leaf.physical_type == "BYTE_ARRAY" for leaf in read)
    source, rows, done = shard.source, batch_rows, 0
    chunks = column_chunks(source.uri, parse_footer(source.uri, guard, source.size), shard.row_groups, source.size)
    while True:
        guard.watch(chunks, len(read), rows if text else 0)
        passed = held = 0
        try:
            for batch in file.iter_batches(
                batch_size=rows, row_groups=list(range(*shard.row_groups)), columns=columns, use_threads=False
            ):
                fresh = batch.slice(min(done - passed, batch.num_rows)) if passed < done else batch
                if rows < batch_rows:
                    held = batch.nbytes + (held if passed % batch_rows else 0)
                    if held > BATCH_BYTES:
                        raise MemoryError(f"{held:,} bytes")
                passed += batch.num_rows
                done = max(done, passed)
                if fresh.num_rows:
                    yield fresh
            return
        except DictionaryTooLarge as error:
            rows = error.rows


def _too_large(shard: Shard, batch_rows: int, found: str) -> DataError:
    return DataError(
        f"{shard.source.uri} has rows too large for a batch between rows {shard.first_row} and {shard.end_row}",
        expected=f"{batch_rows} rows of {BATCH_BYTES:,} bytes at most",
        found=found,
        cure="Say a smaller --batch_size",
    )


def _with_constants(batch: pa.RecordBatch, columns: Sequence[str], constant: dict[str, str | None]) -> pa.RecordBatch:
    """The columns in their order; those that are the same in every row are text."""
    if not constant:
        return batch.select(columns)
    arrays = [
        pa.repeat(pa.scalar(constant[name], pa.string()), batch.num_rows) if name in constant else batch.column(name)
        for name in columns
    ]
    fields = [pa.field(name, pa.string()) if name in constant else batch.schema.field(name) for name in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, batch.schema.metadata))


def _null_list(shard: Shard, schema: pa.Schema, columns: Sequence[str], row: int, size: str) -> NullFeature:
    lists = [name for name in columns if pa.types.is_fixed_size_list(schema.field(name).type)]
    return NullFeature(
        f"{shard.source.uri} has a null in row {row} (counted from 0) of column {' or '.join(map(repr, lists))}",
        expected=f"a list of {size} values in each row",
        found="null",
        cure="Fill it or filter that row out, or keep the column out with --keep if no feature needs it",
    )


def _full(batches: Iterable[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of `rows` after the first `skip` rows: Arrow gives shorter ones where a column's dictionary changes."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        dropped = min(skip, batch.num_rows)
        skip -= dropped
        held.append(batch.slice(dropped))
        count += held[-1].num_rows
        if count >= rows:
            whole = held[0] if len(held) == 1 else pa.concat_batches(held)
            yield whole.slice(0, rows)
            held, count = [whole.slice(rows)] if count > rows else [], count - rows
    if count:
        yield pa.concat_batches(held)


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
    Raises `AlreadyExists` where an object of that name stands. An exception out of `batches` leaves nothing behind.
    """
    rows, held_bytes = 0, 0.0
    row_bytes = fixed_row_bytes(schema)
    held: list[pa.RecordBatch] = []
    with store.create(uri) as sink:
        summed = _Summed(sink)
        with pq.ParquetWriter(  # closing it writes a footer even after an exception; without commit() nobody sees that
            pa.PythonFile(summed, mode="w"),
            schema.with_metadata(key_values),
            compression="zstd",
            use_dictionary=_repetitive(schema),
            write_page_checksum=True,
        ) as writer:
            for batch in batches:
                held.append(batch)
                rows += batch.num_rows
                held_bytes += batch.nbytes if row_bytes is None else batch.num_rows * row_bytes
                if held_bytes >= _ROW_GROUP_BYTES:
                    writer.write_table(pa.Table.from_batches(held, schema))
                    held, held_bytes = [], 0.0
                    pa.default_memory_pool().release_unused()
            if held:
                writer.write_table(pa.Table.from_batches(held, schema))
            if more := at_end(rows):
                writer.add_key_value_metadata(more)
        return replace(sink.commit(), crc32c=summed.crc32c), rows


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


class _Summed:
    """What pyarrow asks of a sink; sums up what goes through."""

    closed = False

    def __init__(self, sink: Writer) -> None:
        self._sink, self.crc32c = sink, 0

    def write(self, data: Any) -> int:
        self.crc32c = crc32c.crc32c(data, self.crc32c)
        return self._sink.write(data)

    def tell(self) -> int:
        return self._sink.tell()

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        """Nothing to do: closing must never publish."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _repetitive(schema: pa.Schema) -> list[str]:
    """Columns in which a dictionary may save much; for scores it costs time and saves nothing."""
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)]


@contextmanager
def _open(store: Store, source: ObjectRef) -> Iterator[tuple[pq.ParquetFile, GuardedFile, pa.Schema]]:
    """And the schema as it is read. Closes the source too, which `ParquetFile` leaves open: a local file tells only then that
    it was rewritten.
    """
    _check_size(source)
    with closing(store.open_arrow(source)) as opened:
        guard = GuardedFile(source.uri, opened)

        def parse(members: int | None) -> pq.ParquetFile:
            return pq.ParquetFile(
                pa.PythonFile(guard, mode="r"),
                pre_buffer=False,
                buffer_size=_READ_WINDOW,
                page_checksum_verification=True,
                thrift_container_size_limit=members,
            )

        file = _parse(source, lambda: store.read(source, source.size - 4), parse, lambda: guard, source.size)
        yield file, guard, _schemas.read(source, file.schema_arrow)


def _check_size(source: ObjectRef) -> None:
    if source.size < 12:
        raise NotParquet(
            f"{source.uri} is no Parquet file",
            expected="a Parquet file, of 12 bytes at least",
            found=f"{source.size} bytes",
            cure="Leave it out of --input, or write it again",
        )


def _parse(
    source: ObjectRef, end: Callable[[], bytes], parse: Callable[[int | None], _T], opened: Callable[[], Any], size: int
) -> _T:
    """What `parse` makes of the footer, with a bound on its lists' members, or without where `opened`, of `size` bytes up to
    the file's end, proves to be sound. `end` gives the last four bytes.
    """
    try:
        try:
            return parse(FEW_MEMBERS)
        except OSError as error:
            if "Exceeded size limit" not in str(error):
                raise
            check_nesting(source.uri, parse_footer(source.uri, opened(), size))
            return parse(None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        found = f"{str(error).rstrip('.')}; its last four bytes are {end()!r}"
        raise NotParquet(
            f"{source.uri} is no Parquet file, or is cut short",
            expected="a Parquet file, which ends in its footer and b'PAR1'",
            found=found,
            cure="Leave it out of --input, or write it again",
        ) from error


class _Schemas:
    """Schemas as they are read; of a file whose schema is that of the file before, as most are, nothing is looked at again."""

    def __init__(self) -> None:
        self._last: tuple[pa.Schema, pa.Schema] = pa.schema([]), pa.schema([])

    def read(self, source: ObjectRef, stored: pa.Schema) -> pa.Schema:
        before, schema = self._last
        if not stored.equals(before, check_metadata=True):
            if max((_depth(field.type) for field in stored), default=0) > MOST_NESTED:
                raise nested_too_deep(source.uri)
            schema = _without_views(stored)
            self._last = stored, schema
        return schema


_schemas = _Schemas()


def _depth(kind: pa.DataType) -> int:
    """Of nesting, without recursion: it may be as deep as it is hostile."""
    depth, level = 0, [kind]
    while level := [one.field(i).type for one in level for i in range(one.num_fields)]:
        depth += 1
    return depth
