"""Batches of some columns of some row groups of a file, decoded after their pages have been checked."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..nested_arrow import python_file
from ..shards.shard import Shard
from .arrow_types import is_dictionary_of_texts
from .chunks import Chunks, GroupChunks
from .equal_lists import EqualLists, ListLeaf, OtherPages, list_leaves
from .footer import TIMES, ParsedFooter
from .guard import BATCH_BYTES, PADDING, GuardedFile, PageGuard, TooManyRows
from .loaded_pages import LoadedPages
from .row_groups import GroupsInMemory

# A column chunk is read through a window of this many bytes: a row group of any size costs the same memory. A chunk that is no
# longer is read at once, and so are a row group's chunks of no more than that together, since Arrow copies what a window holds
# under the interpreter's lock.
_READ_WINDOW, _WHOLE_CHUNKS = 1 << 20, 8 << 20
# A row group of chunks that are small on average, and no more than this together, is read at once: a call of Python for each
# costs more than new memory does for so many bytes.
_SMALL_CHUNK, _MANY_CHUNKS = 64 << 10, 64 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
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
    def of(cls, parsed: ParsedFooter, shard: Shard, columns: Sequence[str]) -> Wanted:
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


def decoded_batches(wanted: Wanted, opened: Any, batch_rows: int) -> Iterator[pa.RecordBatch]:
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


def _checked(wanted: Wanted, opened: Any, rows: int) -> Iterator[pa.RecordBatch]:
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


def _counts(wanted: Wanted, rows: int) -> Iterator[tuple[None, int]]:
    left = sum(wanted.parsed.metadata.row_group(group).num_rows for group in wanted.row_groups)
    while left > 0:
        yield None, min(left, rows)
        left -= rows


def _by_arrow(
    wanted: Wanted, columns: Sequence[str], chunks: Chunks, opened: Any, guard: PageGuard, rows: int
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


def _batches(file: pq.ParquetFile, wanted: Wanted, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
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
