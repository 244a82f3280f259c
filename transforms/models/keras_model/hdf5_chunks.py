"""A small value that an HDF5 file keeps in chunks, packed or not.

Format: HDF5 File Format Specification 3.0, III.A.1 (a tree of chunks) and IV.A.2.l (filters).
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .hdf5_format import Damaged, Structures
from .hdf5_types import Layout

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
FILTER_NAMES = {DEFLATE: "deflate", SHUFFLE: "shuffle", FLETCHER32: "fletcher32"}
_MAX_LEVELS = 16

_Filters = Sequence[tuple[int, tuple[int, ...]]]


def unpacked_bytes(layout: Layout, shape: Sequence[int]) -> int:
    """The memory of all chunks of a value, which may reach beyond it. Raises `Damaged`."""
    if len(layout.chunk) != len(shape) + 1:
        raise Damaged(f"chunks of {len(layout.chunk) - 1} dimensions in a value of {len(shape)}")
    return math.prod(layout.chunk) * math.prod(-(-n // c) for n, c in zip(shape, layout.chunk, strict=False))


def read_chunks(structures: Structures, layout: Layout, filters: _Filters, shape: Sequence[int], dtype: Any) -> Any:
    """The value as an array of `dtype`. The caller has checked `unpacked_bytes`. Raises `Damaged`, `zlib.error`."""
    *chunk, item = layout.chunk
    # Each chunk has a key in the tree: what cannot be in the file is not even counted out.
    if math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True)) * 8 * len(layout.chunk) > structures.size:
        raise Damaged(f"more chunks than a file of {structures.size} bytes can hold")
    if item != dtype.itemsize:
        raise Damaged(f"chunks of elements of {item} bytes, not {dtype.itemsize}")
    wanted = set(itertools.product(*(range(0, n, c) for n, c in zip(shape, chunk, strict=True))))
    value = np.empty(shape, dtype)
    for start, address, stored, mask in _chunks(structures, layout.address, len(layout.chunk), len(wanted)):
        if start not in wanted:
            raise Damaged(f"a chunk at {list(start)}, which is there twice or no chunk's place")
        wanted.remove(start)
        nbytes = math.prod(layout.chunk)
        if stored > nbytes + nbytes // 64 + 1024:
            raise Damaged(f"a packed chunk of {stored} bytes for {nbytes}")
        data = _unpacked(structures.read(address, stored), filters, mask, nbytes)
        part = np.frombuffer(data, dtype).reshape(chunk)
        place = tuple(slice(at, at + c) for at, c in zip(start, chunk, strict=True))
        into = value[place]
        into[...] = part[tuple(slice(0, n) for n in into.shape)]
    if wanted:
        raise Damaged(f"no chunk at {list(min(wanted))}")
    return value


def _chunks(structures: Structures, tree: int, rank: int, most: int) -> list[tuple[tuple[int, ...], int, int, int]]:
    """For each chunk the first element's place, its address, stored bytes, and which filters were left out."""
    key = struct.Struct(f"<II{rank}QQ")
    found: list[tuple[tuple[int, ...], int, int, int]] = []
    nodes, seen = [(tree, -1)], {tree}
    for address, level in nodes:
        signature, kind, own, used = struct.unpack("<4sBBH16x", structures.read(address, 24))
        if signature != b"TREE" or kind != 1 or own > _MAX_LEVELS or level not in (-1, own):
            raise Damaged(f"no node of a tree of chunks at {address}")
        for stored, mask, *start, child in key.iter_unpack(structures.read(address + 24, key.size * used)):
            if own:
                if child in seen:
                    raise Damaged(f"a tree that leads twice to {child}")
                seen.add(child)
                nodes.append((child, own - 1))
            else:
                found.append((tuple(start[:-1]), child, stored, mask))
            if len(found) > most or len(nodes) > 2 * most + _MAX_LEVELS:
                raise Damaged(f"more than the {most} chunks that the value has")
    return found


def _unpacked(data: bytes, filters: _Filters, mask: int, nbytes: int) -> bytes:
    """`mask` has a bit for each filter that was left out."""
    for i, (number, values) in reversed(list(enumerate(filters))):
        if mask >> i & 1:
            continue
        if number == DEFLATE:
            inflate = zlib.decompressobj()
            # A checksum may have been added before it was packed.
            data = inflate.decompress(data, nbytes + 4 * len(filters))
            if not inflate.eof:
                raise Damaged(f"a chunk that does not unpack to {nbytes} bytes")
        elif number == SHUFFLE:
            data = _unshuffled(data, values[0] if values else 0)
        elif number == FLETCHER32:
            data = _checked(data)
    if len(data) != nbytes:
        raise Damaged(f"a chunk that unpacks to {len(data)} of {nbytes} bytes")
    return data


def _unshuffled(data: bytes, size: int) -> bytes:
    """The first bytes of all elements come first, then the second ones; an incomplete element stays at the end."""
    if size < 1:
        raise Damaged("a shuffle of elements without bytes")
    even_size = len(data) // size * size
    return np.frombuffer(data[:even_size], np.uint8).reshape(size, -1).T.tobytes() + data[even_size:]


def _checked(data: bytes) -> bytes:
    """HDF5's Fletcher-32: sums of big-endian 16-bit words, modulo 65,535, where only 0 itself gives 0."""
    if len(data) < 4:
        raise Damaged("a chunk without its checksum")
    body, stored = data[:-4], struct.unpack("<I", data[-4:])[0]
    words = np.frombuffer(body + b"\0" * (len(body) % 2), ">u2").astype(np.uint64)
    sums = (int(words.sum()), int((words * np.arange(len(words), 0, -1, dtype=np.uint64)).sum()))
    first, second = (total and (total - 1) % 65535 + 1 for total in sums)
    if stored != second << 16 | first:
        raise Damaged("a chunk that does not match its checksum")
    return body
