"""A Shard as a stream of record batches; memory is bounded by the batch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ColumnError, DataError, NotParquet, NullFeature, row_span
from ..nested_arrow import python_file, repeated
from ..shards.deleted_rows import drop_rows, stored_object, unpack_positions
from ..shards.partition_types import constant
from ..shards.shard import Shard
from ..storage.store import ObjectRef, Store
from .arrow_types import as_type, is_dictionary_of_texts
from .chunks import Chunks, GroupChunks
from .equal_lists import EqualLists, ListLeaf, OtherPages, list_leaves
from .footer import TIMES, ParsedFooter, check_size, footer_of, footers
from .guard import BATCH_BYTES, PADDING, GuardedFile, PageGuard, TooManyRows
from .loaded_pages import LoadedPages
from .row_groups import GroupsInMemory
from .whole_batches import whole_batches

# A column chunk is read through a window of this many bytes: a row group of any size costs the same memory. A chunk that is no
# longer is read at once, and so are a row group's chunks of no more than that together, since Arrow copies what a window holds
# under the interpreter's lock.
_READ_WINDOW, _WHOLE_CHUNKS = 1 << 20, 8 << 20
# A row group of chunks that are small on average, and no more than this together, is read at once: a call of Python for each
# costs more than new memory does for so many bytes.
_SMALL_CHUNK, _MANY_CHUNKS = 64 << 10, 64 << 20
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
    """The footer at the object's end, read in one request unless it is unusually long; from the cache where it was read lately.

    Raises `NotParquet` where the object is not a Parquet file, is cut short, or contradicts itself.
    """
    parsed = footer_of(store, source)
    metadata = parsed.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows, unpacked = [group.num_rows for group in groups], [group.total_byte_size for group in groups]
    if min([*rows, *unpacked], default=0) < 0 or sum(rows) != metadata.num_rows:
        raise NotParquet(
            f"{source.uri} has a footer that contradicts itself",
            expected=f"row groups of {metadata.num_rows} rows in all, none of less than 0",
            found=f"{len(rows)} of {sum(rows)} rows, the smallest of {min(rows, default=0)}",
            cure="Leave it out of --input, or write it again",
        )
    # A column chunk's own size would be exact, but pyarrow 25 ends the process on some that are damaged.
    data_bytes, total = max(0, source.size - metadata.serialized_size - 12), sum(unpacked) or 1
    sizes = [data_bytes * size // total for size in unpacked]
    return Footer(parsed.columns.schema, rows, sizes, dict(metadata.metadata or {}), unpacked)


def check_plain(store: Store, source: ObjectRef, columns: Collection[str]) -> None:
    """Raises `NotParquet` where one of these columns is encrypted; the file's footer may be a plain one all the same."""
    footer_of(store, source).check_plain(columns)


def most_row_bytes(store: Store, source: ObjectRef, footer: Footer, columns: Collection[str]) -> int:
    """Uncompressed bytes of a row of these columns, in the row group where a row has most."""
    parsed = footer_of(store, source)
    read = [number for number, (name, _) in enumerate(parsed.columns.leaves) if name in columns]
    return max(
        (-(-parsed.unpacked(group, read) // rows) for group, rows in enumerate(footer.row_group_rows) if rows),
        default=0,
    )


def read_batches(
    store: Store, shard: Shard, columns: Sequence[str], batch_rows: int, types: pa.Schema | None = None
) -> Iterator[pa.RecordBatch]:
    """The shard's rows in order: batch i holds its rows [i * batch_rows, (i + 1) * batch_rows); the last may hold fewer.
    Partition columns have their type in `types`, else they are text.

    `types` are those to give columns, where the file's own are read alike; see
    `headrace.transforms.parquet.arrow_types.read_alike`. Raises `ColumnError` where a column is missing, is there twice, or
    holds what its type in `types` cannot; `NotParquet` where the data contradict the footer, or claim to be more than
    such bytes can hold; `DataError` where a batch does not fit into memory.
    """
    constants, renamed = dict(shard.partitions), dict(shard.renamed)
    asked = {renamed.get(name, name): name for name in columns if name not in constants}
    stored = list(asked)
    with _open(store, shard.source) as (parsed, opened):
        schema = _schema_read(shard.source.uri, parsed.columns.schema, stored, columns)
        if types is not None:
            schema = pa.schema([field.with_type(types.field(asked[field.name]).type) for field in schema])
        left, decoded = shard.rows, 0

        def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            nonlocal decoded
            as_read: bool | None = None
            for batch in batches:
                decoded += batch.num_rows
                if as_read is None:  # all batches of a file are of one schema
                    as_read = batch.schema.equals(schema)
                yield batch if as_read else _cast(shard, batch, schema)

        try:
            in_order = not (constants or renamed) and schema.names == list(columns)
            batches = count(_decoded(_Wanted.of(parsed, shard, stored), opened, batch_rows))
            if shard.deleted:
                batches = drop_rows(batches, unpack_positions(shard.deleted))
            for batch in whole_batches(batches, shard.skip, batch_rows):
                part = batch if batch.num_rows <= left else batch.slice(0, left)
                left -= part.num_rows
                yield part if in_order else _with_constants(_renamed(part, asked), columns, constants, types)
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
                raise _null_list(shard, parsed.columns.schema, stored, row, null["size"]) from error
            raise NotParquet(
                f"{shard.source.uri} cannot be decoded in {row_span(shard.first_row, shard.end_row)}",
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


def _schema_read(uri: str, schema: pa.Schema, stored: Sequence[str], columns: Sequence[str]) -> pa.Schema:
    """The columns of the file's schema that are read, in the file's order."""
    wanted = set(stored)
    if missing := sorted(wanted - set(schema.names)):
        raise ColumnError(
            f"{uri} lacks the column {missing[0]!r}",
            expected=f"columns {', '.join(columns)}",
            found=f"columns {', '.join(schema.names)}",
            cure="Leave this file out of --input, or write it again with that column",
        )
    # Most often of thousands of columns all: each field taken out of a schema is made anew.
    every = len(wanted) == len(schema)
    read = schema.remove_metadata() if every else pa.schema([field for field in schema if field.name in wanted])
    if len(read) > len(wanted):
        raise repeated_columns(uri, read.names)
    return read


def _renamed(batch: pa.RecordBatch, asked: dict[str, str]) -> pa.RecordBatch:
    names = [asked.get(name, name) for name in batch.schema.names]
    return batch if names == batch.schema.names else batch.rename_columns(names)


def _cast(shard: Shard, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    # Asked for a column "a.b", Arrow gives the member b of a struct a as well, and that struct before its turn.
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            columns.append(as_type(column, field.type))
        except pa.ArrowInvalid as error:
            raise ColumnError(
                f"{shard.source.uri} has values in column {field.name!r} that the first input file's type cannot hold",
                expected=str(field.type),
                found=f"{column.type}: {error}",
                cure="Leave this file out of --input, or write it again with the same schema",
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def repeated_columns(where: str, names: Sequence[str]) -> ColumnError:
    twice = next(name for name, times in Counter(names).items() if times > 1)
    return ColumnError(
        f"{where} has several columns named {twice!r}",
        expected="a name for each column",
        found=f"columns {', '.join(names)}",
        cure="Rename all but one of them, or leave this file out of --input",
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to read from a file: these columns of these row groups, and how.

    `texts` is whether a column is a dictionary of texts, `apart` whether Arrow can read only one row group at a time. `lists`
    are columns that may be lists of numbers of one length: they are tried without Arrow first.
    """

    parsed: ParsedFooter
    columns: Sequence[str]
    row_groups: range
    chunks: Chunks
    leaves: int
    texts: bool
    apart: bool
    lists: Sequence[ListLeaf]

    @classmethod
    def of(cls, parsed: ParsedFooter, shard: Shard, columns: Sequence[str]) -> _Wanted:
        names, stored, row_groups = set(columns), parsed.columns, range(*shard.row_groups)
        read = [i for i, (name, _) in enumerate(stored.leaves) if name in names]
        by_path = any("." in name for name in stored.stored.names)
        if by_path:
            read = _leaves_as_paths(parsed.metadata, names)
        chunks = parsed.chunks(shard.row_groups, read, stored.long)
        return cls(
            parsed,
            columns,
            row_groups,
            chunks,
            len(read),
            not stored.texts.isdisjoint(read),
            not stored.apart.isdisjoint(names),
            [] if by_path else list_leaves(parsed, row_groups, read, chunks),
        )


def _leaves_as_paths(metadata: pq.FileMetaData, names: Container[str]) -> list[int]:
    """The leaves that Arrow reads for these columns: for "a.b", it also reads the member b of a struct a."""
    read = []
    for i in range(metadata.num_columns):
        parts = metadata.schema.column(i).path.split(".")
        if any(".".join(parts[:end]) in names for end in range(1, len(parts) + 1)):
            read.append(i)
    return read


def _decoded(wanted: _Wanted, opened: Any, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Fewer rows at once where a dictionary's long values could make so many too large; `MemoryError` where they do."""
    rows, done = batch_rows, 0
    while True:
        passed = held = part = 0
        try:
            for batch in _checked(wanted, opened, rows):
                fresh = batch.slice(min(done - passed, batch.num_rows)) if passed < done else batch
                if rows < batch_rows:
                    before, part = part, passed // batch_rows
                    held = _nbytes(batch) + (held if part == before else 0)
                elif wanted.texts:
                    held = _written_out(batch)
                if held > BATCH_BYTES:
                    raise MemoryError(f"{held:,} bytes")
                passed += batch.num_rows
                done = max(done, passed)
                if fresh.num_rows:
                    yield fresh
            return
        except OtherPages:
            wanted = replace(wanted, lists=())
        except TooManyRows as error:
            rows = min(error.rows, -(-rows // 2))  # few passes then fail


def _checked(wanted: _Wanted, opened: Any, rows: int) -> Iterator[pa.RecordBatch]:
    """Batches as they are decoded, each only after the guard has checked its pages. Raises `OtherPages` where a column of
    `lists` cannot be read as such.
    """

    def read_at(start: int, size: int) -> pa.Buffer:
        opened.seek(start)
        return opened.read_buffer(size)

    parsed = wanted.parsed
    padding = PADDING if parsed.by_parquet_mr else 0
    guard = PageGuard(parsed.uri, read_at, wanted.leaves, rows, padding)
    if not wanted.lists:
        yield from _by_arrow(wanted, wanted.columns, wanted.chunks, opened, guard, rows)
        return
    lists = {leaf.name: EqualLists(leaf, opened, guard) for leaf in wanted.lists}
    others = [name for name in wanted.columns if name not in lists]
    chunks = wanted.chunks.without({leaf.number for leaf in wanted.lists})
    counts = ((batch, batch.num_rows) for batch in _by_arrow(wanted, others, chunks, opened, guard, rows))
    stored = [field for field in parsed.columns.stored if field.name in wanted.columns]
    for batch, count in counts if others else _counts(wanted, rows):
        read = {name: column.take(count) for name, column in lists.items()}
        arrays, fields = [], []
        for field in stored:
            arrays.append(read[field.name] if batch is None or field.name in read else batch.column(field.name))
            fields.append(field.with_type(arrays[-1].type))
        yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _counts(wanted: _Wanted, rows: int) -> Iterator[tuple[None, int]]:
    left = sum(wanted.parsed.metadata.row_group(group).num_rows for group in wanted.row_groups)
    while left > 0:
        yield None, min(left, rows)
        left -= rows


def _by_arrow(
    wanted: _Wanted, columns: Sequence[str], chunks: Chunks, opened: Any, guard: PageGuard, rows: int
) -> Iterator[pa.RecordBatch]:
    parsed, leaves = wanted.parsed, wanted.leaves - len(wanted.lists)
    largest, small = chunks.largest, chunks.longest <= _READ_WINDOW or chunks.largest <= _WHOLE_CHUNKS
    memory: GroupsInMemory | None = None
    if largest <= min(_MANY_CHUNKS, leaves * _SMALL_CHUNK):
        with suppress(OSError):  # too few addresses
            memory = GroupsInMemory(opened, parsed.size)
    if memory is not None:
        batches = _batches(_opened(memory.file, parsed.metadata, window=0), wanted, columns, rows)
        yield from _loaded(memory, batches, wanted.row_groups, parsed.metadata, chunks.groups, guard, rows)
    else:
        file = python_file(GuardedFile(opened, parsed.size, chunks, guard), "r")
        opened_file = _opened(file, parsed.metadata, window=0 if small else _READ_WINDOW)
        yield from _batches(opened_file, wanted, columns, rows)


def _batches(file: pq.ParquetFile, wanted: _Wanted, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    groups = [[group] for group in wanted.row_groups] if wanted.apart else [list(wanted.row_groups)]
    for some in groups:
        yield from file.iter_batches(batch_size=rows, row_groups=some, columns=list(columns), use_threads=False)


def _loaded(
    memory: GroupsInMemory,
    batches: Iterator[pa.RecordBatch],
    row_groups: range,
    metadata: pq.FileMetaData,
    groups: Sequence[GroupChunks],
    guard: PageGuard,
    rows: int,
) -> Iterator[pa.RecordBatch]:
    """The batches. Each row group is in memory from when Arrow may first read it until rows of a later one came."""
    ends = list(accumulate(metadata.row_group(group).num_rows for group in row_groups))
    loaded = dropped = passed = 0
    pages = LoadedPages(guard, memory.memory)
    while True:
        while loaded < len(groups) and (not loaded or ends[loaded - 1] <= passed + rows):
            memory.load(groups[loaded], guard.padding)
            pages.check(groups[loaded])
            loaded += 1
        if (batch := next(batches, None)) is None:
            return
        passed += batch.num_rows
        yield batch
        while dropped < loaded and ends[dropped] < passed:
            memory.drop(groups[dropped])
            dropped += 1


def _nbytes(batch: pa.RecordBatch) -> int:
    """The bytes of a batch, with its dictionaries as a feature will have them."""
    return _written_out(batch) + sum(c.nbytes for c in batch.columns if not isinstance(c, pa.DictionaryArray))


def _written_out(batch: pa.RecordBatch) -> int:
    """Bytes of the text that rows have from dictionaries, where so much that it may matter."""
    written = 0
    for column in batch.columns:
        if isinstance(column, pa.DictionaryArray) and is_dictionary_of_texts(column.type):
            texts: Any = column.dictionary
            if texts.nbytes * len(column) > BATCH_BYTES:
                written += pc.sum(pc.binary_length(texts).take(column.indices)).as_py() or 0
    return written


def _too_large(shard: Shard, batch_rows: int, found: str) -> DataError:
    return DataError(
        f"{shard.source.uri} has rows too large for a batch between rows {shard.first_row} and {shard.end_row}",
        expected=f"{batch_rows} rows of {BATCH_BYTES:,} bytes at most",
        found=found,
        cure="Say a smaller --batch_size",
    )


def _with_constants(
    batch: pa.RecordBatch, columns: Sequence[str], constants: dict[str, str | None], types: pa.Schema | None
) -> pa.RecordBatch:
    """The columns in their order; those of `constants` are the same in every row."""
    if not constants:
        return batch.select(columns)
    kinds = {
        name: types.field(name).type if types is not None else pa.string() for name in constants if name in columns
    }
    arrays = [
        repeated(constant(constants[name], kinds[name]), kinds[name], batch.num_rows)
        if name in constants
        else batch.column(name)
        for name in columns
    ]
    fields = [pa.field(name, kinds[name]) if name in constants else batch.schema.field(name) for name in columns]
    metadata: Any = batch.schema.metadata
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata))


def _null_list(shard: Shard, schema: pa.Schema, columns: Sequence[str], row: int, size: str) -> NullFeature:
    lists = [name for name in columns if pa.types.is_fixed_size_list(schema.field(name).type)]
    return NullFeature(
        f"{shard.source.uri} has a null in row {row} (counted from 0) of column {' or '.join(map(repr, lists))}",
        expected=f"a list of {size} values in each row",
        found="null",
        cure="Arrow cannot read it, and --fill does not help: write the column as a list of any size, for --fill "
        "and --pad, or filter that row out; where no feature needs the column, leave it out with --keep",
    )


@contextmanager
def _open(store: Store, source: ObjectRef) -> Iterator[tuple[ParsedFooter, pa.NativeFile]]:
    """Closes the source too, which `ParquetFile` leaves open: only then does a local file report that it was rewritten."""
    check_size(source)
    with closing(store.open_arrow(stored_object(source))) as opened:

        def read(start: int, length: int) -> pa.Buffer:
            opened.seek(start)
            return opened.read_buffer(length)

        yield footers.get(source, read), opened


def _opened(file: pa.NativeFile, metadata: pq.FileMetaData, *, window: int) -> pq.ParquetFile:
    """`window=0` reads each column chunk at once."""
    return pq.ParquetFile(
        file,
        metadata=metadata,
        pre_buffer=False,
        buffer_size=window,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit=TIMES,
    )
