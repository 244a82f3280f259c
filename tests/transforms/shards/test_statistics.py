"""Statistics of columns: what merges is what was counted at once, and what is counted is what numpy and Arrow say."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.shards.column_statistics import (
    ALL_ROWS,
    EVERY,
    MOST_VALUES,
    Column,
    Columns,
    decode,
    encode,
    merge,
)
from headrace.transforms.shards.number_bins import Numbers

FLOATS = st.lists(st.floats(width=64), max_size=60)
MANY = 150_001  # numbers are added some ten thousands at a time


def counted(values: Any) -> Numbers:
    numbers = Numbers()
    numbers.add(np.asarray(values, np.float64))
    return numbers


@given(FLOATS, FLOATS)
def test_parts_merge_to_the_whole(left: list[float], right: list[float]) -> None:
    parts, whole = counted(left), counted(left + right)
    parts.merge(counted(right))
    parts.settle()
    whole.settle()
    assert (parts.count, parts.nan, parts.infinite) == (whole.count, whole.nan, whole.infinite)
    assert (parts.least, parts.most, parts.bits) == (whole.least, whole.most, whole.bits)
    assert parts.keys.tolist() == whole.keys.tolist()
    assert parts.counts.tolist() == whole.counts.tolist()


@given(st.lists(FLOATS, max_size=8), st.randoms())
def test_shards_merge_to_the_same_bits_in_whatever_order(shards: list[list[float]], random: Any) -> None:
    parts = [counted(shard) for shard in shards]
    whole = Numbers()
    for part in parts:
        whole.merge(part)
    random.shuffle(parts)
    groups = [Numbers() for _ in range(3)]
    for part in parts:
        random.choice(groups).merge(part)
    random.shuffle(groups)
    again = Numbers()
    for group in groups:
        again.merge(group)
    assert json.dumps(again.dump()) == json.dumps(whole.dump())


@given(FLOATS)
def test_numbers_merged_with_none_are_the_same(values: list[float]) -> None:
    alone, merged = counted(values), Numbers()
    merged.merge(counted(values))
    assert json.dumps(merged.dump()) == json.dumps(alone.dump())


@given(FLOATS)
def test_each_number_is_in_its_bin_and_nothing_else_is(values: list[float]) -> None:
    numbers, array = counted(values), np.array(values, np.float64)
    finite = array[np.isfinite(array)]
    assert numbers.nan == np.isnan(array).sum()
    assert numbers.infinite == np.isinf(array).sum()
    spans, total = list(numbers.spans()), 0
    assert spans == sorted(spans)
    for low, high, count in spans:
        inside = (finite >= low) & (finite < high) if low >= 0 else (finite > low) & (finite <= high)
        if low < 0 and high == 0:
            inside &= np.signbit(finite)
        elif low == 0:
            inside &= ~np.signbit(finite)
        top = (finite == high) & (abs(high) == np.finfo(np.float64).max)
        bottom = (finite == low) & (abs(low) == np.finfo(np.float64).max)
        assert (inside | top | bottom).sum() == count, (low, high)
        total += count
    assert total == len(finite)


def test_moments_and_quantiles_are_numpys() -> None:
    values = np.random.default_rng(3).normal(5, 2, 20_000)
    numbers = counted(values)
    assert numbers.mean == pytest.approx(values.mean())
    assert numbers.deviation == pytest.approx(values.std())
    old = {key: value for key, value in numbers.dump().items() if key != "spread"}
    assert Numbers.load(old | {"squares": float((values**2).sum())}).deviation == pytest.approx(values.std())
    for share in (0.01, 0.5, 0.99):
        assert numbers.quantile(share) == pytest.approx(np.quantile(values, share), rel=1 / 16)


@pytest.mark.parametrize("middle", [0, 5, -1.7e9])
def test_numbers_far_from_0_have_their_deviation(middle: float) -> None:
    """As times have, added in batches of which the first are far from the last, and merged over shards."""
    values = middle + np.random.default_rng(4).normal(0, 1, 30_000) + np.repeat([0, 0, 3], 10_000)
    shards = [Numbers(), Numbers()]
    for i, batch in enumerate(np.array_split(values, 12)):
        shards[i % 2].add(batch)
    whole = Numbers()
    for shard in shards:
        whole.merge(Numbers.load(shard.dump()))
    assert whole.mean == pytest.approx(values.mean())
    assert whole.deviation == pytest.approx(values.std(), rel=1e-5)
    assert counted([0.1] * 100).deviation == pytest.approx(0, abs=1e-12)


@settings(max_examples=15)
@given(
    st.sampled_from([np.float16, np.float32, np.float64, np.int32, np.int64]),
    st.sampled_from([0, 300, -2_000]),
    st.dictionaries(st.integers(0, MANY - 1), st.sampled_from([math.nan, math.inf, -math.inf]), max_size=9),
    st.sampled_from([0, 1, EVERY]),
)
def test_many_numbers_added_at_once_are_numpys(kind: Any, middle: float, odd: dict[int, float], weight: int) -> None:
    values = np.random.default_rng(6).normal(middle, 100, MANY).astype(kind)
    if values.dtype.kind == "f":
        for at, value in odd.items():
            values[at] = value
    numbers, finite = Numbers(), values[np.isfinite(values)].astype(np.float64)
    numbers.add(values, weight)
    assert (numbers.count, numbers.nan) == (len(finite), np.isnan(values).sum())
    assert numbers.infinite == np.isinf(values).sum()
    assert (numbers.least, numbers.most) == (finite.min(), finite.max())
    assert numbers.total == pytest.approx(finite.sum(), rel=1e-12, abs=1e-12 * np.abs(finite).sum())
    assert numbers.deviation == pytest.approx(finite.std(), rel=1e-12)
    keys, counts = np.unique(finite.view(np.uint64) >> 48, return_counts=True)
    numbers.settle()
    assert numbers.keys.tolist() == (keys.tolist() if weight else [])
    assert numbers.counts.tolist() == ((counts * weight).tolist() if weight else [])


@pytest.mark.parametrize("at", [0, MANY // 2, MANY - 1])
def test_sums_too_large_for_a_float_are_left_out_wherever_the_numbers_are(at: int) -> None:
    values = np.ones(MANY)
    values[at] = 1e200
    numbers = counted(values)
    assert (numbers.count, numbers.most, numbers.deviation) == (MANY, 1e200, None)
    assert numbers.mean == pytest.approx(1e200 / MANY)
    values[[at, at - 1]] = sys.float_info.max
    numbers = counted(values)
    assert (numbers.count, numbers.infinite, numbers.mean, numbers.deviation) == (MANY, 0, None, None)
    assert Numbers.load(numbers.dump()).dump() == numbers.dump()


def test_bins_are_bounded_whatever_comes_and_merge_all_the_same() -> None:
    bits = np.random.default_rng(5).integers(0, 2**64, 50_000, np.uint64)
    one, other = counted(bits.view(np.float64)), counted(np.linspace(1, 2, 100))
    one.settle()
    assert (len(one.keys), one.bits) == (4094, 0)  # every exponent of either sign
    normal = counted(np.random.default_rng(5).normal(0, 1e3, 200_000))
    normal.settle()
    assert len(normal.keys) <= 1024
    other.merge(one)
    other.settle()
    assert int(other.counts.sum()) == one.count + 100
    assert Numbers.load(one.dump()).dump() == one.dump()
    assert len(encode([Column("x", "double", numbers=one)])[0]) < 64 << 10


def column(array: pa.Array[Any]) -> Column:
    """Of the array in two parts, the second one sliced, kept and read back."""
    made = Columns(pa.schema([pa.field("c", array.type)]), ["c"])
    for part in (array.slice(0, len(array) // 2), array.slice(len(array) // 2)):
        made.add(pa.RecordBatch.from_arrays([part], ["c"]))
    (found,) = decode(made.encode()[0])
    return found


def test_scores_are_counted_by_class() -> None:
    scores = np.random.default_rng(1).random((501, 7)).astype(np.float32)
    scores[3, 2] = np.nan
    found = column(pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), 7))
    known = np.delete(scores, 3, axis=0)
    assert found.classes is not None
    assert found.classes.tolist() == np.bincount(known.argmax(1), minlength=7).tolist()
    assert found.largest is not None
    assert (found.largest.count, found.largest.most) == (500, known.max())
    assert found.numbers is not None
    assert (found.rows, found.nulls, found.numbers.nan, found.numbers.count) == (501, 0, 1, 501 * 7 - 1)


@pytest.mark.parametrize(
    ("array", "nulls", "count", "values"),
    [
        (pa.array([3, 1, None, 3], pa.int16()), 1, 3, {"3": 2, "1": 1}),
        (pa.array([True, None, False, True]), 1, None, {"true": 2, "false": 1}),
        (pa.array(["röd", "röd", None, ""]), 1, 3, {"röd": 2, "": 1}),
        (pa.array([b"\xff", b"a"], pa.binary()), 0, 2, {"\ufffd": 1, "a": 1}),
        (pa.array(["a", "b", "a"]).dictionary_encode(), 0, 3, {"a": 2, "b": 1}),
        (pa.array(["x" * 65, "y"]), 0, 2, None),
        (pa.array([str(i) for i in range(MOST_VALUES + 1)]), 0, MOST_VALUES + 1, None),
        (pa.array([[1.5, None], None, [], [2.5, 2.5, 2.5]], pa.list_(pa.float64())), 1, 4, None),
        (pa.array([[[1.0], [2.0]], [[3.0], [4.0]]], pa.list_(pa.list_(pa.float32(), 1), 2)), 0, 4, None),
        (pa.array([[1, 2], [3, 3]], pa.list_(pa.int32(), 2)), 0, 4, {"1": 1, "2": 1, "3": 2}),
        (pa.array([1.0, float("inf")], pa.float16()), 0, 1, None),
        (pa.array([None, {"a": 1}], pa.struct([("a", pa.int64())])), 1, None, None),
        (pa.array([], pa.float32()), 0, 0, None),
    ],
    ids=str,
)
def test_each_kind_of_column(
    array: pa.Array[Any], nulls: int, count: int | None, values: dict[str, int] | None
) -> None:
    found = column(array)
    assert (found.rows, found.nulls, found.values) == (len(array), nulls, values)
    assert (found.numbers.count if found.numbers is not None else None) == count


def test_later_batches_stand_for_those_that_are_left_out() -> None:
    random = np.random.default_rng(2)
    values = np.concatenate([random.integers(0, 4, ALL_ROWS), random.integers(0, 4, 1_000 * 16)])
    made = Columns(pa.schema([("c", pa.int64())]), ["c"])
    for start in range(0, len(values), 1_000):
        made.add(pa.RecordBatch.from_arrays([pa.array(values[start : start + 1_000])], ["c"]))
    (found,) = decode(made.encode()[0])
    assert found.numbers is not None
    assert found.values is not None
    assert (found.rows, found.numbers.count, found.numbers.total) == (len(values), len(values), values.sum())
    assert found.numbers.binned == sum(found.values.values()) == 17_000 + 2 * EVERY * 1_000
    for value in "0123":
        assert found.values[value] / found.numbers.binned == pytest.approx(0.25, abs=0.02)


def test_a_tensor_is_all_its_numbers() -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(24, dtype=np.float32)), 6)
    found = column(pa.ExtensionArray.from_storage(kind, storage))
    assert found.numbers is not None
    assert (found.numbers.count, found.numbers.mean, found.classes) == (24, 11.5, None)


def test_columns_of_another_type_do_not_merge_and_are_named() -> None:
    one, other = Column("x", "double"), Column("x", "int64")
    with pytest.raises(ValueError, match="x of int64 is not x of double"):
        one.merge(other)
    scores = [Column("s", "fixed_size_list<float>[n]", classes=np.zeros(n, np.int64)) for n in (2, 3)]
    into = [one]
    assert merge(into, [other, scores[0]]) == {"x"}
    assert merge(into, [scores[1]]) == {"s"}
    assert [column.name for column in into] == ["x", "s"]


@pytest.mark.parametrize("told", ["", "AAAA", "e30=", "x" * 400, encode([])[0] + "="])
def test_what_is_no_statistics_is_refused(told: str) -> None:
    with pytest.raises(ValueError, match="no statistics"):
        decode(told)


@pytest.mark.parametrize(
    "change", [{"bits": 9}, {"bins": [[1], []]}, {"bins": [[70_000], [1]]}, {"bins": [[5, -1], [1, 1]]}, {"count": -1}]
)
def test_numbers_that_contradict_themselves_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Numbers.load(counted([1.0, 2.0]).dump() | change)


def test_a_column_without_numbers_has_neither_mean_nor_quantile() -> None:
    empty = counted([math.nan])
    assert (empty.mean, empty.deviation, empty.quantile(0.5), list(empty.spans())) == (None, None, None, [])
