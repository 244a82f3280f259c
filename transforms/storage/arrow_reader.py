"""Pinned objects as what pyarrow reads from: random access, with few and large requests."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

_BLOCK = 1 << 20
_CACHED_BLOCKS = 16
_READ_AHEAD_BLOCKS = 8
_PART = 4 << 20

# Arrow reads a Python file under a lock, one call at a time: only within a call can several connections be used.
_parts = ThreadPoolExecutor(16, thread_name_prefix="headrace-read")
os.register_at_fork(after_in_child=lambda: globals().update(_parts=ThreadPoolExecutor(16)))


ReadInto = Callable[[int, list[memoryview]], None]
"""Fills the buffers, one after the other, from that byte of the object on."""


class CachedReader(io.RawIOBase):
    """An object of `size` bytes. Small reads come from a cache of at most `_CACHED_BLOCKS` blocks of `_BLOCK` bytes, the least
    recently used going first, that reads ahead; large ones go over several connections.
    """

    def __init__(self, read_into: ReadInto, size: int) -> None:
        self._read_into, self._size = read_into, size
        self._at = 0
        self._blocks: OrderedDict[int, memoryview] = OrderedDict()
        self._next_block = -1
        self._lock = threading.Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> Any:
        """At most `size` bytes, fewer only at the end of the object."""
        rest = max(0, self._size - self._at)
        size = rest if size is None or size < 0 else min(size, rest)
        start, self._at = self._at, self._at + size
        if size > _BLOCK * _READ_AHEAD_BLOCKS // 2:
            return self._fetch(start, size)
        with self._lock:
            return self._cached(start, size)

    def _cached(self, start: int, size: int) -> Any:
        first, last = start // _BLOCK, (start + size - 1) // _BLOCK
        missing = [block for block in range(first, last + 1) if block not in self._blocks]
        # Before loading: loaded blocks must not evict wanted ones.
        for block in range(first, last + 1):
            if block in self._blocks:
                self._blocks.move_to_end(block)
        if missing:
            self._load(missing[0], missing[-1] + 1)
        if first == last:
            return self._blocks[first][start % _BLOCK :][:size]
        joined = b"".join(self._blocks[block] for block in range(first, last + 1))
        return memoryview(joined)[start % _BLOCK :][:size]

    def _load(self, first: int, end: int) -> None:
        """Blocks `first` to `end` (exclusive), and some beyond where reading goes steadily forward."""
        if first == self._next_block:
            end = max(end, first + _READ_AHEAD_BLOCKS)
        end = min(end, -(-self._size // _BLOCK))
        self._next_block = end
        data = self._fetch(first * _BLOCK, min(end * _BLOCK, self._size) - first * _BLOCK)
        for block in range(first, end):
            # A copy: otherwise one wanted block would keep all its neighbours in memory.
            self._blocks[block] = memoryview(bytes(data[(block - first) * _BLOCK :][:_BLOCK]))
        while len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)

    def _fetch(self, start: int, size: int) -> memoryview:
        data = np.empty(size, np.uint8).data
        # Equal parts: a small one at the end would cost a round trip of its own.
        step = -(-size // max(1, size // _PART)) or 1
        if step >= size:
            self._read_into(start, [data])
            return data

        def part(at: int) -> None:
            self._read_into(start + at, [data[at : at + step]])

        list(_parts.map(part, range(0, size, step)))
        return data
