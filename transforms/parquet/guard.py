"""What Arrow would believe of a hostile Parquet file, held against bounds before Arrow acts on it.

Arrow 25 ends the process on a schema nested tens of thousands deep, and takes as much memory as a page's header claims.
Footers and page headers are in Thrift's compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/
thrift-compact-protocol.md), their fields those of https://github.com/apache/parquet-format/blob/master/src/main/thrift/
parquet.thrift.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Container
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import NotParquet

# Of a list in a footer that Arrow is trusted with unseen: a schema of so many elements cannot end the process.
FEW_MEMBERS = 10_000
MOST_NESTED = 128
# Of the pages decoded at once, one of each column and its dictionary. Writers end a page at some 1 MiB or 20,000 rows, of
# which many columns may add up to more than a few are trusted with; a larger one may be what its own bytes make likely.
_PAGE_BYTES, _PAGE_BYTES_OF_MANY = 256 << 20, 1 << 30
_COLUMN_PAGE_BYTES = 2 << 20
_MOST_RATIO = 100
_PAGE_VALUES = 1 << 27
# What a batch may become where each of its rows holds a whole dictionary.
BATCH_BYTES = 512 << 20
MOST_FOOTER_BYTES = 256 << 20
_HEADER_BYTES = 1 << 14
_MOST_HEADER_BYTES = 16 << 20
_I32, _I64, _BINARY, _LIST, _SET, _MAP, _STRUCT = 5, 6, 8, 9, 10, 11, 12
_INTEGER_BITS = {4: 32, _I32: 32, _I64: 64}
_FIXED_BYTES = {1: 1, 2: 1, 3: 1, 7: 8, 13: 16}
_DICTIONARY_PAGE = 2
# Of a page's header, what tells of its values, by the kind of page.
_VALUES = ((5, _STRUCT), (7, _STRUCT), (8, _STRUCT))
_CURE = "Leave this file out of --input, or write it again"

Fields = dict[tuple[int, int], Any]
"""A struct's fields by id and type, since Thrift passes over a field of another type. Of two alike the last counts."""


# What anybody asks of a struct, of whatever kind that is, by id times 16 plus type. The rest is passed over: with statistics
# and the like a footer of 610 row groups took 35 times its bytes.
_ASKED = {
    (field << 4) + kind: (field, kind)
    for field, kind in (
        *((field, _I32) for field in (1, 2, 3, 5)),
        *((field, _I64) for field in (5, 6, 7, 9, 11)),
        *((field, _LIST) for field in (1, 2, 4)),
        *((field, _STRUCT) for field in (3, 5, 7, 8)),
    )
}


class DictionaryTooLarge(Exception):
    """Batches of so many rows may become too large: decode `rows` at once."""

    def __init__(self, rows: int) -> None:
        super().__init__(f"decode {rows} rows at once")
        self.rows = rows


class _Malformed(Exception):
    pass


_UNREADABLE = (_Malformed, IndexError, KeyError)


class _Compact:
    """Integers are cut to their type's width as Thrift's own reader does; of text and lists of numbers nothing is kept."""

    def __init__(self, data: Any, at: int = 0) -> None:
        self._data, self.at = data, at

    def _varint(self) -> int:
        data, at = self._data, self.at
        value: int = data[at]
        if value > 127:
            value, shift = value & 127, 7
            while True:
                at += 1
                byte = data[at]
                value |= (byte & 127) << shift
                if byte < 128:
                    break
                shift += 7
                if shift > 63:
                    raise _Malformed
        self.at = at + 1
        return value

    def _zigzag(self, bits: int) -> int:
        value = self._varint() & ((1 << bits) - 1)
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0) -> Fields:
        if depth > MOST_NESTED:
            raise _Malformed
        data, at, last = self._data, self.at, 0
        fields: Fields = {}
        while True:
            head = data[at]
            at += 1
            kind = head & 15
            if not kind:
                self.at = at
                return fields
            if head > 15:
                last += head >> 4
            else:
                self.at = at
                last = (self._zigzag(32) + 0x8000 & 0xFFFF) - 0x8000
                at = self.at
            # Integers and short texts, of which pages' headers consist, without a call.
            value: Any = None
            if kind in _INTEGER_BITS:
                value = data[at]
                at += 1
                if value > 127:
                    self.at = at - 1
                    value = self._varint() & ((1 << _INTEGER_BITS[kind]) - 1)
                    at = self.at
                value = (value >> 1) ^ -(value & 1)
            elif kind == _BINARY and (size := data[at]) < 128 and at + size < len(data):
                at += 1 + size
            elif kind > 2:
                self.at = at
                value = self._value(kind, depth)
                at = self.at
            if (last << 4) + kind in _ASKED:
                fields[_ASKED[(last << 4) + kind]] = value

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGER_BITS:
            return self._zigzag(_INTEGER_BITS[kind])
        if kind == _BINARY:
            return self._skip(self._varint())
        if kind in (_LIST, _SET):
            head = self._data[self.at]
            self.at += 1
            count = self._varint() if head >> 4 == 15 else head >> 4
            members = [self._value(head & 15, depth + 1) for _ in range(count)]
            return members if head & 15 == _STRUCT else None
        if kind == _MAP:
            raise _Malformed  # Parquet has none
        if kind == _STRUCT:
            return self.struct(depth + 1)
        return self._skip(_FIXED_BYTES[kind])

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise _Malformed


def parse_footer(name: str, opened: Any, size: int) -> Fields:
    """FileMetaData of an open file of so many bytes, which ends in its length (uint32) and b"PAR1".

    Slow: 100,000 column chunks take some seconds.
    """
    opened.seek(size - 8)
    length = int.from_bytes(opened.read(4), "little")
    if length > min(MOST_FOOTER_BYTES, size - 8):
        raise _refused(name, "footer", f"{MOST_FOOTER_BYTES:,} bytes at most, within the file", f"{length:,}")
    opened.seek(size - 8 - length)
    try:
        return _Compact(opened.read(length)).struct()
    except _UNREADABLE as error:
        raise _refused(name, "footer", "Thrift", "what is none") from error


def check_nesting(name: str, footer: Fields) -> None:
    """Raises `NotParquet` where the schema is nested too deep: a list in depth-first order, each with its children's count."""
    left: list[int] = []
    for element in footer.get((2, _LIST)) or []:
        if left:
            left[-1] -= 1
        left.append(element.get((5, _I32)) or 0)
        while left and left[-1] <= 0:
            left.pop()
        if len(left) > MOST_NESTED:
            raise nested_too_deep(name)


def nested_too_deep(name: str) -> NotParquet:
    return _refused(name, "schema", f"{MOST_NESTED} levels at most", "more")


@dataclass(slots=True)
class _Chunk:
    """Bytes `start` to `end` (exclusive), headers up to `next_header` seen; sizes, unpacked and packed, of its dictionary and
    its last page.

    `repeated` is whether each row gets a copy of its value in the dictionary.
    """

    start: int
    end: int
    next_header: int
    repeated: bool
    dictionary: tuple[int, int] = (0, 0)
    page: tuple[int, int] = (0, 0)


def column_chunks(
    name: str, footer: Fields, row_groups: tuple[int, int], size: int, repeated: Container[int]
) -> list[_Chunk]:
    """In order of their bytes; of the columns `repeated`, each row gets a copy of its value in the dictionary.

    Raises `NotParquet` where one leaves the file, or two overlap.
    """
    chunks = []
    groups = footer.get((4, _LIST)) or []
    for group in groups[slice(*row_groups)]:
        for number, column in enumerate(group.get((1, _LIST)) or []):
            about = column.get((3, _STRUCT)) or {}
            if about.get((5, _I64)) == 0:  # Arrow reads no page of it, and writes that the first lies at byte 0
                continue
            length, start = about.get((7, _I64)), about.get((9, _I64))
            dictionary = about.get((11, _I64)) or 0
            # As Arrow does, since some writers of old set it to 0 or to the end.
            start = dictionary if start is not None and 0 < dictionary < start else start
            if start is None or length is None or not 0 <= start <= start + length <= size:
                raise _refused(name, "column chunk", f"bytes from 0 to {size}", f"{length} bytes from {start} on")
            if length:
                chunks.append(_Chunk(start, start + length, start, number in repeated))
    chunks.sort(key=lambda chunk: chunk.start)
    for before, after in pairwise(chunks):
        if before.end > after.start:
            raise _refused(name, "column chunk", "bytes of its own", f"byte {after.start}, which is another's too")
    return chunks


def unpacked_chunks(footer: Fields) -> list[list[int]]:
    """What each column chunk of each row group says that it decompresses to, in bytes, 0 where it says nothing of use."""
    return [
        [max(0, (column.get((3, _STRUCT)) or {}).get((6, _I64)) or 0) for column in group.get((1, _LIST)) or []]
        for group in footer.get((4, _LIST)) or []
    ]


def most_packed(footer: Fields, row_groups: tuple[int, int], columns: Collection[int]) -> int:
    """Bytes of these columns' chunks in the row group that has most of them, as `column_chunks` has found them to be."""
    groups = (footer.get((4, _LIST)) or [])[slice(*row_groups)]
    return max((sum(_packed(group, number) for number in columns) for group in groups), default=0)


def _packed(group: Fields, column: int) -> int:
    columns = group.get((1, _LIST)) or []
    about = columns[column].get((3, _STRUCT)) if column < len(columns) else None
    return max(0, (about or {}).get((7, _I64)) or 0)  # of a chunk without values nobody looks whether it is true


class GuardedFile:
    """What pyarrow asks of a file. From `watch` on it looks at each page's header before Arrow has it.

    `opened` is a `pyarrow.NativeFile`, which whoever opened it closes.
    """

    closed = False

    def __init__(self, name: str, opened: Any) -> None:
        self._name, self._opened = name, opened
        self._at = self._rows = 0
        self._chunks: list[_Chunk] = []
        self._starts: list[int] = []
        self._at_once = 0
        # Of the chunks read last: the pages that Arrow holds of each.
        self._pages: dict[int, tuple[int, int]] = {}
        self._unpacked = self._packed = 0

    def watch(self, chunks: list[_Chunk], at_once: int, rows: int) -> None:
        """`at_once` chunks are read side by side, and `rows` decoded at once."""
        self._chunks, self._starts = chunks, [chunk.start for chunk in chunks]
        self._at_once, self._rows = at_once, rows

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._opened.size() if whence == 2 else 0)[whence]
        return self._at

    def read(self, size: int = -1) -> Any:
        start, data = self._at, self._read_at(self._at, size)
        self._at = end = start + len(data)
        first = max(0, bisect_right(self._starts, start) - 1)
        for chunk in self._chunks[first : bisect_left(self._starts, end)]:
            if chunk.next_header < min(end, chunk.end):
                self._look(chunk, _bytes(data), start)
        return data

    def close(self) -> None:
        """Whoever opened the file closes it."""

    def flush(self) -> None:
        """There is nothing to write."""

    def _read_at(self, start: int, size: int) -> Any:
        self._opened.seek(start)
        return self._opened.read_buffer(size if size >= 0 else None)

    def _look(self, chunk: _Chunk, data: memoryview, start: int) -> None:
        """At each header of the chunk within `data`, which lies in the file from `start` on."""
        end, largest = min(start + len(data), chunk.end), chunk.page
        while chunk.next_header < end:
            header, length = self._header(chunk, data, chunk.next_header - start)
            unpacked, packed = header.get((2, _I32)), header.get((3, _I32))
            next_header = chunk.next_header + length + (packed or 0)
            if unpacked is None or packed is None or unpacked < 0 or packed < 0 or next_header > chunk.end:
                raise self._refused(
                    f"sizes, within the {chunk.end - chunk.start} bytes of its chunk", f"{unpacked}, {packed}"
                )
            for part in _VALUES:
                if (values := header.get(part)) is not None and (values.get((1, _I32)) or 0) > _PAGE_VALUES:
                    raise self._refused(f"{_PAGE_VALUES:,} values at most", f"{values[1, _I32]:,}")
            if header.get((1, _I32)) == _DICTIONARY_PAGE:
                chunk.dictionary = unpacked, packed
            else:
                chunk.page = unpacked, packed
                largest = max(largest, chunk.page)
            chunk.next_header = next_header
        self._check_sum(chunk, largest)
        if chunk.repeated and self._rows > 1 and chunk.dictionary[0] * self._rows > BATCH_BYTES:
            raise DictionaryTooLarge(max(1, BATCH_BYTES // chunk.dictionary[0]))

    def _header(self, chunk: _Chunk, data: memoryview, at: int) -> tuple[Fields, int]:
        """And its length in bytes."""
        if at >= 0:
            reader = _Compact(data, at)
            try:
                return reader.struct(), reader.at - at
            except _UNREADABLE:
                """It may go on beyond what was read."""
        size = _HEADER_BYTES
        while True:
            reader = _Compact(_bytes(self._read_at(chunk.next_header, size)))
            try:
                return reader.struct(), reader.at
            except _UNREADABLE as error:
                if size >= min(_MOST_HEADER_BYTES, chunk.end - chunk.next_header):
                    raise self._refused("a header that can be read", f"none at byte {chunk.next_header}") from error
            size *= 32

    def _check_sum(self, chunk: _Chunk, page: tuple[int, int]) -> None:
        """Arrow holds the dictionary and one page of each chunk: the largest that it may be at with what was read now."""
        of_chunk = (chunk.dictionary[0] + page[0], chunk.dictionary[1] + page[1])
        before = self._pages.pop(chunk.start, (0, 0))
        self._pages[chunk.start] = of_chunk
        unpacked, packed = self._unpacked + of_chunk[0] - before[0], self._packed + of_chunk[1] - before[1]
        if len(self._pages) > self._at_once:
            gone = self._pages.pop(next(iter(self._pages)))
            unpacked, packed = unpacked - gone[0], packed - gone[1]
        self._unpacked, self._packed = unpacked, packed
        most = max(_PAGE_BYTES, min(self._at_once * _COLUMN_PAGE_BYTES, _PAGE_BYTES_OF_MANY))
        if unpacked > most and unpacked > _MOST_RATIO * packed:
            raise self._refused(
                f"no more than {most:,} bytes decompressed at once, or {_MOST_RATIO} times what is read for them",
                f"{unpacked:,} bytes out of {packed:,}",
            )

    def _refused(self, expected: str, found: str) -> NotParquet:
        return _refused(self._name, "page", expected, found)


def _bytes(data: Any) -> memoryview:
    """Arrow's buffers count their bytes as signed."""
    return memoryview(data).cast("B")


def _refused(name: str, part: str, expected: str, found: str) -> NotParquet:
    return NotParquet(f"{name} has a {part} that no honest file has", expected=expected, found=found, cure=_CURE)
