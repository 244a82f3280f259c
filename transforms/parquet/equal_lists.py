"""Column chunks of number lists that all have one length and no null: their pages are copied into batches.

Arrow decodes two levels for each value, and half of the time that reading such a column takes is theirs. Here the levels of a
page are checked as a whole. Whatever else a page may be, `OtherPages` is raised, and Arrow decodes the column.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..nested_arrow import buffer_of, list_size, numbers_in, value_type
from .chunks import Chunk, Chunks
from .footer import ParsedFooter
from .guard import BATCH_BYTES, PageGuard
from .hybrid_runs import all_equal, of_one_length, unpacked
from .thrift import I32, STRUCT, Malformed, fields, varint

_DTYPES: dict[pa.DataType, np.dtype[Any]] = {
    pa.float32(): np.dtype("<f4"),
    pa.float64(): np.dtype("<f8"),
    pa.int32(): np.dtype("<i4"),
    pa.int64(): np.dtype("<i8"),
}
# By the number that a footer has for each. pyarrow does not say how many bytes the others gave.
Codec = Literal["snappy", "zstd"]
_CODECS: dict[int, Codec | None] = {0: None, 1: "snappy", 6: "zstd"}
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PAGE = frozenset({(1, I32), (2, I32), (3, I32), (4, I32), (5, STRUCT), (7, STRUCT)})
_VALUES = frozenset({(1, I32), (2, I32), (3, I32), (4, I32)})
# A chunk of at most 8 MiB is read at once. Of a longer one, 1 MiB is read at a time, or a whole page if that is larger.
_WHOLE_CHUNK, _WINDOW = 8 << 20, 1 << 20
_HEADER_BYTES = 1 << 10
# Values of a page, in memory: honest pages have some 1 MiB of them.
_PAGE_BYTES = 64 << 20


class OtherPages(Exception):
    """The column holds other lists than these, or in another form: Arrow has to decode it."""


@dataclass(frozen=True, slots=True)
class ListLeaf:
    """The leaf of that number belongs to this top-level column of lists, all of `length` values; its level where a value is
    there, its codec, and its chunks.
    """

    number: int
    name: str
    kind: pa.DataType
    length: int
    definition: int
    codec: Codec | None
    chunks: Sequence[Chunk]


def list_leaves(parsed: ParsedFooter, row_groups: range, leaves: Sequence[int], chunks: Chunks) -> list[ListLeaf]:
    """Those of the leaves that are such columns, as far as the footer says."""
    nested = parsed.columns.nested
    some = {number: kind for number in leaves if number in nested and (kind := _kind(parsed, number)) is not None}
    if not some:
        return []
    codecs = {number: set[int]() for number in some}
    for row_group in row_groups:
        for number, (codec, nulls) in parsed.codecs_and_nulls(row_group, some).items():
            codecs[number].add(-1 if nulls else codec)
    rows = [count for group in row_groups if (count := parsed.metadata.row_group(group).num_rows)]
    found = []
    for number, kind in some.items():
        of_groups = chunks.of(number)
        if len(codecs[number]) != 1 or not codecs[number] <= _CODECS.keys() or len(of_groups) != len(rows):
            continue
        length = of_groups[0].values // rows[0] if rows else 0
        sized = _storage(kind)
        wanted = list_size(sized) if pa.types.is_fixed_size_list(sized) else length
        if not length or length != wanted or any(c.values != length * n for c, n in zip(of_groups, rows, strict=True)):
            continue
        (codec,) = codecs[number]
        definition = parsed.metadata.schema.column(number).max_definition_level
        found.append(
            ListLeaf(number, parsed.columns.leaves[number][0], kind, length, definition, _CODECS[codec], of_groups)
        )
    return found


def _kind(parsed: ParsedFooter, number: int) -> pa.DataType | None:
    """The column's type, where it is lists of numbers that are stored as they are in memory."""
    kind = parsed.columns.stored.field(parsed.columns.leaves[number][0]).type
    storage = _storage(kind)
    if not _is_list(storage) or value_type(storage) not in _DTYPES:
        return None
    column = parsed.metadata.schema.column(number)
    return kind if column.max_repetition_level == 1 and column.max_definition_level < 256 else None


def _storage(kind: pa.DataType) -> Any:
    return kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


@dataclass(slots=True)
class _Page:
    """Values of a page, or their places in a dictionary; those before `used` are in batches."""

    values: np.ndarray[Any, Any]
    dictionary: np.ndarray[Any, Any] | None
    used: int = 0


class EqualLists:
    """The column's rows, in the order of its chunks, whose pages the guard checks as they are read."""

    def __init__(self, leaf: ListLeaf, opened: Any, guard: PageGuard) -> None:
        """`opened` is a `pyarrow.NativeFile`."""
        self._leaf, self._kind, self._length = leaf, _storage(leaf.kind), leaf.length
        self._dtype = _DTYPES[value_type(self._kind)]
        self._pages = _Pages(leaf.chunks, opened, guard, leaf.codec)
        self._page = _Page(np.empty(0, self._dtype), None)
        self._dictionary: np.ndarray[Any, Any] | None = None
        self._values = 0
        # Levels of the pages before: those of equally many rows are the same bytes.
        self._known: deque[tuple[int, int, bytes]] = deque(maxlen=4)

    def take(self, rows: int) -> pa.Array[Any]:
        """The next rows. Raises `OtherPages`."""
        # Before memory is taken: the length is only what the footer claims.
        if self._page.used == len(self._page.values):
            self._page = self._next_page()
        values = rows * self._length
        if values * self._dtype.itemsize > BATCH_BYTES:
            raise OtherPages
        buffer = pa.allocate_buffer(values * self._dtype.itemsize)
        target, filled = numbers_in(buffer, self._dtype), 0
        while filled < values:
            page = self._page
            if page.used == len(page.values):
                page = self._page = self._next_page()
            until = page.used + min(values - filled, len(page.values) - page.used)
            some, part = page.values[page.used : until], target[filled : filled + until - page.used]
            if page.dictionary is None:
                part[:] = some
            else:
                np.take(page.dictionary, some, out=part, mode="clip")  # the places have been checked
            filled, page.used = filled + len(part), until
        return self._array(buffer, rows)

    def _array(self, buffer: pa.Buffer, rows: int) -> pa.Array[Any]:
        values = pa.Array.from_buffers(value_type(self._kind), rows * self._length, [None, buffer])
        if pa.types.is_fixed_size_list(self._kind):
            lists: Any = pa.Array.from_buffers(self._kind, rows, [None], children=[values])
        else:
            edges = np.arange(rows + 1) * self._length
            offsets = buffer_of(edges if pa.types.is_large_list(self._kind) else edges.astype(np.int32))
            lists = pa.Array.from_buffers(self._kind, rows, [None, offsets], children=[values])
        kind: Any = self._leaf.kind
        return lists if self._kind is kind else pa.ExtensionArray.from_storage(kind, lists)

    def _next_page(self) -> _Page:
        while True:
            kind, values, encoding, data = self._pages.next()
            if kind == _DICTIONARY_PAGE:
                # A copy, since the next page's bytes take the place of these.
                self._dictionary = _numbers(data, 0, values, self._dtype).copy()
            elif values:
                return self._data_page(values, encoding, data)

    def _data_page(self, count: int, encoding: int, data: memoryview) -> _Page:
        repetition, at = _levels(data, 0)
        definition, at = _levels(data, at)
        if count * max(4, self._dtype.itemsize) > _PAGE_BYTES:
            raise OtherPages
        width = self._leaf.definition.bit_length()
        levels = self._values % self._length, count, repetition
        if levels not in self._known:
            if not of_one_length(repetition, count, self._values, self._length):
                raise OtherPages
            self._known.append(levels)
        if width and not all_equal(definition, count, width, self._leaf.definition):
            raise OtherPages
        self._values += count
        if encoding == _PLAIN:
            return _Page(_numbers(data, at, count, self._dtype), None)
        places = unpacked(data[at:], count) if encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY) else None
        dictionary = self._dictionary
        if places is None or dictionary is None or places.min() < 0 or places.max() >= len(dictionary):
            raise OtherPages
        return _Page(places, dictionary)


def _numbers(data: memoryview, at: int, count: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if count < 0 or at + count * dtype.itemsize > len(data):
        raise OtherPages
    return np.frombuffer(data, dtype, count, at)


def _levels(data: memoryview, at: int) -> tuple[bytes, int]:
    """Levels, which begin with the number of their bytes; and where they end."""
    end = at + 4 + int.from_bytes(data[at : at + 4], "little")
    if end > len(data):
        raise OtherPages
    return bytes(data[at + 4 : end]), end


class _Pages:
    """The pages of chunks, one after the other: a page's bytes are in the memory of the one before."""

    def __init__(self, chunks: Sequence[Chunk], opened: Any, guard: PageGuard, codec: Codec | None) -> None:
        self._chunks, self._opened, self._guard, self._codec = iter(chunks), opened, guard, codec
        self.chunk = Chunk(0, 0, 0, False)
        self._at = self._left = 0
        self._memory, self._base, self._end = memoryview(b""), 0, 0

    def next(self) -> tuple[int, int, int, memoryview]:
        """The page's kind, its number of values, their encoding, and its bytes, unpacked."""
        while not self._left:
            if (following := next(self._chunks, None)) is None:
                raise OtherPages
            self.chunk = following
            self.chunk.begin()
            self._at, self._left = self.chunk.start, self.chunk.values
        found, at = self._header()
        kind, size, packed = (found.get((of, I32), -1) for of in (1, 2, 3))
        where = found.get((7 if kind == _DICTIONARY_PAGE else 5, STRUCT))
        if kind not in (_DATA_PAGE, _DICTIONARY_PAGE) or where is None or min(size, packed) < 0:
            raise OtherPages
        about = self._fields(where, _VALUES)[0]
        values, encoding = about.get((1, I32), -1), about.get((2, I32), -1)
        if kind == _DATA_PAGE:
            if about.get((3, I32)) != _RLE or about.get((4, I32)) != _RLE or not 0 <= values <= self._left:
                raise OtherPages
            self._left -= values
        elif encoding not in (_PLAIN, _PLAIN_DICTIONARY):
            raise OtherPages
        data = self._read(at, packed)
        self._at = at + packed
        if (4, I32) in found and zlib.crc32(data) != found[4, I32] & 0xFFFFFFFF:
            raise OtherPages
        return kind, values, encoding, self._unpacked(data, size)

    def _unpacked(self, data: memoryview, size: int) -> memoryview:
        if self._codec is None:
            return data
        try:
            # Snappy's bytes begin with their number; zstd is refused where it gives another.
            if self._codec == "snappy" and varint(data, 0)[0] != size:
                raise OtherPages
            unpacked: Any = pa.decompress(buffer_of(data), size, self._codec, asbytes=False)
            return memoryview(unpacked).cast("B")
        except (Malformed, IndexError, pa.ArrowException, OSError) as error:
            raise OtherPages from error

    def _header(self) -> tuple[dict[tuple[int, int], int], int]:
        """A page's header, whose places are those in memory; and the file's byte where the header ends."""
        self._read(self._at, min(_HEADER_BYTES, self.chunk.end - self._at))
        found, end = self._fields(self._at - self._base, _PAGE)
        return found, self._base + end

    def _fields(self, at: int, asked: frozenset[tuple[int, int]]) -> tuple[dict[tuple[int, int], int], int]:
        try:
            return fields(self._memory[: self._end - self._base], at, asked)
        except Malformed as error:
            raise OtherPages from error

    def _read(self, start: int, size: int) -> memoryview:
        """Bytes of the chunk; those read before may be gone then."""
        if start + size > self.chunk.end:
            raise OtherPages
        if not self._base <= start <= start + size <= self._end:
            chunk = self.chunk
            whole = chunk.end - chunk.start <= _WHOLE_CHUNK and start == chunk.start
            self._fill(start, chunk.end if whole else min(chunk.end, start + max(size, _WINDOW)))
        return self._memory[start - self._base : start - self._base + size]

    def _fill(self, start: int, end: int) -> None:
        if len(self._memory) < end - start:
            memory: Any = np.empty(end - start, np.uint8)
            self._memory = memoryview(memory)
        self._opened.seek(start)
        filled = 0
        while filled < end - start:
            read = self._opened.readinto(self._memory[filled : end - start])
            if not read:
                raise OtherPages
            filled += read
        self._base, self._end = start, end
        self._guard.check(self.chunk, self._memory, start, start, end)
