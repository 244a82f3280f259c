"""Rows that a table marks as deleted are left out, whatever they are cut into."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.shards.deleted_rows import (
    Positions,
    deleted_count,
    deleted_in,
    drop_rows,
    live_rows,
    pack_positions,
    stored_version,
    unpack_positions,
    without_rows,
)
from headrace.transforms.storage import ObjectRef

POSITIONS = st.sets(st.integers(0, 60)).map(lambda some: np.array(sorted(some), np.int64))


@given(st.sets(st.integers(0, 2**62)).map(lambda some: np.array(sorted(some), np.int64)))
def test_packed_numbers_are_unpacked(positions: Positions) -> None:
    assert unpack_positions(pack_positions(positions)).tolist() == positions.tolist()


@given(POSITIONS, st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data(), st.integers(1, 7))
@settings(max_examples=200)
def test_what_is_left_is_read_and_counted(
    positions: Positions, groups: list[int], data: st.DataObject, size: int
) -> None:
    deleted = positions[positions < sum(groups)]
    first = data.draw(st.integers(0, len(groups)))
    end = data.draw(st.integers(first, len(groups)))
    start, stop = sum(groups[:first]), sum(groups[:end])
    ids = pa.record_batch({"id": pa.array(range(start, stop), pa.int64())})
    batches = [ids.slice(at, size) for at in range(0, ids.num_rows, size)]
    left = [batch["id"].to_pylist() for batch in drop_rows(iter(batches), deleted_in(groups, (first, end), deleted))]
    assert [one for some in left for one in some] == sorted(set(range(start, stop)) - set(deleted.tolist()))
    assert sum(map(len, left)) == sum(live_rows(groups, deleted)[first:end])


@given(st.text(), POSITIONS, POSITIONS)
def test_a_version_tells_the_rows_that_are_deleted(version: str, some: Positions, others: Positions) -> None:
    ref = ObjectRef("memory://a", 1, version)
    marked, other = without_rows(ref, some), without_rows(ref, others)
    assert stored_version(marked.version) == version
    assert deleted_count(marked.version) == len(some)
    assert (marked == other) == (some.tolist() == others.tolist())
