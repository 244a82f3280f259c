"""Row groups in memory, each byte at its own place: Arrow reads them there without the interpreter's lock or copies."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import pyarrow as pa

from .footer import Chunk
from .guard import PageGuard

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
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        self._view = memoryview(self._memory)
        buffer = pa.py_buffer(self._memory)
        self.file, self._address = pa.BufferReader(buffer), buffer.address

    def load(self, chunks: list[Chunk], guard: PageGuard) -> None:
        """Reads chunks, in the order of their bytes, and has the guard check them."""
        first, padding = 0, guard.padding
        while first < len(chunks):
            end = first + 1
            while end < len(chunks) and chunks[end].start - chunks[end - 1].end <= _GAP:
                end += 1
            self._read(chunks[first].start, min(chunks[end - 1].end + padding, self._size))
            first = end
        for chunk in chunks:
            chunk.begin()
            guard.check(chunk, self._memory, 0, chunk.start, min(chunk.end + padding, self._size))

    def drop(self, chunks: list[Chunk]) -> None:
        """Gives their memory back, except for what others have of the first page and the last."""
        if not chunks:
            return
        page = mmap.PAGESIZE
        start, end = -(-chunks[0].start // page) * page, chunks[-1].end // page * page
        if start < end:
            self._memory.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _read(self, start: int, end: int) -> None:
        first, last = (-(-(self._address + start) // _HUGE), (self._address + end) // _HUGE)
        if first < last:  # of huge pages fewer have to be made
            with suppress(OSError):  # this kernel lacks huge pages
                self._memory.madvise(mmap.MADV_HUGEPAGE, first * _HUGE - self._address, (last - first) * _HUGE)
        self._opened.seek(start)
        while start < end:
            read = self._opened.readinto(self._view[start:end])
            if not read:
                return  # Arrow finds zeros, and says so
            start += read
