"""Files that differ in what Parquet stores alike, or in width, are read as the first one's type; nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headrace.transforms.errors import ColumnError
from headrace.transforms.parquet.arrow_types import as_type, read_alike
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.shards.shard import Shard
from headrace.transforms.storage import open_store
from tests.support.loose import loose

TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
WHOLE = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
REAL = [pa.float32(), pa.float64()]
ZONES = [pa.timestamp("ms", "UTC"), pa.timestamp("us", "+00:00"), pa.timestamp("us", "Europe/Berlin")]


@st.composite
def kinds(draw: Any, depth: int = 2) -> tuple[pa.DataType, pa.DataType, Any]:
    """A type, another that it is read alike as, and a strategy for values of both."""
    which = draw(st.integers(0, 7 if depth else 3))
    if which == 0:
        return draw(st.sampled_from(TEXTS)), draw(st.sampled_from(TEXTS)), st.text(max_size=5)
    if which == 1:
        narrow, wide = sorted(draw(st.tuples(*[st.integers(0, 3)] * 2)))
        return WHOLE[narrow], WHOLE[wide], st.integers(-128, 127)
    if which == 2:
        narrow, wide = sorted(draw(st.tuples(*[st.integers(0, 1)] * 2)))
        return REAL[narrow], REAL[wide], st.floats(width=32, allow_nan=False)
    if which == 3:
        return ZONES[draw(st.integers(0, 1))], ZONES[draw(st.integers(1, 2))], st.integers(0, 2**40)
    found, wanted, values = draw(kinds(depth - 1))
    if which == 4:
        # Of a required dictionary without values Arrow itself makes a struct that is not valid.
        required = pa.field("a", found, nullable=pa.types.is_dictionary(found) or draw(st.booleans()))
        members = st.fixed_dictionaries({"a": values})
        return (
            pa.struct([required]),
            pa.struct([pa.field("a", wanted, nullable=pa.types.is_dictionary(wanted) or draw(st.booleans()))]),
            members,
        )
    if pa.types.is_dictionary(found) or pa.types.is_dictionary(wanted):
        return found, wanted, values
    lists = [pa.list_(pa.field("element", found)), pa.large_list(pa.field("item", found))]
    if which == 5:
        return (
            draw(st.sampled_from(lists)),
            draw(st.sampled_from([pa.list_(wanted), pa.large_list(wanted)])),
            st.lists(values, max_size=3),
        )
    pairs = st.lists(values, min_size=2, max_size=2)
    if which == 6:
        return pa.list_(found, 2), draw(st.sampled_from([pa.large_list(wanted), pa.list_(wanted, 2)])), pairs
    return draw(st.sampled_from(lists)), pa.list_(wanted, 2), pairs


def is_valid(array: pa.Array[Any]) -> bool:
    """Arrow itself makes arrays that are not: of a null around an empty dictionary, or in a fixed-size list."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


@given(kinds(), st.data())
@settings(max_examples=200, deadline=None)
def test_values_stay_what_they_are(pair: tuple[pa.DataType, pa.DataType, Any], data: Any) -> None:
    found, wanted, values = pair
    assert read_alike(found, wanted)
    # Arrow cannot decode a null in a fixed-size list.
    some = values if pa.types.is_fixed_size_list(found) else st.none() | values
    array = pa.array(data.draw(st.lists(some, max_size=6)), found)
    assume(is_valid(array))
    skip = data.draw(st.integers(0, len(array)))
    read = as_type(array.slice(skip), wanted)
    read.validate(full=True)
    assert read.type == wanted
    assert loose(read).to_pylist() == loose(array.slice(skip)).to_pylist()


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (pa.int64(), pa.int32()),
        (pa.int32(), pa.uint32()),
        (pa.int64(), pa.float64()),
        (pa.float64(), pa.float32()),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.timestamp("us"), pa.timestamp("ns")),
        (pa.binary(), pa.string()),
        (pa.bool_(), pa.int8()),
        (pa.string(), pa.null()),
        (pa.list_(pa.int32(), 3), pa.list_(pa.int32(), 2)),
        (pa.struct([("a", pa.int32())]), pa.struct([("b", pa.int32())])),
        (pa.decimal128(9, 2), pa.decimal128(9, 3)),
    ],
    ids=str,
)
def test_what_could_lose_a_value_is_not_alike(found: pa.DataType, wanted: pa.DataType) -> None:
    assert not read_alike(found, wanted)


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int64())], ids=str)
def test_a_list_of_another_length_than_the_first_file_says_is_refused(kind: pa.DataType, tmp_path: Path) -> None:
    wanted = pa.list_(pa.int64(), 2)
    assert as_type(pa.array([[1, 2], None], kind), wanted).to_pylist() == [[1, 2], None]
    store, shard, names = source(tmp_path, pa.table({"v": pa.array([[1, 2], [3]], kind)}))
    with pytest.raises(
        ColumnError, match=r"a\.parquet has values in column 'v' .*a list of 1 where each is of the length 2"
    ):
        list(read_batches(store, shard, names, 10, pa.schema([("v", wanted)])))


def source(folder: Path, table: pa.Table) -> tuple[Any, Shard, list[str]]:
    path = str(folder / "a.parquet")
    pq.write_table(table, path)
    store = open_store(path)
    ref = store.stat(path)
    footer = read_footer(store, ref)
    return store, Shard("out", ref, 0, footer.rows, (0, 1), ref.size), footer.schema.names


def test_a_null_in_a_member_that_the_first_file_requires_names_the_file(tmp_path: Path) -> None:
    table = pa.table({"s": pa.array([{"a": 1}, {"a": None}], pa.struct([("a", pa.int32())]))})
    types = pa.schema([("s", pa.struct([pa.field("a", pa.int64(), nullable=False)]))])
    store, shard, names = source(tmp_path, table)
    with pytest.raises(ColumnError, match=r"a\.parquet has values in column 's' .*1 nulls in the member 'a'"):
        list(read_batches(store, shard, names, 10, types))


def test_a_column_that_is_there_twice_names_the_file(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["id", "x", "x"])
    store, shard, _ = source(tmp_path, table)
    (batch,) = read_batches(store, shard, ["id"], 10)
    assert batch.to_pylist() == [{"id": 1}]
    with pytest.raises(ColumnError, match=r"a\.parquet has several columns named 'x'"):
        list(read_batches(store, shard, ["id", "x"], 10))
