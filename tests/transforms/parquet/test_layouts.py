"""What is read side by side is what the reader of one struct finds; and whatever is unlike is left to that reader."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.transforms.parquet.layouts import Layout, StructsInLists, layout_of
from headrace.transforms.parquet.thrift import I32, I64, STRUCT, Malformed, fields, skip
from tests.support.hostile_parquet import Raw, struct, varint

PADDING = b"\0" * 16
ASKED = {(1,): 0, (3, 2): 1}


def made(first: int, text: bytes, second: int, *, kind: str = "l") -> bytes:
    """A struct with a bit of everything."""
    inner = struct(**{"f1": 7, "f2" + kind: second, "f4": [1, 2], "f5": [b"a", text]})
    return struct(**{"f1" + kind: first, "f2": text, "f3": inner, "f6": [struct(f1=3), struct(f1=4)]})[:-1] + b"\x11\0"


def one_by_one(data: bytes, at: int, kind: int) -> tuple[list[int], int]:
    """As the reader of one struct finds them, which passes over fields of other types. Raises `Malformed`."""
    outer, end = fields(data, at, {(1, kind), (3, STRUCT)})
    inner, _ = fields(data, outer[3, STRUCT], {(2, kind)}) if (3, STRUCT) in outer else ({}, 0)
    return [outer.get((1, kind), 0), inner.get((2, kind), 0)], end


def match(layout: Layout, structs: list[bytes]) -> tuple[bytes, list[int], dict[int, tuple[list[int], int]]]:
    """The bytes of all of them, where each begins, and of those matched their numbers and ends."""
    data = b"".join(structs) + PADDING
    starts = np.cumsum([0, *map(len, structs)])[:-1]
    lanes, ends, numbers, _ = layout.match(np.frombuffer(data, np.uint8), starts)
    of_each = zip(*(each.tolist() for each in numbers), strict=True)
    found = {i: (list(row), end) for i, row, end in zip(lanes.tolist(), of_each, ends.tolist(), strict=True)}
    return data, starts.tolist(), found


INTEGERS = st.one_of(st.integers(-70, 70), st.integers(-(1 << 63), (1 << 63) - 1))


@given(st.lists(st.tuples(INTEGERS, st.binary(max_size=40), INTEGERS), min_size=1, max_size=12))
def test_structs_alike_are_all_matched_and_their_numbers_found(values: list[tuple[int, bytes, int]]) -> None:
    structs = [made(*each) for each in values]
    layout = layout_of(structs[0], 0, ASKED, I64)
    assert layout is not None
    _, starts, found = match(layout, structs)
    ends = [start + len(each) for start, each in zip(starts, structs, strict=True)]
    assert found == {i: ([first, second], ends[i]) for i, (first, _, second) in enumerate(values)}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(
        made(draw(INTEGERS), draw(st.binary(max_size=20)), draw(INTEGERS), kind=draw(st.sampled_from(["", "l"])))
    )
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data)


@given(st.lists(damaged(), min_size=1, max_size=12), st.sampled_from([I32, I64]))
@settings(max_examples=80)
@example([b"\x86" + b"\x80" * 9 + b"\x01"], I32)
def test_whatever_is_matched_is_what_the_reader_of_one_finds(structs: list[bytes], kind: int) -> None:
    """Of damaged bytes too: then a page or a chunk that is accepted is the one that Arrow acts on."""
    layout = layout_of(made(5, b"text", 6, kind="l" if kind == I64 else ""), 0, ASKED, kind)
    assert layout is not None
    data, starts, found = match(layout, structs)
    for i, (numbers, end) in found.items():
        assert one_by_one(data, starts[i], kind) == (numbers, end)


@pytest.mark.parametrize(
    "unusual",
    [
        pytest.param(b"\x16\x02\x16\x04", id="which ends early"),
        pytest.param(b"\x16\x02\x06\x02\x04\0", id="with a field's id of its own, which may be there twice"),
        pytest.param(struct(f2l=1), id="without a number that is asked for"),
        pytest.param(struct(f1=1), id="with a number of another type"),
        pytest.param(struct(f1l=1, f2=b"x" * 200), id="with a long text"),
        pytest.param(struct(f1l=1, f2=Raw(b"\x1c" * 100 + b"\0" * 101)), id="that is deep"),
        pytest.param(struct(f1l=1)[:-1] + b"\x11" * 5000 + b"\0", id="of many fields"),
        pytest.param(struct(f1l=1, f2=[1] * 20), id="with a long list"),
        pytest.param(b"\x16\x02\x17" + bytes(9), id="with a double"),
        pytest.param(b"\x16" + b"\x80" * 10 + b"\x01\0", id="with a number too long"),
    ],
)
def test_a_struct_that_is_unusual_has_no_layout(unusual: bytes) -> None:
    assert layout_of(unusual, 0, {(1,): 0}, I64) is None


def in_list(data: bytes, count: int, asked: Any = ASKED) -> tuple[list[int], int, list[int]]:
    """The rows, the end, and where structs were read one by one."""
    alone: list[int] = []

    def one(at: int) -> tuple[int, Any, bool]:
        alone.append(at)
        numbers, end = one_by_one(data, at, I64)
        return end, numbers, True

    rows = array("q")
    end = StructsInLists(data, one, (asked,), I64).read(0, count, rows)
    return rows.tolist(), end, alone


def test_a_list_of_structs_of_a_few_layouts_is_hardly_read_one_by_one() -> None:
    made_of: Any = [
        made,
        lambda a, t, b: struct(f1l=a, f2=t, f3=struct(f2l=b)),
        lambda a, _, b: struct(f1l=a, f3=struct(f2l=b)),
    ]
    structs = [made_of[i % 3](i, b"&" * (i % 50), -i) for i in range(3_000)]
    data = b"".join(structs)
    rows, end, alone = in_list(data + PADDING, len(structs))
    assert rows == [number for i in range(3_000) for number in (i, -i)]
    assert end == len(data)
    assert len(alone) == 3


def test_in_a_list_each_struct_begins_where_the_one_before_ends() -> None:
    """Texts that hold structs are none of it."""
    inside = made(1, b"", 2)
    structs = [made(i, inside, i) for i in range(200)]
    rows, end, alone = in_list(b"".join(structs) + PADDING, 200)
    assert rows == [number for i in range(200) for number in (i, i)]
    assert end == sum(map(len, structs))
    assert len(alone) == 1


def test_bytes_full_of_what_may_be_structs_take_no_work_beyond_their_length() -> None:
    count = 100_000
    data = struct(f1l=1, f2=b"\x16" * 100, f3=struct(f2l=1)) * 20 + b"\x16" * count
    alone: list[int] = []

    def one(at: int) -> tuple[int, Any, bool]:
        alone.append(at)
        return skip(data, at, STRUCT), (0, 0), True

    with pytest.raises(Malformed):
        StructsInLists(data, one, (ASKED,), I64).read(0, 1 << 40, array("q"))
    assert varint(count)  # the structs at the start are read
    assert 1 <= len(alone) <= 3
