"""Tensors on their way to a device: what waits in the host's memory is bounded, and no order of taking stands still."""

from __future__ import annotations

import threading
import time
import weakref
import zlib
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.errors import CorruptModel
from headrace.transforms.models.streaming.composed_crc import CheckedSpan
from headrace.transforms.models.streaming.tensor_stream import StreamOptions, TensorSlot, TensorStream
from headrace.transforms.storage import ObjectRef
from headrace.transforms.storage.memory import MemoryStore, put


class CountingStore(MemoryStore):
    """Counts the bytes asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.asked = 0

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        with self.lock:
            self.asked += sum(buffer.nbytes for buffer in buffers)
        super().read_into(ref, offset, buffers)


def tensors(sizes: Sequence[int]) -> tuple[list[TensorSlot], list[bytes]]:
    rng = np.random.default_rng(0)
    values = [rng.bytes(size) for size in sizes]
    ref = put("memory://stream/host", b"".join(values))
    starts = np.cumsum([0, *sizes])
    slots = [
        TensorSlot(str(i), "uint8", (size,), ref, int(start), size)
        for i, (size, start) in enumerate(zip(sizes, starts, strict=False))
    ]
    return slots, values


def settled(store: CountingStore) -> int:
    """Bytes asked for, once no more are."""
    asked = -1
    while asked != store.asked:
        asked = store.asked
        time.sleep(0.05)
    return asked


def test_what_nobody_takes_holds_back_what_is_asked_for() -> None:
    slots, values = tensors([1000] * 40)
    store = CountingStore()
    options = StreamOptions(connections=4, piece_bytes=1000, in_flight_bytes=4000, host_bytes=3000)
    with TensorStream(store, slots, options) as stream:
        assert settled(store) == 3000
        for i in range(5):
            assert stream.take(str(i)).tobytes() == values[i]
        assert settled(store) == 8000
        # The last of all: what lies before it in the order of the bytes has to come too, and nothing stands still.
        assert stream.take("39").tobytes() == values[39]
        assert settled(store) == 40_000


@pytest.mark.parametrize("host_bytes", [None, 1])
def test_without_a_bound_everything_comes_at_once(host_bytes: int | None) -> None:
    slots, _ = tensors([1000] * 10)
    store = CountingStore()
    options = StreamOptions(connections=2, piece_bytes=1000, in_flight_bytes=2000, host_bytes=host_bytes)
    with TensorStream(store, slots, options):
        assert settled(store) == (10_000 if host_bytes is None else 1000)


def test_a_checksum_of_all_needs_what_nobody_takes() -> None:
    slots, values = tensors([1000] * 40)
    content = b"".join(values)
    options = StreamOptions(connections=4, piece_bytes=1000, in_flight_bytes=4000, host_bytes=3000)
    for crc in (zlib.crc32(content), 0):
        store, span = CountingStore(), CheckedSpan(slots[0].source, 0, 40_000, crc, "CRC-32")
        with (
            nullcontext() if crc else pytest.raises(CorruptModel, match="arrived damaged"),
            TensorStream(store, slots, options, [span]),
        ):
            assert settled(store) == 3000
        assert store.asked == 40_000


class TogetherStore(CountingStore):
    """The first eight reads end together, so that eight threads make one each."""

    def __init__(self) -> None:
        super().__init__()
        self.eight = threading.Barrier(8)

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        super().read_into(ref, offset, buffers)
        if offset < 8000:
            self.eight.wait(60)


def test_what_was_taken_and_dropped_is_freed_though_threads_wait_to_ask_for_more() -> None:
    slots, _ = tensors([1000] * 40)
    store = TogetherStore()
    options = StreamOptions(connections=8, piece_bytes=1000, in_flight_bytes=8000, host_bytes=8000)
    with TensorStream(store, slots, options) as stream:
        dropped = []
        for i in range(8):
            array = stream.take(str(i))
            while isinstance(array.base, np.ndarray):
                array = array.base
            dropped.append(weakref.ref(array))
            del array
            settled(store)
            # One of the eight threads went on, hardly ever the one that had fetched this.
            assert dropped[-1]() is None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_order_of_taking_gives_the_bytes(data: st.DataObject) -> None:
    slots, values = tensors(data.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=12)))
    options = StreamOptions(
        connections=data.draw(st.integers(1, 4)),
        piece_bytes=data.draw(st.integers(1, 4000)),
        in_flight_bytes=data.draw(st.integers(1, 9000)),
        host_bytes=data.draw(st.integers(1, 9000)),
    )
    with TensorStream(MemoryStore(), slots, options) as stream:
        for i in data.draw(st.permutations(range(len(slots)))):
            assert stream.take(str(i)).tobytes() == values[i]
