"""The pages of a whole row group in memory, checked side by side: one by one, those of thousands of columns take too long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .chunks import GroupChunks
from .guard import BATCH_BYTES, DICTIONARY_PAGE, OF_KIND, PAGE_VALUES, PREFIXED, PageGuard, encoding_field
from .layouts import Bytes, Integers, Layout, layout_of
from .thrift import I32

# Fewer chunks than these are checked one by one.
_MANY = 100
# The longest header that is read side by side.
_WINDOW = 192
# Layouts that are looked for, and headers that may be read to find them.
_MOST_LAYOUTS, _MOST_TRIED = 8, 32


@dataclass(frozen=True, slots=True)
class _Header:
    layout: Layout
    dictionary: bool
    prefixed: bool


class _Walk:
    """How far each chunk is checked, and the sizes of its dictionary and its largest page: a row unpacked, a row packed."""

    def __init__(self, chunks: GroupChunks, until: Integers) -> None:
        self.chunks, self.until = chunks, until
        self.at, self.left = chunks.starts.copy(), chunks.values.copy()
        self.dictionary, self.page = np.zeros((2, len(until)), np.int64), np.zeros((2, len(until)), np.int64)


class LoadedPages:
    """Accepts pages that are alike and within all bounds. The guard checks the others one by one: it alone refuses any."""

    def __init__(self, guard: PageGuard, memory: Any) -> None:
        """`memory` has each byte of what is loaded at its place in the file."""
        self._guard, self._memory, self._data = guard, memory, np.frombuffer(memory, np.uint8)
        self._headers: list[_Header] = []
        self._tried = 0

    def check(self, chunks: GroupChunks) -> None:
        """Raises `NotParquet` or `TooManyRows`."""
        walk = _Walk(chunks, np.minimum(chunks.ends + self._guard.padding, len(self._data)))
        going, others = np.arange(len(chunks.starts)), list[int]()
        while len(going) >= _MANY:
            accepted = self._one_page(walk, going)
            others += going[~accepted].tolist()
            more = accepted & (walk.at[going] < walk.until[going]) & (walk.left[going] > 0)
            going = going[more]
        others = sorted(others + going.tolist())
        for i, chunk in zip(others, chunks.of(np.array(others, np.intp)).each(), strict=True):
            chunk.next_header, chunk.values_left = int(walk.at[i]), int(walk.left[i])
            chunk.dictionary, chunk.page = tuple(walk.dictionary[:, i].tolist()), tuple(walk.page[:, i].tolist())
            walk.page[:, i] = self._guard.walk(chunk, self._memory, 0, chunk.start, int(walk.until[i]))
            walk.dictionary[:, i] = chunk.dictionary
        self._guard.check_totals(walk.dictionary + walk.page)

    def _one_page(self, walk: _Walk, going: Integers) -> Any:
        """Checks the next page of these chunks: which of them are past it."""
        accepted = np.zeros(len(going), np.bool_)
        windows = _windows(self._data, walk.at[going])
        for number in range(_MOST_LAYOUTS):
            rest = np.flatnonzero(~accepted)
            if not len(rest) or (number == len(self._headers) and not self._learn(walk.at[going[rest]])):
                break
            self._accept(self._headers[number], walk, going, rest, windows, accepted)
        return accepted

    def _accept(
        self, header: _Header, walk: _Walk, going: Integers, rest: Integers, windows: Bytes, accepted: Any
    ) -> None:
        guard, starts = self._guard, rest * _WINDOW
        lanes, ends, (unpacked, packed, values), _ = header.layout.match(windows, starts)
        chunks = going[rest[lanes]]
        pages = walk.at[chunks] + ends - starts[lanes]
        sound = (ends <= starts[lanes] + _WINDOW) & (walk.at[chunks] + _WINDOW <= len(self._data))
        sound &= (unpacked >= 0) & (packed >= 0) & (pages + packed <= walk.until[chunks])
        sound &= (values >= 0) & (values <= PAGE_VALUES)
        if guard.rows > 1 and (header.dictionary or header.prefixed):
            sound &= ~(walk.chunks.repeated[chunks] & (unpacked * guard.rows > BATCH_BYTES))
        lanes, chunks, after = lanes[sound], chunks[sound], (pages + packed)[sound]
        sizes = np.stack([unpacked, packed])[:, sound]
        accepted[rest[lanes]] = True
        walk.at[chunks] = after
        if header.dictionary:
            walk.dictionary[:, chunks] = sizes
        else:
            walk.left[chunks] -= values[sound]
            before = walk.page[:, chunks]
            larger = (sizes[0] > before[0]) | ((sizes[0] == before[0]) & (sizes[1] > before[1]))
            walk.page[:, chunks] = np.where(larger, sizes, before)

    def _learn(self, starts: Integers) -> bool:
        """Whether the header at one of the first few has a layout, that was not known."""
        for at in starts[:4].tolist():
            if self._tried == _MOST_TRIED:
                return False
            self._tried += 1
            if (header := _header_at(self._memory, at)) is not None:
                self._headers.append(header)
                return True
        return False


def _windows(data: Bytes, at: Integers) -> Bytes:
    """The bytes from there on, in memory of their own: what is scattered over a row group is slow to reach."""
    each = np.lib.stride_tricks.sliding_window_view(data, _WINDOW)
    return each[np.minimum(at, len(each) - 1)].reshape(-1)


def _header_at(memory: Any, at: int) -> _Header | None:
    for kind, field in OF_KIND.items():
        if memory[at : at + 2] == bytes([1 << 4 | I32, 2 * kind]):
            same = {(1,), (field, encoding_field(kind))}
            layout = layout_of(memory, at, {(2,): 0, (3,): 1, (field, 1): 2}, I32, same)
            prefixed = layout is not None and any(PREFIXED.search(literal) for literal, _ in layout.steps)
            return _Header(layout, kind == DICTIONARY_PAGE, prefixed) if layout is not None else None
    return None
