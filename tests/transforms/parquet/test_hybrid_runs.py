"""Levels and places in a dictionary are those that Arrow's own encoder wrote, or are left to Arrow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.parquet.hybrid_runs import all_equal, of_one_length, unpacked


def number(value: int) -> bytes:
    text = b""
    while value > 127:
        text, value = text + bytes([value & 127 | 128]), value >> 7
    return text + bytes([value])


def packed_run(values: Any, width: int) -> bytes:
    """Of the values, filled up with zeros to groups of eight."""
    values = np.concatenate([values, np.zeros(-len(values) % 8, np.int64)]).astype(np.int64)
    bits = (values[:, None] >> np.arange(width)) & 1
    return number(len(values) // 8 << 1 | 1) + np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def repeated_run(value: int, times: int, width: int) -> bytes:
    return number(times << 1) + value.to_bytes((width + 7) // 8, "little")


def encoded(values: Any, width: int, cuts: list[int]) -> bytes:
    """Runs that end at the cuts, repeated ones wherever the values are all equal."""
    data, start = b"", 0
    for end in [*cuts, len(values)]:
        part = values[start:end]
        if not len(part):
            continue
        last = end == len(values)
        if len(set(part.tolist())) == 1:
            data += repeated_run(int(part[0]), len(part), width)
        elif len(part) % 8 == 0 or last:
            data += packed_run(part, width)
        else:
            whole = len(part) - len(part) % 8
            data += packed_run(part[:whole], width) if whole else b""
            data += b"".join(repeated_run(int(value), 1, width) for value in part[whole:])
        start = end
    return data


@given(st.integers(1, 31), st.integers(1, 3000), st.integers(0, 1 << 30), st.lists(st.integers(1, 2999), max_size=6))
@settings(max_examples=80, deadline=None)
def test_places_are_what_was_packed(width: int, count: int, seed: int, cuts: list[int]) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, 1 << width, count)
    for _ in range(3):
        at = int(random.integers(0, count))
        values[at : at + int(random.integers(0, 40))] = values[at]
    data = bytes([width]) + encoded(values, width, sorted({cut for cut in cuts if cut < count}))
    found = unpacked(data, count)
    assert found is not None
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("group", [1, 8, 63, 64, 100])
def test_runs_of_one_form_may_end_in_another(group: int) -> None:
    values = np.random.default_rng(group).integers(0, 1 << 19, 8 * group * 40 + 5)
    cuts = list(range(8 * group, 8 * group * 40, 8 * group))
    data = bytes([19]) + encoded(values, 19, cuts)
    np.testing.assert_array_equal(unpacked(data, len(values)), values)


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_places_that_are_cut_short_are_left_to_arrow(cut: int) -> None:
    data = b"\x05" + encoded(np.arange(80) % 32, 5, [])
    assert unpacked(data, 80) is not None
    assert unpacked(data[:-cut], 80) is None
    assert unpacked(b"", 80) is None
    assert unpacked(b"\x21" + data[1:], 80) is None


def test_places_in_very_many_runs_are_left_to_arrow() -> None:
    """A step of Python each would be slower than Arrow; and a hostile page has nothing else."""
    data = b"\x01" + (repeated_run(1, 1, 1) + repeated_run(0, 1, 1)) * 50_000
    assert unpacked(data, 100_000) is None


def levels_of(rows: int, length: int) -> Any:
    return (np.arange(rows * length) % length != 0).astype(np.int64)


@given(st.integers(1, 200), st.integers(1, 70), st.integers(0, 69), st.sampled_from([8, 64, 504, 4096]))
@settings(max_examples=80, deadline=None)
def test_lists_of_one_length_are_found_whoever_wrote_them(rows: int, length: int, before: int, run: int) -> None:
    levels = levels_of(rows + 2, length)[before % length :][: rows * length]
    data = encoded(levels, 1, list(range(run, len(levels), run)))
    assert of_one_length(data, len(levels), before % length, length)
    assert not of_one_length(data, len(levels) + 8, before % length, length)
    if length > 1:
        assert not of_one_length(data, len(levels), before % length + 1, length)
        assert (
            not of_one_length(data, len(levels), before % length, length + 1) or len(levels) <= length - before % length
        )


@given(st.integers(2, 300), st.integers(1, 70), st.data())
@settings(max_examples=80, deadline=None)
def test_a_single_other_level_is_noticed(rows: int, length: int, data: Any) -> None:
    """Wherever it is, also in the middle of what repeats byte by byte."""
    levels = levels_of(rows, length)
    at = data.draw(st.integers(0, len(levels) - 1))
    levels[at] ^= 1
    written = encoded(levels, 1, list(range(length, len(levels), length)))
    assert not of_one_length(written, len(levels), 0, length)


def test_levels_that_all_are_of_one_value() -> None:
    assert all_equal(repeated_run(3, 1000, 2), 1000, 2, 3)
    assert all_equal(repeated_run(3, 500, 2) + packed_run(np.full(504, 3), 2), 1000, 2, 3)
    assert all_equal(packed_run(np.array([3, 3, 3, 3, 3]), 2), 5, 2, 3)
    assert not all_equal(repeated_run(3, 999, 2), 1000, 2, 3)
    assert not all_equal(repeated_run(3, 999, 2) + repeated_run(2, 1, 2), 1000, 2, 3)
    assert not all_equal(packed_run(np.array([3, 3, 3, 2, 3]), 2), 5, 2, 3)
    assert not all_equal(b"\x80", 5, 2, 3)
