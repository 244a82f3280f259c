from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.transforms.storage import open_store
from headrace.transforms.storage.memory import put
from tests.support.faulty_store import FaultyStore
from tests.support.store_contract import noise

MIB = 1 << 20
# Some reads below go through the cache, others, of more than 4 MiB, past it.
BLOB = noise(20 * MIB + 77)
REF = put("memory://arrow/blob", BLOB)
SIZES = st.one_of(st.integers(0, 100), st.integers(0, 3 * MIB), st.integers(4 * MIB - 1, 9 * MIB))


@settings(max_examples=100, deadline=None)
@example([(None, 1), (None, 4 * MIB - 1), (None, 4 * MIB - 1), (None, 4 * MIB - 1)])
@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, len(BLOB))), SIZES), max_size=12))
def test_any_walk_through_the_file_gives_the_objects_bytes(walk: list[tuple[int | None, int]]) -> None:
    with open_store(REF.uri).open_arrow(REF) as file:
        at = 0
        for jump, size in walk:
            if jump is not None:
                at = file.seek(jump)
            assert file.read(size) == BLOB[at : at + size]
            at = min(at + size, len(BLOB))
            assert file.tell() == at


def table_ref(rows: int) -> tuple[pa.Table, FaultyStore, str]:
    table = pa.table({f"c{i}": np.random.default_rng(i).random(rows, dtype=np.float32) for i in range(8)})
    uri = f"memory://arrow/{rows}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows // 2)
    put(uri, sink.getvalue().to_pybytes())
    return table, FaultyStore(open_store(uri), latency_s=0.001), uri


def test_a_footer_costs_one_request() -> None:
    _, store, uri = table_ref(100_000)
    with store.open_arrow(store.stat(uri)) as file:
        assert pq.ParquetFile(file).metadata.num_rows == 100_000
    assert store.calls["read"] == 1


@pytest.mark.parametrize("pre_buffer", [True, False])
def test_parquet_is_read_in_few_requests_and_hardly_a_byte_twice(pre_buffer: bool) -> None:
    table, store, uri = table_ref(2_000_000)
    ref = store.stat(uri)
    with store.open_arrow(ref) as file:
        assert pq.ParquetFile(file, pre_buffer=pre_buffer).read().equals(table)
    assert store.calls["read"] <= 2 + ref.size / (3 * MIB)
    assert sum(length for _, _, length in store.reads) <= 1.1 * ref.size + 2 * MIB


def test_small_steps_forward_are_read_ahead_within_bounds() -> None:
    store = FaultyStore(open_store(REF.uri))
    tracemalloc.start()
    with store.open_arrow(REF) as file:
        while file.read(10_000):
            pass
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.calls["read"] <= 6
    assert peak < 34 * MIB
