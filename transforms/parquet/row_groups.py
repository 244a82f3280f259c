"""Row groups in memory, each byte at its own place: Arrow reads them there without the interpreter's lock or copies."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from .chunks import GroupChunks

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_HUGE = 2 << 20
# Between chunks that are wanted, so many bytes are read rather than passed over.
_GAP = 64 << 10


class GroupsInMemory:
    """A file of the source's size in address space. Only chunks that are loaded and not dropped have content; the rest is 0.

    `opened` is a `pyarrow.NativeFile` of `size` bytes. Raises `OSError` where there is no room for so many addresses.
    """

    def __init__(self, opened: Any, size: int) -> None:
        self._opened, self._size = opened, size
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        self._view = memoryview(self.memory)
        buffer = pa.py_buffer(self.memory)
        self.file, self._address = pa.BufferReader(buffer), buffer.address

    def load(self, chunks: GroupChunks, padding: int) -> None:
        """Reads chunks, and so many bytes more."""
        if not len(chunks.starts):
            return
        apart = np.flatnonzero(chunks.starts[1:] - chunks.ends[:-1] > _GAP)
        starts, ends = chunks.starts[[0, *apart + 1]], chunks.ends[[*apart, -1]]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            self._read(start, min(end + padding, self._size))

    def drop(self, chunks: GroupChunks) -> None:
        """Gives their memory back, except for what others have of the first page and the last."""
        if not len(chunks.starts):
            return
        page = mmap.PAGESIZE
        start, end = -(-int(chunks.starts[0]) // page) * page, int(chunks.ends[-1]) // page * page
        if start < end:
            self.memory.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _read(self, start: int, end: int) -> None:
        first, last = (-(-(self._address + start) // _HUGE), (self._address + end) // _HUGE)
        if first < last:  # of huge pages fewer have to be made
            with suppress(OSError):  # this kernel lacks huge pages
                self.memory.madvise(mmap.MADV_HUGEPAGE, first * _HUGE - self._address, (last - first) * _HUGE)
        self._opened.seek(start)
        while start < end:
            read = self._opened.readinto(self._view[start:end])
            if not read:
                return  # Arrow finds zeros, and says so
            start += read
