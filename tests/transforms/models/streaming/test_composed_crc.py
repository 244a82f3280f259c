from __future__ import annotations

import itertools
import logging
import zlib
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.errors import CorruptModel, StorageError
from headrace.transforms.models.keras_model import weights as keras_weights
from headrace.transforms.models.keras_model.model import load
from headrace.transforms.models.pin import pin_model
from headrace.transforms.models.streaming.composed_crc import CheckedSpan, ComposedCrc, combine
from headrace.transforms.models.streaming.shared_stream import MachineStream
from headrace.transforms.models.streaming.tensor_stream import StreamOptions, TensorSlot, TensorStream
from headrace.transforms.storage import ObjectRef, open_store
from headrace.transforms.storage.memory import MemoryStore, put
from tests.support.faulty_store import FaultyStore

CRCS = {"CRC-32C": crc32c.crc32c, "CRC-32": zlib.crc32}
BLOB = np.random.default_rng(5).bytes(300_000)
LAYERS, WIDTH = 3, 600


@given(st.binary(), st.binary(), st.sampled_from(sorted(CRCS)))
def test_two_pieces_have_the_checksum_of_their_whole(first: bytes, second: bytes, kind: str) -> None:
    crc = CRCS[kind]
    assert combine(kind, crc(first), crc(second), len(second)) == crc(first + second)


def test_long_pieces() -> None:
    zeros = bytes(5 << 20)
    for kind, crc in CRCS.items():
        assert combine(kind, crc(BLOB), crc(zeros), len(zeros)) == crc(BLOB + zeros)


def span_of(ref: ObjectRef, start: int, stop: int, kind: str = "CRC-32C") -> CheckedSpan:
    return CheckedSpan(ref, start, stop, CRCS[kind](BLOB[start:stop]), kind)


@settings(max_examples=50)
@given(st.lists(st.integers(0, len(BLOB)), max_size=9), st.randoms(), st.sampled_from(sorted(CRCS)))
def test_any_pieces_in_any_order(cuts: list[int], random: Any, kind: str) -> None:
    ends = sorted({0, len(BLOB), *cuts})
    pieces = list(itertools.pairwise(ends))
    random.shuffle(pieces)
    ref = ObjectRef("memory://crc/pieces", len(BLOB), "1")
    whole, damaged = ComposedCrc(span_of(ref, 0, len(BLOB), kind)), ComposedCrc(span_of(ref, 0, len(BLOB), kind))
    for number, (start, stop) in enumerate(pieces):
        data = bytearray(BLOB[start:stop])
        whole.add(start, memoryview(data))
        if not number:
            data[random.randrange(len(data))] ^= 4
        damaged.add(start, memoryview(data))
    whole.check()
    with pytest.raises(CorruptModel, match=f"arrived damaged.*{kind}"):
        damaged.check()


def test_what_is_left_beside_the_tensors() -> None:
    span = span_of(ObjectRef("memory://crc/left", len(BLOB), "1"), 1000, 200_000)
    assert span.besides([(150_000, 200_000), (2000, 100_000)]) == [(1000, 2000), (100_000, 150_000)]
    assert span.besides([]) == [(1000, 200_000)]
    for overlapping in ([(1000, 3000), (2999, 4000)], [(999, 2000)], [(199_000, 200_001)]):
        assert span.besides(overlapping) is None
    large = CheckedSpan(span.source, 0, 1 << 30, 0, "CRC-32C")
    assert large.besides([(4 << 20, 1 << 30)]) == [(0, 4 << 20)]
    assert large.besides([((4 << 20) + 1, 1 << 30)]) is None


def slots_of(ref: ObjectRef) -> list[TensorSlot]:
    spans = [(1000, 90_000), (90_064, 200_000), (280_000, 299_000)]
    return [
        TensorSlot(f"t{i}", "uint8", (stop - start,), ref, start, stop - start) for i, (start, stop) in enumerate(spans)
    ]


@pytest.mark.parametrize("host_bytes", [None, 1])
@pytest.mark.parametrize("taken", [3, 1, 0])
@pytest.mark.parametrize("at", [None, 0, 50_000, 90_030, 250_000, 299_999])
def test_a_stream_is_held_against_the_checksum_when_it_ends(at: int | None, taken: int, host_bytes: int | None) -> None:
    """In a tensor, in a gap between two, before, behind; taken or not."""
    ref = put("memory://crc/stream", BLOB)
    store = FaultyStore(MemoryStore(), flip={} if at is None else {ref.uri: at})
    options = StreamOptions(connections=3, piece_bytes=40_000, host_bytes=host_bytes)

    def run() -> None:
        with TensorStream(store, slots_of(ref), options, [span_of(ref, 0, len(BLOB))]) as stream:
            for i in range(taken):
                stream.take(f"t{i}")

    if at is None:
        run()
        return
    with pytest.raises(CorruptModel, match=r"crc/stream arrived damaged.*Run again"):
        run()


def test_two_spans_of_one_object_and_what_lies_between() -> None:
    ref = put("memory://crc/members", BLOB)
    slots, spans = slots_of(ref), [span_of(ref, 500, 210_000, "CRC-32"), span_of(ref, 270_000, 299_500, "CRC-32")]
    for at, ok in ((499, True), (500, False), (210_000, True), (269_999, True), (299_499, False)):
        store = FaultyStore(MemoryStore(), flip={ref.uri: at})
        try:
            with TensorStream(store, slots, StreamOptions(piece_bytes=30_000), spans):
                pass
        except CorruptModel:
            assert not ok, at
        else:
            assert ok, at


def test_another_error_comes_first() -> None:
    ref = put("memory://crc/error", BLOB)

    def fail(verb: str, uri: str) -> None:
        raise StorageError(f"{uri} cannot be read")

    stream = TensorStream(
        FaultyStore(MemoryStore(), fault=fail), slots_of(ref), StreamOptions(), [span_of(ref, 0, len(BLOB))]
    )
    with pytest.raises(StorageError, match="cannot be read"), stream:
        pass
    with pytest.raises(KeyError), TensorStream(MemoryStore(), slots_of(ref), StreamOptions(), ()) as another:
        another.take("no such tensor")


def test_what_is_damaged_is_not_shared() -> None:
    """Who waits for the leader's copy does not get it, but reads for itself, and finds the damage too."""
    ref = put("memory://crc/shared", BLOB)
    spans = [span_of(ref, 0, len(BLOB))]
    damaged = FaultyStore(MemoryStore(), flip={ref.uri: 295_000})
    for _ in range(2):
        with (
            pytest.raises(CorruptModel, match="arrived damaged"),
            MachineStream(damaged, slots_of(ref), StreamOptions(), spans, identity="damaged") as stream,
        ):
            stream.take("t0")
    with MachineStream(MemoryStore(), slots_of(ref), StreamOptions(), spans, identity="damaged") as stream:
        assert stream.take("t2").tobytes() == BLOB[280_000:299_000]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of some MiB, so that weights are streamed; one of them with an optimizer's state."""
    import keras

    folder = tmp_path_factory.mktemp("saved")
    model = keras.Sequential([keras.Input((WIDTH,)), *(keras.layers.Dense(WIDTH) for _ in range(LAYERS))])
    for name in ("plain.keras", "plain.h5"):
        model.save(folder / name)
    model.compile("adam", "mse")
    model.fit(np.zeros((2, WIDTH)), np.zeros((2, WIDTH)), verbose=0)
    model.save(folder / "compiled.keras")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["plain.keras", "plain.h5"])
def test_a_flipped_bit_anywhere_in_streamed_weights_is_found(name: str, saved: dict[str, Path]) -> None:
    """By the store's checksum of the whole object, which memory keeps as a bucket does."""
    data = saved[name].read_bytes()
    uri = f"memory://crc/{name}"
    put(uri, data)
    ref = pin_model(uri)
    load(MemoryStore(), ref)
    for at in np.random.default_rng(3).integers(len(data) // 8, len(data) - len(data) // 8, 4):
        with pytest.raises(CorruptModel, match=r"arrived damaged.*CRC-32C"):
            load(FaultyStore(MemoryStore(), flip={uri: int(at)}), ref)


def test_without_a_store_that_keeps_checksums_the_archives_own_is_used(saved: dict[str, Path], tmp_path: Path) -> None:
    damaged = bytearray(saved["plain.keras"].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "damaged.keras"
    path.write_bytes(damaged)
    load(open_store(str(path)), pin_model(str(saved["plain.keras"])))
    with pytest.raises(CorruptModel, match=r"arrived damaged.*CRC-32 [0-9a-f]{8} of bytes"):
        load(open_store(str(path)), pin_model(str(path)))


def test_where_the_optimizer_is_left_out_the_log_says_that_nothing_covers_the_weights(
    saved: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    keras_weights._say_unchecked.cache_clear()
    with caplog.at_level(logging.INFO):
        for name in ("plain.keras", "compiled.keras"):
            load(open_store(str(saved[name])), pin_model(str(saved[name])))
    told = [record.getMessage() for record in caplog.records if "no checksum covers" in record.getMessage()]
    assert len(told) == 1
    assert "compiled.keras" in told[0]
