"""Links and attributes of an object that has many, in HDF5's newer layout: a fractal heap, and a B-tree that names what is
in it. Format: HDF5 File Format Specification 3.0, III.A.2 and III.G."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ..streaming.ranges import NotFetched
from .hdf5_format import UNDEFINED, Damaged, NotSupported, Structures, check

_MAX_DEPTH, _MAX_NODE = 16, 1 << 16
# For a record of either type of tree: its length, and where in it the heap's own name of the object begins.
_RECORDS = {5: (11, 4), 8: (17, 0)}


def dense_objects(structures: Structures, heap: int, tree: int, kind: int) -> list[bytes]:
    """The objects that a tree of links (`kind` 5) or of attributes (8) names, in no order."""
    found, missed = [], False
    place = structures.once("fractal heap", heap, lambda address: _Heap(structures, address))
    for record in _records(structures, tree, kind):
        try:
            if record is not None:
                found.append(place.object(record[_RECORDS[kind][1] :]))
        except NotFetched:
            record = None
        missed = missed or record is None
    if missed:
        raise NotFetched
    return found


class _Heap:
    """Objects without filters, in direct blocks below at most a few levels of indirect ones."""

    def __init__(self, structures: Structures, address: int) -> None:
        self._structures, self._address = structures, address
        data = structures.read(address, 146)
        signature, version, self._id_bytes, filters, _, largest = struct.unpack_from("<4sBHHBI", data)
        if signature != b"FRHP":
            raise Damaged(f"no fractal heap at {address}")
        if version != 0 or filters:
            raise NotSupported("a fractal heap with filters, or of a newer version")
        check(data)
        self._width, self._start, most, bits, _, self._root, self._rows = struct.unpack_from("<HQQHHQH", data, 110)
        if any(n < 1 or n & (n - 1) for n in (self._width, self._start, most)) or most < self._start or bits > 64:
            raise Damaged(f"sizes of the fractal heap at {address} that are no powers of two")
        self._direct_rows = (most // self._start).bit_length() + 1
        self._offset_bytes = (bits + 7) // 8
        self._length_bytes = min((most.bit_length() + 6) // 8, (max(largest, 1).bit_length() - 1) // 8 + 1)

    def object(self, name: bytes) -> bytes:
        if name[0] & 0xF0:
            raise NotSupported("an object that lies outside the fractal heap's blocks")
        offset = int.from_bytes(name[1 : 1 + self._offset_bytes], "little")
        at = 1 + self._offset_bytes
        length = int.from_bytes(name[at : at + self._length_bytes], "little")
        self._structures.spend(16 + length)
        address, left = self._find(offset)
        if length > left:
            raise Damaged(f"an object of {length} bytes in the last {left} of a fractal heap's block")
        return self._structures.read(address, length)

    def _find(self, offset: int) -> tuple[int, int]:
        """The address of a place in the heap, and how many bytes of its block follow."""
        block, rows, base = self._root, self._rows, 0
        if not rows:
            return self._direct(block, offset, self._start)
        narrow = self._start * self._width
        while True:
            within = offset - base
            row = (within // narrow).bit_length()
            size, first = self._start << max(0, row - 1), narrow << row - 1 if row else 0
            if row >= rows:
                raise Damaged(f"a fractal heap of {rows} rows that is to hold byte {offset}")
            column = (within - first) // size
            child = self._children(block, rows)[row * self._width + column]
            base += first + column * size
            if row < self._direct_rows:
                return self._direct(child, offset - base, size)
            block, rows = child, (size // narrow).bit_length()

    def _direct(self, block: int, within: int, size: int) -> tuple[int, int]:
        if block == UNDEFINED or within >= size:
            raise Damaged(f"a fractal heap without the block of byte {within}")
        return block + within, size - within

    def _children(self, block: int, rows: int) -> tuple[int, ...]:
        def read(address: int) -> tuple[int, ...]:
            first, count = 13 + self._offset_bytes, rows * self._width
            data = self._structures.read(address, first + 8 * count + 4)
            if data[:5] != b"FHIB\0":
                raise Damaged(f"no indirect block of a fractal heap at {address}")
            check(data)
            return struct.unpack_from(f"<{count}Q", data, first)

        return self._structures.once(f"indirect block of {rows} rows", block, read)


def _records(structures: Structures, tree: int, kind: int) -> Iterator[bytes | None]:
    """The records of a tree; None for a node that is not here yet."""
    head = structures.read(tree, 38)
    signature, version, found, node_bytes, record_bytes, depth = struct.unpack_from("<4sBBIHH", head)
    if signature != b"BTHD" or found != kind:
        raise Damaged(f"no tree of kind {kind} at {tree}")
    check(head)
    root, count = struct.unpack_from("<QH", head, 16)
    if version != 0 or record_bytes != _RECORDS[kind][0] or depth > _MAX_DEPTH or not 64 <= node_bytes <= _MAX_NODE:
        raise NotSupported(f"a tree of records of {record_bytes} bytes, {depth} levels and nodes of {node_bytes} bytes")
    # The largest possible number of records determines the bytes that store these numbers.
    most = (node_bytes - 10) // record_bytes
    width = _bytes_of(most)
    in_all = [most]
    for _ in range(depth):
        pointer = 8 + width + (_bytes_of(in_all[-1]) if len(in_all) > 1 else 0)
        own = max(0, node_bytes - 10 - pointer) // (record_bytes + pointer)
        in_all.append((own + 1) * in_all[-1] + own)
    nodes, seen = [(root, count, depth)], {root}
    while nodes and root != UNDEFINED:
        address, count, level = nodes.pop()
        try:
            data = structures.read(address, node_bytes)
        except NotFetched:
            yield None
            continue
        if data[:6] != (b"BTIN" if level else b"BTLF") + bytes([0, kind]):
            raise Damaged(f"no node of a tree at {address}")
        pointer = (8 + width + (_bytes_of(in_all[level - 1]) if level > 1 else 0)) if level else 0
        used = 6 + count * record_bytes + (count + 1) * pointer
        if used + 4 > node_bytes:
            raise Damaged(f"a node of a tree with {count} records in {node_bytes} bytes")
        check(data[: used + 4])
        for at in range(6, 6 + count * record_bytes, record_bytes):
            yield data[at : at + record_bytes]
        for at in range(6 + count * record_bytes, used if level else 0, max(1, pointer)):
            (child,) = struct.unpack_from("<Q", data, at)
            if child in seen:
                raise Damaged(f"a tree that leads twice to {child}")
            seen.add(child)
            nodes.append((child, int.from_bytes(data[at + 8 : at + 8 + width], "little"), level - 1))


def _bytes_of(most: int) -> int:
    """How wide a number up to `most` is stored."""
    return (max(most, 1).bit_length() - 1) // 8 + 1
