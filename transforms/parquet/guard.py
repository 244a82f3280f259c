"""Checks what a hostile Parquet page claims against bounds, before Arrow acts on it.

Arrow 25 takes as much memory as a page's header claims. Page headers are in Thrift's compact protocol, their fields those of
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ..errors import NotParquet
from .chunks import Chunk, Chunks
from .footer_thrift import refused
from .layouts import Integers
from .thrift import BINARY, BOOL, I32, INTEGER, STRUCT, VARINT, Malformed, fields, header, matcher, number, text

# For the pages that are decoded at once: one of each column, and its dictionary. Writers end a page at some 1 MiB or 20,000
# rows. Pages of many columns may add up to more than those of a few, and a larger page may be what its own bytes make likely.
_PAGE_BYTES, _PAGE_BYTES_OF_MANY = 256 << 20, 1 << 30
_COLUMN_PAGE_BYTES = 2 << 20
_MOST_RATIO = 100
PAGE_VALUES = 1 << 27
# The largest batch where each of its rows may hold a whole dictionary, or page.
BATCH_BYTES = 512 << 20
_HEADER_BYTES = 1 << 14
_MOST_HEADER_BYTES = 16 << 20
# parquet-mr before 1.2.9 left a dictionary's header out of a chunk's length (PARQUET-816): Arrow reads so many bytes more.
PADDING = 100
# The encoding in which a value may share a prefix of the value before it, and how it begins in a page's header, however long.
_DELTA_BYTE_ARRAY, PREFIXED = 7, re.compile(rb"\x15[\x0e\x8e]")
_DATA_PAGE, DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
# The field of a page's header that describes its values, by the kind of page.
OF_KIND = {_DATA_PAGE: 5, DICTIONARY_PAGE: 7, _DATA_PAGE_V2: 8}
_ORDINARY_DICTIONARY = 6  # the last group of its kind
_ASKED = frozenset({(1, I32), (2, I32), (3, I32), *((named, STRUCT) for named in OF_KIND.values())})
# The number of values; and their encoding, in a page of version 1 and in one of version 2.
_OF_VALUES = frozenset({(1, I32), (2, I32), (4, I32)})


class TooManyRows(Exception):
    """A batch may become too large, since one page's bytes may be in each of its rows: decode `rows` at once."""

    def __init__(self, rows: int) -> None:
        super().__init__(f"decode {rows} rows at once")
        self.rows = rows


def encoding_field(kind: int) -> int:
    """Its id among those that describe the values of a page."""
    return 4 if kind == _DATA_PAGE_V2 else 2


@cache
def _ordinary_page() -> Callable[..., re.Match[bytes] | None]:
    """A page's header as programs write it. For each kind of page: sizes unpacked and packed, and values."""
    group = rb"\x15(" + VARINT + rb")"
    statistics = header(STRUCT) + rb"(?:" + INTEGER + rb"|" + BOOL + rb"|" + header(BINARY) + text(32) + rb")*+\x00"
    kinds = []
    for kind, named in OF_KIND.items():
        # The values' field comes after that of the packed size, or a checksum's.
        heads = rb"(?:\x%02x|\x15%b\x%02x)" % ((named - 3) << 4 | STRUCT, VARINT, (named - 4) << 4 | STRUCT)
        kinds.append(rb"\x%02x" % (2 * kind) + group * 2 + heads + group)
    rest = rb"(?:" + INTEGER + rb"|" + BOOL + rb"|" + statistics + rb")*+\x00\x00"
    return matcher(rb"\x15(?:" + rb"|".join(kinds) + rb")" + rest)


class PageGuard:
    """Checks pages' headers, chunk by chunk, before Arrow reads them. `read_at` reads the file: from where, how many bytes.

    `at_once` chunks are read side by side, and `rows` decoded at once. Arrow may read `padding` bytes more than a chunk's own;
    these may hold anything, as Arrow does not use them.
    """

    def __init__(self, name: str, read_at: Callable[[int, int], Any], at_once: int, rows: int, padding: int) -> None:
        self.name, self._read_at = name, read_at
        self._at_once, self.rows, self.padding = at_once, rows, padding
        # For the chunks read last: the pages that Arrow holds of each.
        self._pages: dict[int, tuple[int, int]] = {}
        self._unpacked = self._packed = 0
        self._last: Integers = np.zeros((2, 0), np.int64)
        self._most = max(_PAGE_BYTES, min(at_once * _COLUMN_PAGE_BYTES, _PAGE_BYTES_OF_MANY))
        self._ordinary = _ordinary_page()

    def check(self, chunk: Chunk, data: Any, base: int, start: int, until: int) -> None:
        """At each header of the chunk in the file's bytes `start` to `until` (exclusive), which are in `data`, whose first byte
        is the file's byte `base`.
        """
        self._check_total(chunk, self.walk(chunk, data, base, start, until))

    def walk(self, chunk: Chunk, data: Any, base: int, start: int, until: int) -> tuple[int, int]:
        """`check`, but for the total; the sizes of the largest page."""
        at, left, largest, ordinary = chunk.next_header, chunk.values_left, chunk.page, self._ordinary
        most, repeated = chunk.end + self.padding, chunk.repeated
        until = min(until, most)
        while at < until and left > 0:  # Arrow reads no page beyond the last value, and there are files with more bytes
            match = ordinary(data, at - base, until - base) if at >= start else None
            if match is not None:
                last = match.lastindex or 0
                size, size_packed, count = match.group(last - 2, last - 1, last)
                unpacked, packed, values = number(size, I32), number(size_packed, I32), number(count, I32)
                dictionary, at_page = last == _ORDINARY_DICTIONARY, base + match.end()
                prefixed = repeated and not dictionary and PREFIXED.search(match.group()) is not None
            else:
                try:
                    dictionary, prefixed, unpacked, packed, values, at_page = self._header(chunk, at)
                except Malformed as error:
                    raise self._refused("a header that can be read", f"none at byte {at}") from error
            if unpacked < 0 or packed < 0 or at_page + packed > most:
                found = f"sizes {unpacked} and {packed}"
                raise self._refused(f"sizes, within the {chunk.end - chunk.start} bytes of its chunk", found)
            if not 0 <= values <= PAGE_VALUES:
                raise self._refused(f"{PAGE_VALUES:,} values at most", f"{values:,}")
            if dictionary:
                chunk.dictionary = unpacked, packed
            else:
                chunk.page = unpacked, packed
                left -= values
                if chunk.page > largest:
                    largest = chunk.page
            if repeated and (dictionary or prefixed) and unpacked * self.rows > BATCH_BYTES and self.rows > 1:
                raise TooManyRows(max(1, BATCH_BYTES // unpacked))
            at = at_page + packed
        chunk.next_header, chunk.values_left = at, left
        return largest

    def _header(self, chunk: Chunk, at: int) -> tuple[bool, bool, int, int, int, int]:
        """Reads a header that is unusual, or continues beyond the bytes read: whether it is a dictionary's, or of values that
        repeat earlier ones; its sizes, its values, and where it ends. Raises `Malformed`.
        """
        size = _HEADER_BYTES
        while True:
            data = memoryview(self._read_at(at, size)).cast("B")  # Arrow's buffers count their bytes as signed
            try:
                found, length = fields(data, 0, _ASKED)
                kind = found.get((1, I32), -1)
                where = found.get((OF_KIND.get(kind, -1), STRUCT))
                values = fields(data, where, _OF_VALUES)[0] if where is not None else {}
            except Malformed:
                if size >= min(_MOST_HEADER_BYTES, chunk.end - at):
                    raise
                size *= 32
                continue
            encoding = values.get((encoding_field(kind), I32))
            prefixed = kind != DICTIONARY_PAGE and encoding == _DELTA_BYTE_ARRAY
            unpacked, packed, count = found.get((2, I32), -1), found.get((3, I32), -1), values.get((1, I32), 0)
            return kind == DICTIONARY_PAGE, prefixed, unpacked, packed, count, at + length

    def _check_total(self, chunk: Chunk, page: tuple[int, int]) -> None:
        """Arrow holds the dictionary and one page of each chunk: the largest that it may be at with what was read now."""
        of_chunk = (chunk.dictionary[0] + page[0], chunk.dictionary[1] + page[1])
        before = self._pages.pop(chunk.start, (0, 0))
        self._pages[chunk.start] = of_chunk
        unpacked, packed = self._unpacked + of_chunk[0] - before[0], self._packed + of_chunk[1] - before[1]
        if len(self._pages) > self._at_once:
            gone = self._pages.pop(next(iter(self._pages)))
            unpacked, packed = unpacked - gone[0], packed - gone[1]
        self._unpacked, self._packed = unpacked, packed
        side_by_side, packed_side_by_side = self._last.sum(axis=1).tolist()
        unpacked, packed = unpacked + side_by_side, packed + packed_side_by_side
        if unpacked > self._most and unpacked > _MOST_RATIO * packed:
            raise self._too_large(unpacked, packed)

    def check_totals(self, of_chunks: Integers) -> None:
        """The same for chunks that are read after those before: a row of sizes unpacked, and a row packed."""
        sizes = np.concatenate([self._last, of_chunks], axis=1)
        totals = np.cumsum(sizes, axis=1)
        totals[:, self._at_once :] -= totals[:, : -self._at_once].copy()
        unpacked, packed = totals[0] + self._unpacked, totals[1] + self._packed
        if (large := (unpacked > self._most) & (unpacked > _MOST_RATIO * packed)).any():
            first = int(large.argmax())
            raise self._too_large(int(unpacked[first]), int(packed[first]))
        self._last = sizes[:, -self._at_once :]

    def _too_large(self, unpacked: int, packed: int) -> NotParquet:
        return self._refused(
            f"no more than {self._most:,} bytes decompressed at once, or {_MOST_RATIO} times what is read for them",
            f"{unpacked:,} bytes out of {packed:,}",
        )

    def _refused(self, expected: str, found: str) -> NotParquet:
        return refused(self.name, "page", expected, found)


class GuardedFile:
    """The file that pyarrow reads from. It gives only the chunks' bytes, each from its start on, and the guard checks them
    before Arrow gets them.
    """

    closed = False

    def __init__(self, opened: Any, size: int, chunks: Chunks, guard: PageGuard) -> None:
        """`opened` is a `pyarrow.NativeFile` of `size` bytes; the caller that opened it closes it."""
        self._opened, self._size, self._guard, self._at = opened, size, guard, 0
        self._chunks = chunks.in_order()
        self._starts = [chunk.start for chunk in self._chunks]
        for chunk in self._chunks:
            chunk.begin()
        self._empty, self._empty_bytes = chunks.empty, size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size if whence == 2 else 0)[whence]
        return self._at

    def read(self, size: int = -1) -> Any:
        start = self._at
        chunk = self._chunk(start, size)
        self._opened.seek(start)
        data = self._opened.read_buffer(size)
        self._at = end = start + len(data)
        if chunk is not None:
            chunk.next_read = end
            if chunk.next_header < end:
                self._guard.check(chunk, data, start, start, end)
        return data

    def close(self) -> None:
        """Whoever opened the file closes it."""

    def flush(self) -> None:
        """There is nothing to write."""

    def _chunk(self, start: int, size: int) -> Chunk | None:
        """The one that Arrow reads of: from its start on, then from where it was. None of one that holds no value."""
        at = bisect_right(self._starts, start) - 1
        # The padding of a chunk are the bytes of the next.
        padding = self._guard.padding
        for chunk in self._chunks[max(0, at - 1 if padding else at) : at + 1]:
            if chunk.next_read == start and start + size <= chunk.end + padding:
                return chunk
        if any((start, size - more) in self._empty for more in range(padding + 1)) or not size:
            self._empty_bytes -= size
            if self._empty_bytes >= 0:
                return None
        found = f"{size} bytes from {start} on"
        raise refused(self._guard.name, "column chunk", "bytes that its footer names, each once", found)
