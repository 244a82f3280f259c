from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.errors import CorruptModel, ObjectChanged, StorageError
from headrace.transforms.models.streaming.composed_crc import CheckedSpan
from headrace.transforms.models.streaming.dlpack import ALIGNMENT
from headrace.transforms.models.streaming.tensor_stream import (
    MAX_GAP,
    StreamOptions,
    TensorSlot,
    TensorStream,
    mask_crc,
    numpy_dtype,
    read_of,
)
from headrace.transforms.storage import ObjectRef, Store
from headrace.transforms.storage.local import LocalStore
from headrace.transforms.storage.memory import MemoryStore, put


def stream_tensors(store: Store, slots: Sequence[TensorSlot], **options: Any) -> TensorStream:
    return TensorStream(store, slots, StreamOptions(**options))


def slot(ref: ObjectRef, name: str, offset: int, data: bytes, **changes: Any) -> TensorSlot:
    fields = {
        "dtype": "uint8",
        "shape": (len(data),),
        "nbytes": len(data),
        "masked_crc32c": mask_crc(crc32c.crc32c(data)),
    }
    return TensorSlot(name=name, source=ref, offset=offset, **{**fields, **changes})


class SlowStore(MemoryStore):
    """A real store behind a wire: counts the bytes asked for and not yet arrived, and may fail or wait."""

    def __init__(self, seconds: float = 0.0, together: threading.Barrier | None = None) -> None:
        super().__init__()
        self.seconds, self.together = seconds, together
        self.requests: list[tuple[str, int, int]] = []
        self.lock = threading.Lock()
        self.now = self.peak = self.parallel = self.most_parallel = 0
        self.fail_at: tuple[int, Exception] | None = None

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        length = sum(buffer.nbytes for buffer in buffers)
        with self.lock:
            self.requests.append((ref.uri, offset, length))
            self.now += length
            self.parallel += 1
            self.peak, self.most_parallel = max(self.peak, self.now), max(self.most_parallel, self.parallel)
            failing = self.fail_at is not None and len(self.requests) > self.fail_at[0]
        try:
            time.sleep(self.seconds)
            if self.together is not None:
                self.together.wait(60)
            if failing and self.fail_at is not None:
                raise self.fail_at[1]
            super().read_into(ref, offset, buffers)
        finally:
            with self.lock:
                self.now -= length
                self.parallel -= 1


def take_all(
    store: Store, slots: Sequence[TensorSlot], order: Sequence[int] | None = None, **options: Any
) -> list[Any]:
    with stream_tensors(store, slots, **options) as stream:
        taken = {i: stream.take(slots[i].name) for i in order or range(len(slots))}
    return [taken[i] for i in range(len(slots))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_layout_any_order_gives_the_bytes(data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    slots, expected = [], []
    for o in range(data.draw(st.integers(1, 3))):
        spans = data.draw(st.lists(st.tuples(st.integers(0, 3000), st.sampled_from([0, 70, 5000])), max_size=12))
        blob = rng.bytes(sum(map(sum, spans)))
        ref, at = put(f"memory://stream/layout-{o}", blob), 0
        for i, (nbytes, gap) in enumerate(spans):
            at += gap
            expected.append(blob[at : at + nbytes])
            slots.append(slot(ref, f"{o}-{i}", at, expected[-1]))
            at += nbytes
    shuffled = data.draw(st.permutations(range(len(slots))))
    slots, expected = [slots[i] for i in shuffled], [expected[i] for i in shuffled]
    order = data.draw(st.permutations(range(len(slots))))
    options = {
        "connections": data.draw(st.integers(1, 5)),
        "piece_bytes": data.draw(st.integers(1, 4000)),
        "in_flight_bytes": data.draw(st.integers(1, 9000)),
    }
    for array, wanted in zip(take_all(MemoryStore(), slots, order, **options), expected, strict=True):
        assert array.tobytes() == wanted
        assert not array.nbytes or array.ctypes.data % ALIGNMENT == 0
        assert array.flags.writeable


@pytest.mark.parametrize("dtype", ["float32", "bool", "complex64", "bfloat16", "float8_e4m3fn", "int4"])
def test_dtypes_and_scalars(dtype: str) -> None:
    wanted = np.dtype(numpy_dtype(dtype))
    blob = np.ones(12, wanted).tobytes()
    ref = put("memory://stream/dtypes", blob)
    size = wanted.itemsize
    slots = [
        slot(ref, "matrix", 0, blob[: 6 * size], dtype=dtype, shape=(2, 3)),
        slot(ref, "scalar", 6 * size, blob[:size], dtype=dtype, shape=()),
        slot(ref, "empty", 7 * size, b"", dtype=dtype, shape=(0, 4)),
    ]
    arrays = take_all(MemoryStore(), slots)
    assert [(a.dtype, a.shape) for a in arrays] == [(wanted, (2, 3)), (wanted, ()), (wanted, (0, 4))]
    assert arrays[0].tobytes() == blob[: 6 * size]


def test_neighbours_are_joined_and_large_ones_split() -> None:
    blob = bytes(range(256)) * 4096
    ref = put("memory://stream/joined", blob)
    small = [slot(ref, f"s{i}", 100 * i, blob[100 * i : 100 * i + 90]) for i in range(50)]
    far = slot(ref, "far", 5000 + MAX_GAP + 1, blob[5000 + MAX_GAP + 1 :][:10])
    large = slot(ref, "large", 200_000, blob[200_000:800_000])
    store = SlowStore()
    take_all(store, [large, far, *small], piece_bytes=250_000)
    assert sorted(request[1:] for request in store.requests) == [
        (0, 4990),
        (far.offset, 10),
        (200_000, 250_000),
        (450_000, 250_000),
        (700_000, 100_000),
    ]


def test_no_more_threads_than_requests_and_no_more_in_flight_than_allowed() -> None:
    blob = bytes(1 << 20)
    ref = put("memory://stream/bounded", blob)
    store = SlowStore(0.02)
    before = threading.active_count()
    with stream_tensors(store, [slot(ref, "a", 0, blob)], piece_bytes=1 << 19) as stream:
        assert threading.active_count() - before <= 2
        stream.take("a")
    assert threading.active_count() == before
    store = SlowStore(together=threading.Barrier(4))
    slots = [slot(ref, f"t{i}", i << 16, blob[: 1 << 16]) for i in range(16)]
    take_all(store, slots, range(15, -1, -1), piece_bytes=1 << 16, in_flight_bytes=4 << 16, connections=16)
    assert store.peak == 4 << 16
    assert store.most_parallel == 4


def test_connections_are_used_at_once() -> None:
    blob = bytes(1 << 20)
    ref = put("memory://stream/parallel", blob)
    # Sixteen requests, none of which ends before all have begun.
    store = SlowStore(together=threading.Barrier(16))
    take_all(store, [slot(ref, "a", 0, blob)], piece_bytes=1 << 16, connections=16)
    assert store.most_parallel == 16


def test_the_first_failure_reaches_every_take_and_stops_the_rest() -> None:
    blob = bytes(1 << 20)
    ref = put("memory://stream/failing", blob)
    slots = [slot(ref, f"t{i}", i << 14, blob[: 1 << 14]) for i in range(64)]
    store = SlowStore(0.001)
    store.fail_at = (5, StorageError("the wire is cut"))
    with stream_tensors(store, slots, piece_bytes=1 << 14, connections=2) as stream:
        for name in ("t63", "t40"):
            with pytest.raises(StorageError, match="the wire is cut"):
                stream.take(name)
    assert len(store.requests) < 12


def test_leaving_early_cancels_and_ends_every_thread() -> None:
    blob = bytes(1 << 20)
    ref = put("memory://stream/cancelled", blob)
    store = SlowStore(0.01)
    before = threading.active_count()
    stream = stream_tensors(store, [slot(ref, "a", 0, blob)], piece_bytes=1 << 12, connections=2)
    with pytest.raises(RuntimeError, match="outside"):
        stream.take("a")
    stream = stream_tensors(store, [slot(ref, "a", 0, blob)], piece_bytes=1 << 12, connections=2)
    with pytest.raises(KeyboardInterrupt), stream:
        raise KeyboardInterrupt
    assert threading.active_count() == before
    assert len(store.requests) < 10
    with pytest.raises(RuntimeError, match="outside"):
        stream.take("a")


def test_a_flipped_byte_names_the_tensor() -> None:
    blob = np.random.default_rng(1).bytes(5000)
    ref = put("memory://stream/flipped", blob[:3500] + bytes([blob[3500] ^ 1]) + blob[3501:])
    slots = [slot(ref, f"t{i}", 1000 * i, blob[1000 * i :][:1000]) for i in range(5)]
    with (
        stream_tensors(MemoryStore(), slots) as stream,
        pytest.raises(CorruptModel, match="'t3' in memory://stream/flipped"),
    ):
        stream.take("t3")


def test_an_object_that_changes_is_told() -> None:
    ref = put("memory://stream/changed", bytes(100))
    put("memory://stream/changed", bytes(100))
    with stream_tensors(MemoryStore(), [slot(ref, "a", 0, bytes(100))]) as stream, pytest.raises(ObjectChanged):
        stream.take("a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (11,)}, "contradicts its shape"),
        ({"shape": (-1, -10)}, "contradicts its shape"),
        ({"shape": (1 << 62,)}, "contradicts its shape"),
        ({"shape": (1 << 50,), "nbytes": 1 << 50}, "is outside"),
        ({"offset": 91}, "is outside"),
        ({"offset": -1}, "is outside"),
    ],
)
def test_a_slot_that_cannot_be_true_is_refused_before_anything_is_allocated(
    changes: dict[str, Any], message: str
) -> None:
    ref = put("memory://stream/hostile", bytes(100))
    fields = {"name": "a", "dtype": "uint8", "shape": (10,), "source": ref, "offset": 0, "nbytes": 10, **changes}
    with pytest.raises(CorruptModel, match=message):
        stream_tensors(MemoryStore(), [TensorSlot(**fields)])


def test_one_range_handed_out_many_times_is_refused() -> None:
    ref = put("memory://stream/overlap", bytes(100))
    with pytest.raises(CorruptModel, match="overlap"):
        stream_tensors(MemoryStore(), [slot(ref, str(i), 0, bytes(60)) for i in range(2)])


def test_a_tensor_is_taken_once() -> None:
    ref = put("memory://stream/once", bytes(100))
    with stream_tensors(MemoryStore(), [slot(ref, "a", 0, bytes(100))]) as stream:
        stream.take("a")
        with pytest.raises(KeyError):
            stream.take("a")
        with pytest.raises(KeyError):
            stream.take("b")
    with pytest.raises(ValueError, match="two slots"):
        stream_tensors(MemoryStore(), [slot(ref, "a", 0, bytes(10))] * 2)


def test_progress_and_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    blob = bytes(100_000)
    ref = put("memory://stream/progress", blob)
    seen: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, "headrace.transforms.models.streaming.tensor_stream"):
        take_all(
            MemoryStore(),
            [slot(ref, "a", 0, blob)],
            piece_bytes=9000,
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen == sorted(seen)
    assert seen[-1] == (100_000, 100_000)
    assert [r.getMessage().split(" in ")[0] for r in caplog.records] == ["streamed 1 tensors, 100000 bytes"]
    assert "12 requests" in caplog.text


def test_a_failing_progress_callback_fails_the_load() -> None:
    def stop(done: int, total: int) -> None:
        raise InterruptedError("stopped by hand")

    ref = put("memory://stream/stopped", bytes(100))
    with (
        stream_tensors(MemoryStore(), [slot(ref, "a", 0, bytes(100))], progress=stop) as stream,
        pytest.raises(InterruptedError),
    ):
        stream.take("a")


def test_options_are_checked_and_survive_pickling() -> None:
    with pytest.raises(ValueError, match="connections must be at least 1"):
        StreamOptions(connections=0)
    assert pickle.loads(pickle.dumps(StreamOptions(connections=3))) == StreamOptions(connections=3)


def test_thousands_of_small_tensors_from_a_file(tmp_path: Path) -> None:
    values = np.arange(5000, dtype=np.int32)
    path = tmp_path / "many"
    path.write_bytes(values.tobytes())
    store = LocalStore()
    ref = store.stat(str(path))
    slots = [slot(ref, str(i), 4 * i, values[i].tobytes(), dtype="int32", shape=()) for i in range(5000)]
    assert take_all(store, slots) == values.tolist()
    assert store.counters.requests == 2


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=6), st.integers(0, 12), st.integers(1, 6))
def test_what_is_read_of_a_checked_span_has_bytes_in_it(extents: list[tuple[int, int]], start: int, size: int) -> None:
    mine, other = ObjectRef("mem://b/mine", 99, "1"), ObjectRef("mem://b/other", 99, "1")
    span = CheckedSpan(mine, start, start + size, 0, "CRC-32")
    slots = [TensorSlot("t", "uint8", (n,), ref, at, n) for at, n in extents for ref in (mine, other)]
    shared = [(at, at + n) for at, n in extents if set(range(at, at + n)) & set(range(start, start + size))]
    assert read_of(span, slots) == shared


def test_a_checked_span_whose_rest_is_too_long_is_a_fault_of_the_caller() -> None:
    ref = ObjectRef("mem://b/o", 1 << 30, "1")
    with pytest.raises(ValueError, match=r"bytes 0 to 1073741824 of mem://b/o cannot be composed"):
        TensorStream(
            MemoryStore(), [slot(ref, "t", 0, b"abcd")], StreamOptions(), [CheckedSpan(ref, 0, 1 << 30, 0, "CRC-32")]
        )


@pytest.mark.parametrize("shape", [(0, 1 << 62), (1 << 40, 0, 1 << 40)])
def test_a_tensor_without_values_may_have_a_shape_that_no_array_has(shape: tuple[int, ...]) -> None:
    store, ref = MemoryStore(), put("memory://stream/shapes", b"abc")
    with (
        pytest.raises(CorruptModel, match=r"tensor 't' in .* contradicts its shape"),
        stream_tensors(store, [TensorSlot("t", "float32", shape, ref, 0, 0)]),
    ):
        pass
    with stream_tensors(store, [TensorSlot("t", "float32", (0, 7), ref, 0, 0)]) as stream:
        assert stream.take("t").shape == (0, 7)
