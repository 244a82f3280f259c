"""The index of an HDF5 file fetched level by level, by the addresses that it holds.

HDF5's own library looks up one address after the other, each a round trip to a bucket. Here all that are known are followed
at once, so that it finds what it asks for. What is found is no more than a guess of what it will ask for: nothing is
believed, and nothing said about what is damaged; where other structures stand than h5py writes by default, nothing is
found. Format: HDF5 File Format Specification 3.0, with the numbers of its sections below.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from ..streaming.ranges import NotFetched, Ranges

# One layer's groups and datasets lie together, mostly within these many blocks around the first one met: 48 KiB in all,
# which take a hundredth of a round trip's time.
_AHEAD, _BEHIND = 7, 4
_MAX_PASSES, _MAX_PLACES = 64, 1_000_000
_MAX_HEADER, _MAX_NAMES = 64 << 10, 1 << 20
_ROOT_ENTRY, _ENTRY = 56, 40
_SYMBOL_TABLE, _CONTINUATION, _ATTRIBUTE = 0x11, 0x10, 0x0C

_Place = tuple[str, int, int]
"""A kind of structure, its address, and another number, as `_Index` says."""


def fetch_index(ranges: Ranges, start: int, size: int, wanted: Callable[[str], bool]) -> None:
    """Fetches the metadata of the HDF5 file at bytes `start` to `start + size` (exclusive), where names are `wanted`."""
    index = _Index(ranges, start, size, wanted)
    todo: list[_Place] = [("superblock", 0, 0)]
    seen = set(todo)
    for _ in range(_MAX_PASSES):
        unread = []
        while todo and len(seen) <= _MAX_PLACES:
            place = todo.pop()
            try:
                found = index.follow(place)
            except NotFetched:
                unread.append(place)
            except struct.error:
                continue
            else:
                todo += (new := set(found) - seen)
                seen |= new
        if not unread or len(seen) > _MAX_PLACES or not ranges.fetch_wanted(_AHEAD, _BEHIND):
            break
        todo = unread
    ranges.wanted.clear()


def text_bytes(read: Callable[[int, int], bytes], header: int, name: str, count: int) -> int | None:
    """How long the `count` texts of an attribute are together, before anything is allocated for them: each is a reference
    that says how much it leads to (IV.A.2.m and III.E). None where the attribute is not in a header of version 1.

    `read` takes an address and a length.
    """
    version, length = struct.unpack_from("<B7xI", read(header, 16).ljust(16, b"\0"))
    blocks = [(header + 16, min(length, _MAX_HEADER))] if version == 1 else []
    for start, nbytes in blocks:
        data, at = read(start, nbytes), 0
        while at + 8 <= len(data):
            kind, size = struct.unpack_from("<HH", data, at)
            body, at = data[at + 8 : at + 8 + size], at + 8 + size
            if kind == _CONTINUATION and len(body) >= 16 and len(blocks) < _MAX_PASSES:
                blocks.append(
                    (struct.unpack_from("<Q", body)[0], min(struct.unpack_from("<Q", body, 8)[0], _MAX_HEADER))
                )
            elif kind == _ATTRIBUTE and len(body) >= 8:
                texts = _attribute(body, name.encode())
                if texts is not None and len(texts) >= 16 * count:
                    return sum(struct.unpack_from("<" + "I12x" * count, texts))
    return None


def _attribute(body: bytes, name: bytes) -> bytes | None:
    """The data of an attribute's message, where it has that name; only the oldest version fills up to multiples of 8."""
    version, *sizes = struct.unpack_from("<BxHHH", body)
    start = 9 if version == 3 else 8
    if body[start : start + sizes[0]].rstrip(b"\0") != name:
        return None
    return body[start + sum(-(-size // 8) * 8 if version == 1 else size for size in sizes) :]


class _Index:
    def __init__(self, ranges: Ranges, start: int, size: int, wanted: Callable[[str], bool]) -> None:
        self._ranges, self._start, self._size, self._wanted = ranges, start, size, wanted

    def follow(self, place: _Place) -> list[_Place]:
        """What a place leads to. Raises `NotFetched`, and `struct.error` where it is not what it should be."""
        kind, address, other = place
        self._ranges.collecting = True
        try:
            return list(getattr(self, f"_{kind}")(address, other))
        finally:
            self._ranges.collecting = False

    def _superblock(self, address: int, _: int) -> Iterator[_Place]:
        """II.A, version 0, with addresses of 8 bytes that count from the file's start."""
        data = self._read(address, _ROOT_ENTRY + _ENTRY)
        if data[:9] == b"\x89HDF\r\n\x1a\n\0" and data[13:15] == b"\x08\x08" and not any(data[24:32]):
            yield from _entry(data, _ROOT_ENTRY)

    def _header(self, address: int, _: int) -> Iterator[_Place]:
        """IV.A.1.a, version 1."""
        version, length = struct.unpack_from("<B7xI", self._read(address, 16))
        if version == 1:
            yield from self._messages(address + 16, min(length, _MAX_HEADER))

    def _messages(self, address: int, length: int) -> Iterator[_Place]:
        data, at = self._read(address, length), 0
        while at + 24 <= len(data):
            kind, nbytes, first, second = struct.unpack_from("<HH4xQQ", data, at)
            if kind == _SYMBOL_TABLE:
                yield from (("tree", first, second), ("heap", second, 0))
            elif kind == _CONTINUATION:
                yield "messages", first, min(second, _MAX_HEADER)
            at += 8 + nbytes

    def _tree(self, address: int, heap: int) -> Iterator[_Place]:
        """III.A.1 of a group: after 24 bytes, keys and children alternate."""
        signature, kind, level, used = struct.unpack_from("<4sBBH", self._read(address, 24))
        if signature == b"TREE" and kind == 0:
            children = struct.unpack_from("<" + "8xQ" * used, self._read(address + 24, 16 * used))
            yield from (("tree" if level else "symbols", child, heap) for child in children)

    def _heap(self, address: int, _: int) -> Iterator[_Place]:
        self._names(address)
        yield from ()

    def _symbols(self, address: int, heap: int) -> Iterator[_Place]:
        """III.B, a node of a group's symbol table."""
        signature, used = struct.unpack_from("<4s2xH", self._read(address, 8))
        data = self._read(address + 8, _ENTRY * used) if signature == b"SNOD" else b""
        names = self._names(heap)
        for at in range(0, len(data) - _ENTRY + 1, _ENTRY):
            name = names[struct.unpack_from("<Q", data, at)[0] :].partition(b"\0")[0]
            if self._wanted(name.decode("utf-8", "replace")):
                yield from _entry(data, at)

    def _names(self, heap: int) -> bytes:
        """III.D, the data of a local heap."""
        signature, length, address = struct.unpack_from("<4s4xQ8xQ", self._read(heap, 32))
        return self._read(address, min(length, _MAX_NAMES)) if signature == b"HEAP" else b""

    def _read(self, address: int, length: int) -> bytes:
        return self._ranges.read(self._start + address, length) if address + length <= self._size else b""


def _entry(data: bytes, at: int) -> Iterator[_Place]:
    """III.C: of a group it often says where its tree and heap lie, before its header does."""
    header, cached, tree, heap = struct.unpack_from("<8xQI4xQQ", data, at)
    yield "header", header, 0
    if cached == 1:
        yield from (("tree", tree, heap), ("heap", heap, 0))
