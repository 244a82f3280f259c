"""A Shard as a stream of record batches; memory is bounded by the batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..columns.wording import cure_of_images
from ..errors import ColumnError, DataError, NotParquet, NullFeature
from ..shards.shard import Shard
from ..storage.store import ObjectRef, Store
from .guard import (
    BATCH_BYTES,
    FEW_MEMBERS,
    MOST_FOOTER_BYTES,
    MOST_NESTED,
    DictionaryTooLarge,
    GuardedFile,
    check_nesting,
    column_chunks,
    most_packed,
    nested_too_deep,
    parse_footer,
    unpacked_chunks,
)

# A column chunk is read through a window of this many bytes, so that a row group of any size costs the same memory; at once
# where a row group's chunks are no more than this together, since Arrow copies what a window holds under the interpreter's
# lock.
_READ_WINDOW = 1 << 20
_WHOLE_CHUNKS = 8 << 20
# Of a file's end, the first read: few footers are longer.
_FOOTER_READ = 256 << 10
_T = TypeVar("_T")
# Of INT96, which Spark writes, in microseconds. As nanoseconds, Arrow's own choice, years before 1677 and after 2262 become
# others.
_TIMES = "us"
_TEXT = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_NULL_LIST = re.compile(r"lists to be of size=(?P<size>\d+) but index (?P<index>\d+) had size=0")


@dataclass(frozen=True, slots=True)
class Footer:
    """Rows, compressed bytes and uncompressed ones per row group; each has its share of the compressed bytes by the latter."""

    schema: pa.Schema
    row_group_rows: list[int]
    row_group_bytes: list[int]
    key_values: dict[bytes, bytes]
    row_group_unpacked: Sequence[int] = ()

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
    return Footer(schema, rows, sizes, dict(metadata.metadata or {}), unpacked)


def most_row_bytes(store: Store, source: ObjectRef, footer: Footer, columns: Collection[str]) -> int:
    """Uncompressed bytes of a row of these columns, in the row group where a row has most."""
    tail = _read_tail(store, source)
    groups = unpacked_chunks(parse_footer(source.uri, pa.BufferReader(tail), len(tail)))
    leaves = [one.name for one in footer.schema for _ in _leaves(one.type)]
    read = [number for number, name in enumerate(leaves) if name in columns]
    return max(
        (
            -(-sum(group[number] for number in read if number < len(group)) // rows)
            for group, rows in zip(groups, footer.row_group_rows, strict=False)
            if rows
        ),
        default=0,
    )


def _read_tail(store: Store, source: ObjectRef) -> bytes:
    """The footer, which its length and b"PAR1" end, and what lies before it; no more than that where the length is a lie."""
    tail = store.read(source, max(0, source.size - _FOOTER_READ), min(source.size, _FOOTER_READ))
    whole = int.from_bytes(tail[-8:-4], "little") + 8
    if tail.endswith(b"PAR1") and len(tail) < whole <= min(source.size, MOST_FOOTER_BYTES):
        tail = store.read(source, source.size - whole, whole)
    return tail


def _metadata(tail: bytes, members: int | None) -> tuple[pq.FileMetaData, pa.Schema]:
    with pq.ParquetFile(
        pa.BufferReader(tail), thrift_container_size_limit=members, coerce_int96_timestamp_unit=_TIMES
    ) as file:
        # Not the metadata's own, which knows no UUID or JSON that other programs than Arrow wrote.
        return file.metadata, file.schema_arrow


def read_batches(store: Store, shard: Shard, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The shard's rows in order: batch i holds its rows [i * batch_rows, (i + 1) * batch_rows); the last may hold fewer.

    Raises `ColumnError` where a column is gone, `NotParquet` where the data contradict the footer, or claim to be more than
    such bytes can hold, `DataError` where a batch does not fit into memory.
    """
    constant = dict(shard.partitions)
    stored = [name for name in columns if name not in constant]
    wanted = set(stored)
    with _open(store, shard.source) as (file, guard, schema):
        if missing := sorted(set(stored) - set(schema.names)):
            raise ColumnError(
                f"{shard.source.uri} lacks the column {missing[0]!r}",
                expected=f"columns {', '.join(columns)}",
                found=f"columns {', '.join(schema.names)}",
                cure="Leave this file out of --input, or write it again with that column",
            )
        schema = pa.schema([field for field in schema if field.name in wanted])
        left, decoded = shard.rows, 0

        def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            nonlocal decoded
            as_read: bool | None = None
            for batch in batches:
                decoded += batch.num_rows
                if as_read is None:  # all batches of a file are of one schema
                    as_read = batch.schema.equals(schema)
                yield batch if as_read else _cast(batch, schema)

        try:
            in_order = not constant and schema.names == list(columns)
            for batch in _full(count(_decoded(file, guard, shard, stored, batch_rows)), shard.skip, batch_rows):
                part = batch if batch.num_rows <= left else batch.slice(0, left)
                left -= part.num_rows
                yield part if in_order else _with_constants(part, columns, constant)
                if not left:
                    return
        except MemoryError as error:
            raise _too_large(shard, batch_rows, str(error) or "no memory left") from error
        except pa.ArrowNotImplementedError as error:
            raise ColumnError(
                f"{shard.source.uri} has columns that Arrow {pa.__version__} cannot read together",
                expected=f"columns {', '.join(stored)}, of kinds that it reads",
                found=str(error),
                cure="Leave the nested ones out with --keep, or write them with plain values",
            ) from error
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


def _as_read(schema: pa.Schema) -> pa.Schema:
    """The schema with plain strings within structs: pyarrow 25 cannot write slices of views there. And with dictionaries that
    can be joined: those of many row groups may hold more values than one group's narrow indices can name.
    """
    for i, field in enumerate(schema):
        if (kind := _plain(field.type)) != field.type:
            schema = schema.set(i, field.with_type(kind))
    return schema


def _plain(kind: pa.DataType, *, in_struct: bool = False) -> pa.DataType:
    def field(of: pa.Field) -> pa.Field:
        return of.with_type(_plain(of.type, in_struct=in_struct or pa.types.is_struct(kind)))

    if pa.types.is_dictionary(kind) and kind.index_type.bit_width < 32:
        return pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
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
    # Asked for a column "a.b", Arrow gives the member b of a struct a as well, and that struct before its turn.
    batch = batch.select(schema.names)
    for i, field in enumerate(batch.schema):
        if (wanted := schema.field(field.name)).type != field.type:
            batch = batch.set_column(i, wanted, batch.column(i).cast(wanted.type))
    return batch


def _decoded(
    file: pq.ParquetFile, guard: GuardedFile, shard: Shard, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Fewer rows at once where a dictionary's long values could make so many too large; `MemoryError` where they do."""
    wanted = set(columns)
    leaves = [field for field in file.schema_arrow for _ in _leaves(field.type)]
    assert len(leaves) == len(file.schema)
    read = [i for i, field in enumerate(leaves) if field.name in wanted]
    # A column that is a dictionary itself holds that once, however many rows name its values.
    repeated = {
        i
        for i in read
        if file.schema.column(i).physical_type == "BYTE_ARRAY" and not pa.types.is_dictionary(leaves[i].type)
    }
    groups = [list(range(*shard.row_groups))]
    if any(_nests_dictionary(field.type) for field in file.schema_arrow if field.name in wanted):
        groups = [[group] for group in groups[0]]  # Arrow 25 cannot read such a column over several at once
    source, rows, done = shard.source, batch_rows, 0
    texts = any(pa.types.is_dictionary(leaves[i].type) and leaves[i].type.value_type in _TEXT for i in read)
    footer = parse_footer(source.uri, guard, source.size)
    chunks = column_chunks(source.uri, footer, shard.row_groups, source.size, repeated)
    if most_packed(footer, shard.row_groups, read) <= _WHOLE_CHUNKS:
        file = _opened(guard, None, window=0, metadata=file.metadata)
    while True:
        guard.watch(chunks, len(read), rows)
        passed = held = part = 0
        try:
            for batch in chain.from_iterable(
                file.iter_batches(batch_size=rows, row_groups=some, columns=columns, use_threads=False)
                for some in groups
            ):
                fresh = batch.slice(min(done - passed, batch.num_rows)) if passed < done else batch
                if rows < batch_rows:
                    before, part = part, passed // batch_rows
                    held = _nbytes(batch) + (held if part == before else 0)
                elif texts:
                    held = _written_out(batch)
                if held > BATCH_BYTES:
                    raise MemoryError(f"{held:,} bytes")
                passed += batch.num_rows
                done = max(done, passed)
                if fresh.num_rows:
                    yield fresh
            return
        except DictionaryTooLarge as error:
            rows = error.rows


def _leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    """The types of a column's leaves, in the order of a Parquet schema."""
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(kind.storage_type)
    elif pa.types.is_nested(kind):
        for i in range(kind.num_fields):
            yield from _leaves(kind.field(i).type)
    else:
        yield kind


def _nests_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) and any(map(pa.types.is_dictionary, _leaves(kind)))


def _nbytes(batch: pa.RecordBatch) -> int:
    """Of a batch, its dictionaries as a feature will have them."""
    return _written_out(batch) + sum(c.nbytes for c in batch.columns if not isinstance(c, pa.DictionaryArray))


def _written_out(batch: pa.RecordBatch) -> int:
    """Bytes of the text that rows have from dictionaries, where so much that it may matter."""
    return sum(
        pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
        for column in batch.columns
        if isinstance(column, pa.DictionaryArray)
        and column.dictionary.type in _TEXT
        and column.dictionary.nbytes * len(column) > BATCH_BYTES
    )


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
        cure="Arrow cannot read it, so that --fill does not help: write the column as a list of any size, for --fill "
        "and --pad, or filter that row out; where no feature needs the column, leave it out with --keep",
    )


def _full(batches: Iterable[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of `rows` after the first `skip` rows: Arrow gives shorter ones where a column's dictionary changes."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        if batch.num_rows == rows and not skip and not held:
            yield batch
            continue
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


@contextmanager
def _open(store: Store, source: ObjectRef) -> Iterator[tuple[pq.ParquetFile, GuardedFile, pa.Schema]]:
    """And the schema as it is read. Closes the source too, which `ParquetFile` leaves open: a local file tells only then that
    it was rewritten.
    """
    _check_size(source)
    with closing(store.open_arrow(source)) as opened:
        guard = GuardedFile(source.uri, opened)
        file = _parse(
            source,
            lambda: store.read(source, source.size - 4),
            lambda members: _opened(guard, members, window=_READ_WINDOW),
            lambda: guard,
            source.size,
        )
        yield file, guard, _schemas.read(source, file.schema_arrow)


def _opened(
    guard: GuardedFile, members: int | None, *, window: int, metadata: pq.FileMetaData | None = None
) -> pq.ParquetFile:
    """`window=0` reads each column chunk at once. The footer is read where there is no `metadata` of it."""
    return pq.ParquetFile(
        pa.PythonFile(guard, mode="r"),
        metadata=metadata,
        pre_buffer=False,
        buffer_size=window,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit=_TIMES,
        thrift_container_size_limit=members,
    )


def _check_size(source: ObjectRef) -> None:
    if source.size < 12:
        raise NotParquet(
            f"{source.uri} is no Parquet file",
            expected="a Parquet file, of 12 bytes at least",
            found=f"{source.size} bytes",
            cure=cure_of_images(source.uri) or "Leave it out of --input, or write it again",
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
            cure=cure_of_images(source.uri) or "Leave it out of --input, or write it again",
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
            schema = _as_read(stored)
            self._last = stored, schema
        return schema


_schemas = _Schemas()


def _depth(kind: pa.DataType) -> int:
    """Of nesting, without recursion: it may be as deep as it is hostile."""
    depth, level = 0, [kind]
    while level := [one.field(i).type for one in level for i in range(one.num_fields)]:
        depth += 1
    return depth
