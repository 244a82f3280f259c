"""Many Thrift structs of one layout, read side by side with numpy: pages' headers, and column chunks in a footer.

What one program writes of many columns differs in numbers and texts, and is alike in all the bytes that say which fields there
are. A struct whose bytes are those of another that was read one by one has the same fields.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .thrift import BINARY, BOOLS, I32, INTEGERS, LIST, STRUCT, Malformed, varint

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Path = tuple[int, ...]
"""The ids of a field and of the structs around it, from the outermost on; a list's members have the id 0."""
_MOST_BYTES, _MOST_STEPS, _MOST_NESTED = 1024, 256, 5
_NUMBER, _TEXT, _END = -1, -2, -3
_MOST_VARINT = 10


class _Unusual(Exception):
    """It is not described as a layout."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Bytes that structs have in common, each with what comes after them: a number, a text, or the struct's end."""

    steps: tuple[tuple[bytes, int], ...]
    asked: int
    kind: int

    @property
    def first(self) -> int:
        return self.steps[0][0][0]

    def match(self, data: Bytes, starts: Integers) -> tuple[Integers, Integers, list[Integers], int]:
        """Which of the structs that start there have this layout (their indices in `starts`), where they end, and for each
        number asked for, its values. And the work that it took, in structs times steps.
        """
        lanes, at, work = np.arange(len(starts)), starts, 0
        numbers: list[Integers] = [at] * self.asked
        for literal, then in self.steps:
            work += len(lanes)
            same = at + (len(literal) + _MOST_VARINT) <= len(data)
            for offset, byte in enumerate(literal):
                same &= data.take(at + offset, mode="clip") == byte
            at = at + len(literal)
            if then == _TEXT:
                size = data.take(at, mode="clip")
                same &= size < 128
                at = at + size + 1
            elif then >= 0:
                numbers[then], at, sound = _numbers(data, at, self.kind)
                same &= sound
            elif then == _NUMBER:
                at, sound = _past_numbers(data, at)
                same &= sound
            if not same.all():
                lanes, at, numbers = lanes[same], at[same], [each[same] for each in numbers]
        return lanes, at, numbers, work


def _numbers(data: Bytes, at: Integers, kind: int) -> tuple[Integers, Integers, Any]:
    """The integers of that type that begin there, where they end, and which are sound."""
    byte = data.take(at, mode="clip")
    more = byte > 127
    at = at + 1
    if not more.any():
        value = byte.astype(np.int64)
        return (value >> 1) ^ -(value & 1), at, ~more
    value = (byte & 127).astype(np.uint64)
    for shift in range(7, 7 * _MOST_VARINT, 7):
        byte = data.take(at, mode="clip") * more
        value |= (byte & np.uint8(127)).astype(np.uint64) << np.uint64(shift)
        at = at + more
        more = byte > 127
        if not more.any():
            break
    if kind == I32:
        value &= np.uint64(0xFFFFFFFF)
    return (value >> np.uint64(1)).view(np.int64) ^ -(value & np.uint64(1)).view(np.int64), at, ~more


def _past_numbers(data: Bytes, at: Integers) -> tuple[Integers, Any]:
    more = data.take(at, mode="clip") > 127
    at = at + 1
    for _ in range(_MOST_VARINT - 1):
        if not more.any():
            break
        at, more = at + more, more & (data.take(at, mode="clip") > 127)
    return at, ~more


def layout_of(data: Any, at: int, asked: Mapping[Path, int], kind: int, same: Collection[Path] = ()) -> Layout | None:
    """The layout of the struct that starts there; None where it is unusual, or lacks a number of those `asked`, which are
    numbered from 0. Numbers of `same` are a part of it. All these numbers have to be of that type.
    """
    reading = _Reading(data, at, asked, kind, same)
    try:
        reading.struct(())
    except (_Unusual, IndexError, Malformed):
        return None
    if {then for _, then in reading.steps if then >= 0} != set(asked.values()):
        return None
    return Layout((*reading.steps, (bytes(reading.literal), _END)), len(asked), kind)


class _Reading:
    def __init__(self, data: Any, at: int, asked: Mapping[Path, int], kind: int, same: Collection[Path]) -> None:
        self._data, self._at, self._asked, self._kind, self._same = data, at, asked, kind, same
        self.steps: list[tuple[bytes, int]] = []
        self.literal = bytearray()
        self._bytes = 0

    def struct(self, path: Path) -> None:
        if len(path) > _MOST_NESTED:
            raise _Unusual
        last = 0
        while head := self._byte():
            # Ids only grow, so that no field is there twice.
            if head < 16:
                raise _Unusual
            last += head >> 4
            self._value(head & 15, (*path, last))

    def _value(self, kind: int, path: Path) -> None:
        if kind != self._kind and (path in self._asked or path in self._same):
            raise _Unusual
        if kind in INTEGERS:
            _, end = varint(self._data, self._at)
            if path in self._same:
                while self._at < end:
                    self._byte()
            else:
                self._at = end
                self._step(self._asked.get(path, _NUMBER))
        elif kind == BINARY:
            if (size := self._data[self._at]) > 127:
                raise _Unusual
            self._at += 1 + size
            self._step(_TEXT)
        elif kind == STRUCT:
            self.struct(path)
        elif kind == LIST:
            head = self._byte()
            if head >> 4 == 15 or head & 15 in BOOLS:
                raise _Unusual
            for _ in range(head >> 4):
                self._value(head & 15, (*path, 0))
        elif kind not in BOOLS:
            raise _Unusual

    def _byte(self) -> int:
        byte: int = self._data[self._at]
        self._at, self._bytes = self._at + 1, self._bytes + 1
        if self._bytes > _MOST_BYTES:
            raise _Unusual
        self.literal.append(byte)
        return byte

    def _step(self, then: int) -> None:
        self.steps.append((bytes(self.literal), then))
        self.literal.clear()
        if len(self.steps) > _MOST_STEPS:
            raise _Unusual


# So many bytes are looked through at once.
_BLOCK = 128 << 10
# Where no more structs, or bytes, are left than these, no layout is looked for.
_FEW, _FEW_BYTES = 64, 16 << 10
# Layouts that are looked for, and structs that may be read to find them.
_MOST_LAYOUTS, _MOST_TRIED = 8, 64
# Work for each byte, in structs times steps: hostile bytes may be full of what could be a struct.
_MOST_WORK = 8

Row = Sequence[int]
"""What is kept of a struct."""


class StructsInLists:
    """Reads lists of structs in `raw`, of which many are alike.

    `one` reads the struct at a byte: where it ends, its row, and whether those of the same layout have such rows: the numbers
    of the first of `asked` that it has all of, and zeros up to the number of the longest.
    """

    def __init__(
        self, raw: bytes, one: Callable[[int], tuple[int, Row, bool]], asked: Sequence[Mapping[Path, int]], kind: int
    ) -> None:
        self._raw, self._data, self._one = raw, np.frombuffer(raw, np.uint8), one
        self._asked, self._kind, self._width = asked, kind, max(map(len, asked))
        self._layouts: list[Layout] = []
        self._work, self._tried = _MOST_WORK * len(raw), 0
        self._look(0, 0)

    def read(self, at: int, count: int, rows: array[int]) -> int:
        """So many, the first at that byte, and where the last ends; their rows are appended."""
        while count:
            if at >= self._until:
                self._look(at, at + _BLOCK)
            first = int(np.searchsorted(self._starts, at)) if self._layouts else 0
            if first < len(self._starts) and self._starts[first] == at:
                end = min(first + count, int(self._breaks[np.searchsorted(self._breaks, first, side="right")]))
                rows.frombytes(self._rows[first:end].tobytes())
                at, count = int(self._ends[end - 1]), count - (end - first)
            else:
                at, row = self._alone(at, count)
                rows.extend(row)
                count -= 1
        return at

    def _alone(self, at: int, left: int) -> tuple[int, Row]:
        end, row, alike = self._one(at)
        many = left > _FEW or len(self._raw) - at > _FEW_BYTES
        if alike and many and self._tried < _MOST_TRIED and len(self._layouts) < _MOST_LAYOUTS:
            self._tried += 1
            for asked in self._asked:
                if (layout := layout_of(self._raw, at, asked, self._kind)) is not None:
                    self._layouts.append(layout)
                    self._find(layout, end)
                    break
        return end, row

    def _look(self, at: int, until: int) -> None:
        """At a part of the bytes."""
        self._until = until
        # What may be structs, by where they start; and after which of them another does not start where it ends.
        self._starts = self._ends = self._breaks = np.empty(0, np.int64)
        self._rows = np.empty((0, self._width), np.int64)
        for layout in self._layouts:
            self._find(layout, at)

    def _find(self, layout: Layout, at: int) -> None:
        starts = np.flatnonzero(self._data[at : self._until] == layout.first) + at
        if not len(starts) or self._work < 0:
            return
        lanes, ends, numbers, work = layout.match(self._data, starts)
        self._work -= work
        rows = np.zeros((len(lanes), self._width), np.int64)
        for i, each in enumerate(numbers):
            rows[:, i] = each
        starts = np.concatenate([self._starts, starts[lanes]])
        order = np.argsort(starts, kind="stable")
        self._starts, self._ends = starts[order], np.concatenate([self._ends, ends])[order]
        self._rows = np.concatenate([self._rows, rows])[order]
        self._breaks = np.append(np.flatnonzero(self._ends[:-1] != self._starts[1:]) + 1, len(starts))
