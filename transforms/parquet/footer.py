"""Footers: what one holds, checked before Arrow believes it, and parsed once for each file and process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import NotParquet
from ..image_names import cure_of_images
from ..shards.deleted_rows import stored_object
from ..storage.bounded_cache import Recent
from ..storage.store import ObjectRef, Store
from .arrow_types import StoredColumns, depth
from .chunks import Chunks, GroupChunks
from .column_chunks import ENCRYPTED
from .footer_thrift import (
    RowGroups,
    check_nesting,
    codecs_and_nulls,
    index_row_groups,
    malformed,
    nested_too_deep,
    refused,
    schema_of,
)
from .instants import with_instants
from .layouts import Integers
from .thrift import MOST_NESTED, Malformed

# The first read, of a file's end: few footers are longer.
_FOOTER_READ = 256 << 10
MOST_FOOTER_BYTES = 256 << 20
# The longest list in a footer that Arrow may read unchecked: a schema of so many elements cannot end the process.
_FEW_MEMBERS = 10_000
# Arrow makes up to 300 times its size of a footer; of a longer one than this it may only be what an honest one would be.
_UNSEEN_BYTES = 256 << 10
# An honest footer takes ten times its size in memory, parsed; so much is kept of those read lately.
_KEPT_BYTES, _PARSED = 64 << 20, 12
# The unit for INT96, which Spark writes: microseconds. In nanoseconds, Arrow's own choice, years before 1677 and after 2262
# would change.
TIMES = "us"


@dataclass(slots=True)
class ParsedFooter:
    """The footer of one version of one file. `raw` is the footer's bytes."""

    uri: str
    size: int
    raw: bytes
    metadata: pq.FileMetaData
    columns: StoredColumns
    by_parquet_mr: bool
    _groups: RowGroups | None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def chunks(self, row_groups: tuple[int, int], columns: Sequence[int], repeated: Collection[int]) -> Chunks:
        """The chunks of these columns (leaves, by number). Raises `NotParquet` where one leaves the file, or two overlap."""
        starts, lengths, values, _ = (each[:, columns] for each in self._chunks_of(range(*row_groups)))
        if (sealed := values == ENCRYPTED).any():
            raise self._encrypted(columns[int(sealed.any(axis=0).argmax())])
        there = (values != 0) & (lengths != 0)
        if (outside := there & ((starts < 0) | (lengths < 0) | (lengths > self.size - starts))).any():
            start, length = int(starts[outside][0]), int(lengths[outside][0])
            raise refused(self.uri, "column chunk", f"bytes from 0 to {self.size}", f"{length} bytes from {start} on")
        empty = set(zip(starts[~there].tolist(), lengths[~there].tolist(), strict=True))
        ends, long = starts + lengths, np.array([column in repeated for column in columns], np.bool_)
        self._check_apart(starts[there], ends[there])
        groups, numbers = [], np.array(columns, np.int64)
        for i in range(len(starts)):
            order = np.flatnonzero(there[i])
            order = order[np.argsort(starts[i][order], kind="stable")]
            groups.append(GroupChunks(starts[i][order], ends[i][order], values[i][order], long[order], numbers[order]))
        return Chunks(groups, empty)

    def _check_apart(self, starts: Integers, ends: Integers) -> None:
        order = np.argsort(starts, kind="stable")
        if (overlap := ends[order][:-1] > starts[order][1:]).any():
            found = f"byte {starts[order][1:][overlap][0]}, which is another's too"
            raise refused(self.uri, "column chunk", "bytes of its own", found)

    def unpacked(self, row_group: int, columns: Sequence[int]) -> int:
        """Bytes that these columns' chunks decompress to, as far as the footer records it; at least those that they take up."""
        _, packed, _, unpacked = self._chunks_of(range(row_group, row_group + 1))
        return sum(np.maximum(np.maximum(packed, unpacked)[0, columns], 0).tolist())

    def codecs_and_nulls(self, row_group: int, columns: Collection[int]) -> dict[int, tuple[int, int | None]]:
        """The number of its codec, and how many nulls, in each of these columns (leaves, by number) of a row group; None where
        the footer records no nulls. Lists that are empty may count as one.
        """
        return codecs_and_nulls(self.uri, self.raw, self._index_with(row_group).at[row_group], columns)

    def null_counts(self, row_group: int, columns: Collection[int]) -> dict[int, int]:
        """Nulls in each of these columns of a row group, as far as the footer records it."""
        found = self.codecs_and_nulls(row_group, columns)
        return {column: nulls for column, (_, nulls) in found.items() if nulls is not None}

    def check_plain(self, columns: Collection[str]) -> None:
        """Raises `NotParquet` where one of these columns is encrypted in the first row group, as it is in all; the
        footer may be a plain one all the same.
        """
        if not self.metadata.num_row_groups:
            return
        (_, _, values, _), names = self._chunks_of(range(1)), frozenset(columns)
        for leaf, (name, _) in enumerate(self.columns.leaves):
            if name in names and values[0, leaf] == ENCRYPTED:
                raise self._encrypted(leaf)

    def _encrypted(self, leaf: int) -> NotParquet:
        return encrypted(self.uri, f"column {self.columns.leaves[leaf][0]!r} with a key of its own")

    def _chunks_of(self, row_groups: range) -> tuple[Integers, Integers, Integers, Integers]:
        """By row group and column; see `RowGroups.chunks`."""
        index, leaves = self._index_with(max(row_groups, default=-1)), len(self.columns.leaves)
        for row_group in row_groups:
            if (count := index.count(row_group)) != leaves:
                raise refused(self.uri, "row group", "a chunk of each column", f"{count} of {leaves}")
        return index.chunks(row_groups, leaves)

    def _index_with(self, row_group: int) -> RowGroups:
        with self._lock:
            if self._groups is None:
                self._groups = index_row_groups(self.uri, self.raw)
        if row_group >= len(self._groups.at):
            raise malformed(self.uri)
        return self._groups


class Footers:
    """The footers read lately by this process, the last one at least. Safe from many threads."""

    def __init__(self, most: int) -> None:
        self._kept: Recent[ObjectRef, ParsedFooter] = Recent(most, lambda parsed: _PARSED * len(parsed.raw) + 4096)
        # Threads that read shards of one file wait for the one that parses its footer.
        self._locks = [threading.Lock() for _ in range(16)]

    def get(self, source: ObjectRef, read: Callable[[int, int], Any]) -> ParsedFooter:
        """`read` gives bytes of the file: from where, and how many. Raises `NotParquet` where it is none."""
        if (parsed := self._kept.get(source)) is not None:
            return parsed
        with self._locks[hash(source) % len(self._locks)]:
            if (parsed := self._kept.get(source)) is None:
                parsed = _read(source, read)
                self._kept.keep(source, parsed)
            return parsed


footers = Footers(_KEPT_BYTES)


def footer_of(store: Store, source: ObjectRef) -> ParsedFooter:
    """Read from the object's end, in one request unless the footer is unusually long; or as it was parsed before."""
    stored = stored_object(source)
    return footers.get(source, lambda start, length: store.read(stored, start, length))


def check_size(source: ObjectRef) -> None:
    if source.size < 12:
        raise NotParquet(
            f"{source.uri} is not a Parquet file",
            expected="a Parquet file, of 12 bytes at least",
            found=f"{source.size} bytes",
            cure=cure_of_images(source.uri) or "Leave it out of --input, or write it again",
        )


def _read(source: ObjectRef, read: Callable[[int, int], Any]) -> ParsedFooter:
    check_size(source)
    tail = bytes(read(max(0, source.size - _FOOTER_READ), min(source.size, _FOOTER_READ)))
    mark, length = tail[-4:], int.from_bytes(tail[-8:-4], "little")
    if mark == b"PARE":
        raise encrypted(source.uri, "an encrypted footer, which ends in b'PARE'")
    if mark != b"PAR1":
        raise _no_parquet(source.uri, f"its last four bytes are {mark!r}")
    if length > source.size - 12:
        raise _no_parquet(source.uri, f"a footer of {length:,} bytes in a file of {source.size:,}")
    if length > MOST_FOOTER_BYTES:
        raise refused(source.uri, "footer", f"{MOST_FOOTER_BYTES:,} bytes at most", f"{length:,}")
    if len(tail) < length + 8:
        tail = bytes(read(source.size - length - 8, length + 8))
    raw = tail[-8 - length : -8]
    groups = index_row_groups(source.uri, raw) if length > _UNSEEN_BYTES else None
    metadata, columns, by = _parse(source.uri, raw, tail)
    return ParsedFooter(source.uri, source.size, raw, metadata, columns, "parquet-mr" in by.lower(), groups)


def _parse(uri: str, raw: bytes, tail: bytes) -> tuple[pq.FileMetaData, StoredColumns, str]:
    """With a bound on its lists' members, or without where it proves to be sound; and which program wrote it."""

    def parse(most: int | None) -> tuple[pq.FileMetaData, StoredColumns, str]:
        with pq.ParquetFile(
            pa.BufferReader(tail), thrift_container_size_limit=most, coerce_int96_timestamp_unit=TIMES
        ) as file:
            # Not the metadata's own, which knows no UUID or JSON that other programs than Arrow wrote.
            return file.metadata, _columns_of.get(uri, file), file.metadata.created_by

    try:
        try:
            return parse(_FEW_MEMBERS)
        except OSError as error:
            if "Exceeded size limit" not in str(error):
                raise
            check_nesting(uri, raw)
            index_row_groups(uri, raw)
            return parse(None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(uri, raw, str(error).rstrip(".")) from error


def _unreadable(uri: str, raw: bytes, found: str) -> NotParquet:
    """The error for a footer that Arrow cannot read: it is malformed, or sound but of a kind that Arrow does not know."""
    try:
        sound = schema_of(raw)[0] > 0 and "thrift" not in found
    except Malformed:
        sound = False
    if not sound:
        return _no_parquet(uri, f"{found}; its last four bytes are b'PAR1'")
    return NotParquet(
        f"{uri} has a schema that Arrow {pa.__version__} cannot read",
        expected="columns of types that Arrow knows",
        found=found,
        cure="Write that file again with other types for such columns, or leave it out of --input",
    )


def _no_parquet(uri: str, found: str) -> NotParquet:
    return NotParquet(
        f"{uri} is not a Parquet file, or is cut short",
        expected="a Parquet file, which ends in its footer and b'PAR1'",
        found=found,
        cure=cure_of_images(uri) or "Leave it out of --input, or write it again",
    )


def encrypted(uri: str, found: str) -> NotParquet:
    return NotParquet(
        f"{uri} is encrypted",
        expected="a Parquet file without encryption: headrace has no keys",
        found=found,
        cure="Write it again without encryption, or leave it out of --input",
    )


class _SameColumns:
    """Skips the checks for a file with the same schema as the file before, as most have."""

    def __init__(self) -> None:
        # And whether it may hold times: of these a schema does not tell everything.
        self._last = StoredColumns.of(pa.schema([])), False

    def get(self, uri: str, file: pq.ParquetFile) -> StoredColumns:
        found, (last, times) = file.schema_arrow, self._last
        if not times and found.equals(last.stored, check_metadata=True):
            return last
        stored = with_instants(file, found)
        if not stored.equals(last.stored, check_metadata=True):
            if max((depth(field.type) for field in stored), default=0) > MOST_NESTED:
                raise nested_too_deep(uri)
            last = StoredColumns.of(stored)
        self._last = last, stored is not found
        return last


_columns_of = _SameColumns()
