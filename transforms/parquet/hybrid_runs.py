"""Parquet's hybrid of repeated and bit-packed runs, which holds levels and the places of values in a dictionary.

Whole arrays are decoded at once where a program has written many runs of one form. Where the bytes are of a form that would
take a step of Python for every few values, or are malformed, the functions here say so, and Arrow decodes them.
(https://parquet.apache.org/docs/file-format/data-pages/encodings/)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .thrift import Malformed, varint

# Of runs that have to be looked at one by one.
_MOST_RUNS = 4096
_MOST_WIDTH = 32


@dataclass(frozen=True, slots=True)
class _Run:
    """`values` values, either packed in groups of 8, or one that is repeated; its bytes are `body` to `end` (exclusive)."""

    packed: bool
    values: int
    head: int
    body: int
    end: int


def _run_at(data: bytes, at: int, width: int) -> _Run | None:
    """None at the end. Raises `Malformed`."""
    if at >= len(data):
        return None
    try:
        head, body = varint(data, at)
    except IndexError as error:
        raise Malformed from error
    count = head >> 1
    end = body + (count * width if head & 1 else (width + 7) // 8)
    if not count or end > len(data):
        raise Malformed
    return _Run(bool(head & 1), count * 8 if head & 1 else count, at, body, end)


def all_equal(levels: bytes, count: int, width: int, value: int) -> bool:
    """Whether the first `count` levels are all of that value."""
    at = passed = 0
    try:
        for _ in range(_MOST_RUNS):
            if (run := _run_at(levels, at, width)) is None:
                return False
            values = _bits(levels[run.body : run.end], width) if run.packed else [levels[run.body]]
            if any(one != value for one in values[: count - passed]):
                return False
            passed, at = passed + run.values, run.end
            if passed >= count:
                return True
    except Malformed:
        return False
    return False


def _bits(packed: bytes, width: int) -> list[int]:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").reshape(-1, width)
    return (bits << np.arange(width)).sum(axis=1).tolist()


def of_one_length(levels: bytes, count: int, before: int, length: int) -> bool:
    """Whether `count` repetition levels say that a list begins with each value whose number is a multiple of `length`, and none
    with another; the first of these values has the number `before`.

    Levels of such lists soon repeat, byte by byte: only the first period and what follows the last is decoded.
    """
    at = passed = looked_at = 0
    periodic = False
    try:
        while passed < count and looked_at < _MOST_RUNS:
            if (run := _run_at(levels, at, 1)) is None:
                return False
            if not _begins(levels, run, min(run.values, count - passed), before + passed, length):
                return False
            passed, at, looked_at = passed + run.values, run.end, looked_at + 1
            if not periodic and passed % length == 0:
                periodic = True
                copies = count // passed - 1  # the last run may be written otherwise
                if copies > 1 and levels[at : copies * at] == levels[: (copies - 1) * at]:
                    passed, at = passed * copies, at * copies
    except Malformed:
        return False
    return passed >= count


def _begins(levels: bytes, run: _Run, values: int, number: int, length: int) -> bool:
    if not run.packed:
        to_next = -number % length
        return to_next >= values if levels[run.body] else to_next == 0 and (values == 1 or length == 1)
    found = np.unpackbits(np.frombuffer(levels, np.uint8, run.end - run.body, run.body), bitorder="little")[:values]
    return bool(np.array_equal(found, (number + np.arange(values)) % length != 0))


def unpacked(data: Any, count: int) -> np.ndarray[Any, np.dtype[np.int32]] | None:
    """`count` places in a dictionary, whose width is the first byte; None where they are malformed, or in too many runs."""
    if not len(data) or data[0] > _MOST_WIDTH:
        return None
    width, at, passed = data[0], 1, 0
    places = np.empty(count, np.int32)
    if not width:
        places.fill(0)
        return places
    try:
        for _ in range(_MOST_RUNS):
            if passed == count:
                return places
            if (run := _run_at(data, at, width)) is None:
                return None
            if run.packed:
                runs = _alike(data, run)
                some = _of_groups(data, run, runs, width)[: count - passed]
                at = run.head + runs * (run.end - run.head)
            else:
                some = np.full(min(run.values, count - passed), int.from_bytes(data[run.body : run.end], "little"))
                at = run.end
            places[passed : passed + len(some)] = some
            passed += len(some)
    except Malformed:
        return None
    return None


def _alike(data: Any, run: _Run) -> int:
    """How many runs from this one on have the same header, and so the same length."""
    size, head = run.end - run.head, run.body - run.head
    there = (len(data) - run.head) // size
    alike = 1
    for most in (
        min(16, there),
        there,
    ):  # few where forms vary: all of what is left must not be looked at again and again
        each = np.frombuffer(data, np.uint8, most * size, run.head).reshape(most, size)
        same = (each[:, :head] == each[0, :head]).all(axis=1)
        alike = most if same.all() else int(same.argmin())
        if alike < most:
            break
    return alike


def _of_groups(data: Any, run: _Run, runs: int, width: int) -> np.ndarray[Any, Any]:
    """The values of `runs` runs that are packed alike: of each group of 8, `width` bytes."""
    size, head = run.end - run.head, run.body - run.head
    groups = runs * run.values // 8
    packed = np.empty(groups * width + 8, np.uint8)  # a value is read with what follows it
    each = np.frombuffer(data, np.uint8, runs * size, run.head).reshape(runs, size)
    packed[: groups * width].reshape(runs, -1)[:] = each[:, head:]
    word = np.dtype("<u4" if width <= 25 else "<u8")
    values: Any = np.empty((groups, 8), word)
    for number in range(8):
        byte, bit = divmod(number * width, 8)
        words: Any = np.ndarray((groups,), word, packed, byte, (width,))
        np.right_shift(words, word.type(bit), out=values[:, number])
    values &= word.type((1 << width) - 1)
    return values.reshape(-1).astype(np.uint32, copy=False).view(np.int32)
