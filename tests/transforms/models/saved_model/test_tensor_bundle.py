from __future__ import annotations

import contextlib
import functools
import struct
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headrace.transforms.errors import CorruptModel, UnsupportedModel
from headrace.transforms.models.saved_model.tensor_bundle import (
    Bundle,
    Entry,
    _signed,
    read_table,
    string_values,
    uncompress,
)
from headrace.transforms.models.streaming.tensor_stream import mask_crc
from headrace.transforms.storage.memory import MemoryStore, put
from headrace.transforms.storage.store import ObjectRef

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def compress(data: bytes) -> bytes:
    """Snappy with literals, and copies of all three widths where four bytes come again."""
    out, at, literal = varint(len(data)), 0, b""

    def flush(literal: bytes) -> bytes:
        if not literal:
            return b""
        n = len(literal) - 1
        head = bytes([n << 2]) if n < 60 else bytes([61 << 2]) + n.to_bytes(2, "little")
        return head + literal

    while at < len(data):
        back = at - data.rfind(data[at : at + 4], 0, at + 3) if at + 4 <= len(data) else 0
        if 0 < back <= at and data[at - back : at - back + 4] == data[at : at + 4]:
            length = 4
            while length < 64 and at + length < len(data) and data[at + length - back] == data[at + length]:
                length += 1
            out, literal = out + flush(literal), b""
            if length < 12 and back < 2048:
                out += bytes([1 | (length - 4) << 2 | back >> 8 << 5, back & 255])
            elif back < 1 << 16 and back % 2:
                out += bytes([2 | (length - 1) << 2]) + back.to_bytes(2, "little")
            else:
                out += bytes([3 | (length - 1) << 2]) + back.to_bytes(4, "little")
            at += length
        else:
            literal += data[at : at + 1]
            at += 1
            if len(literal) == 60_000:
                out, literal = out + flush(literal), b""
    return out + flush(literal)


def write_table(entries: Mapping[bytes, bytes], *, compressed: bool = False, per_block: int = 100) -> bytes:
    """A LevelDB table; every sixteenth key of a block is a restart."""
    table = b""

    def block(items: list[tuple[bytes, bytes]]) -> bytes:
        nonlocal table
        body, last, restarts = b"", b"", []
        for i, (key, value) in enumerate(items):
            shared = (
                next((n for n, (a, b) in enumerate(zip(last, key, strict=False)) if a != b), min(len(last), len(key)))
                if i % 16
                else 0
            )
            if not i % 16:
                restarts.append(len(body))
            body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
            last = key
        body += b"".join(struct.pack("<I", r) for r in restarts or [0]) + struct.pack("<I", len(restarts or [0]))
        if compressed:
            body = compress(body)
        body_and_kind = body + bytes([compressed])
        handle = varint(len(table)) + varint(len(body))
        table += body_and_kind + struct.pack("<I", mask_crc(crc32c.crc32c(body_and_kind)))
        return handle

    items = sorted(entries.items())
    chunks = [items[i : i + per_block] for i in range(0, len(items), per_block)]
    index = [(chunk[-1][0] + b"\x00", block(chunk)) for chunk in chunks]
    handles = block([]) + block(index)
    return table + handles + bytes(40 - len(handles)) + MAGIC


def read_index(path: Path) -> dict[bytes, bytes]:
    return read_table(path.read_bytes(), str(path))


@functools.cache
def real_bundle() -> tuple[bytes, tuple[bytes, ...], dict[str, Any]]:
    """A bundle that TensorFlow wrote: index, data shards, values."""
    import tensorflow as tf

    rng = np.random.default_rng(3)
    values: dict[str, Any] = {f"layer/{i}/kernel": rng.normal(size=(i, 3)).astype(np.float32) for i in range(40)}
    values |= {"words": np.array([b"a", b"", b"x" * 300], object), "flag": np.array(True), "name": b"graph"}
    cut = np.arange(200 * 7, dtype=np.int64).reshape(200, 7)
    names, slices = (
        [*values, *["cut"] * 3],
        [""] * len(values) + ["200 7 0,70:-", "200 7 70,130:0,3", "200 7 70,130:3,4"],
    )
    tensors = [*values.values(), cut[:70], cut[70:, :3], cut[70:, 3:]]
    with tempfile.TemporaryDirectory() as folder:
        tf.raw_ops.SaveV2(
            prefix=f"{folder}/v", tensor_names=names, shape_and_slices=slices, tensors=list(map(tf.constant, tensors))
        )
        shards = sorted(Path(folder).glob("v.data-*"))
        return (Path(folder) / "v.index").read_bytes(), tuple(s.read_bytes() for s in shards), {**values, "cut": cut}


def bundle(index: bytes, shards: tuple[bytes, ...]) -> tuple[MemoryStore, Bundle]:
    refs: list[ObjectRef] = [put(f"memory://bundle/v.data-{i}", shard) for i, shard in enumerate(shards)]
    store = MemoryStore()
    return store, Bundle(store, put("memory://bundle/v.index", index), lambda i, n: refs[i] if i < len(refs) else None)


def value(store: MemoryStore, table: Bundle, entry: Entry) -> Any:
    slots = {piece.slot.name: piece.slot for piece in entry.pieces}

    def take(name: str) -> Any:
        slot = slots[name]
        return np.frombuffer(store.read(slot.source, slot.offset, slot.nbytes), slot.dtype).reshape(slot.shape)

    return table.value(entry, take)


def test_every_tensor_of_a_real_bundle() -> None:
    index, shards, values = real_bundle()
    store, table = bundle(index, shards)
    for name, expected in values.items():
        entry = table.entry(name)
        assert entry is not None
        np.testing.assert_array_equal(value(store, table, entry), expected)
    assert table.string("name") == b"graph"
    assert table.entry("nowhere") is None
    assert table.entry("") is None
    assert len(table.entry("cut").pieces) == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("per_block", [1, 5, 1000])
@pytest.mark.parametrize("compressed", [True, False])
def test_blocks_of_any_size_compressed_or_not(per_block: int, compressed: bool) -> None:
    table = read_table(real_bundle()[0], "real")
    again = write_table(table, compressed=compressed, per_block=per_block)
    assert read_table(again, "ours") == table
    store, reader = bundle(again, real_bundle()[1])
    entry = reader.entry("layer/7/kernel")
    assert entry is not None
    np.testing.assert_array_equal(value(store, reader, entry), real_bundle()[2]["layer/7/kernel"])


def test_tensorflow_reads_the_tables_that_these_tests_write(tmp_path: Path) -> None:
    import tensorflow as tf

    index, shards, values = real_bundle()
    (tmp_path / "v.index").write_bytes(write_table(read_table(index, "real"), compressed=True, per_block=4))
    (tmp_path / "v.data-00000-of-00001").write_bytes(shards[0])
    reader = tf.train.load_checkpoint(str(tmp_path / "v"))
    np.testing.assert_array_equal(reader.get_tensor("layer/9/kernel"), values["layer/9/kernel"])
    np.testing.assert_array_equal(reader.get_tensor("cut"), values["cut"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.binary(max_size=40), st.binary(max_size=60), max_size=40), st.booleans(), st.integers(1, 9))
def test_tables_there_and_back(entries: dict[bytes, bytes], compressed: bool, per_block: int) -> None:
    assert read_table(write_table(entries, compressed=compressed, per_block=per_block), "t") == entries


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"abcd", b"x", b"abcabcabc", bytes(100)]), max_size=200).map(b"".join))
def test_snappy_there_and_back(data: bytes) -> None:
    assert uncompress(compress(data), "t") == data


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_snappy_literals_of_every_width(width: int) -> None:
    for length in [61, 62, 255, 256, *([257, 1000] if width > 1 else [])]:
        data = bytes(i % 251 for i in range(length))
        block = varint(length) + bytes([59 + width << 2]) + (length - 1).to_bytes(width, "little") + data
        assert uncompress(block, "t") == data
        with pytest.raises(CorruptModel, match="does not give the"):
            uncompress(block[:-1], "t")


def test_snappy_takes_time_by_its_length() -> None:
    """Each copy begins at the very first byte. A decoder that copies all that it has so far takes hours."""
    copies = 200_000
    body = bytes([61 << 2]) + struct.pack("<H", 65535) + b"A" * 65536
    body += b"".join(bytes([63 << 2 | 3]) + struct.pack("<I", 65536 + 64 * k) for k in range(copies))
    start = time.process_time()
    assert len(uncompress(varint(65536 + 64 * copies) + body, "t")) == 65536 + 64 * copies
    assert time.process_time() - start < 2


def test_a_snappy_block_that_names_more_than_it_can_hold_allocates_nothing() -> None:
    with pytest.raises(CorruptModel, match="names a length of 4294967295"):
        uncompress(b"\xff\xff\xff\xff\x0f" + bytes(1000), "t")


def test_keys_that_grow_from_block_to_block_are_bounded() -> None:
    """Each block alone stays within bounds; together they would take hundreds of times the file."""
    entries = {b"k" * 3000 + b"%06d" % i: b"" for i in range(3000)}
    data = write_table(entries, compressed=True, per_block=300)
    with pytest.raises(CorruptModel, match=r"expand without measure"):
        read_table(data, "t")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xff\xff\xff\xff\x0f" + b"\x00a" + b"\xfe\x01\x00" * 50)
def test_hostile_snappy_stays_small(data: bytes) -> None:
    with contextlib.suppress(CorruptModel):
        assert len(uncompress(data, "t")) <= 64 * len(data)


def test_ordered_numbers() -> None:
    """Examples of tensorflow/core/lib/strings/ordered_code_test.cc."""
    assert _signed(0) == b"\x80"
    assert _signed(-1) == b"\x7f"
    assert _signed(63) == b"\xbf"
    assert _signed(-64) == b"\x40"
    assert _signed(64) == b"\xc0\x40"
    assert _signed(-65) == b"\x3f\xbf"
    assert len(_signed(2**62 - 1)) == 9
    assert len(_signed(2**62)) == 10
    assert len(_signed(2**63 - 1)) == 10
    numbers = [-(2**63), -(2**62), -(2**20), -8193, -65, -1, 0, 1, 63, 64, 8191, 8192, 2**55, 2**62, 2**63 - 1]
    assert [_signed(n) for n in numbers] == sorted(_signed(n) for n in numbers)


def _refused(index: bytes, shards: tuple[bytes, ...], message: str, name: str = "layer/5/kernel") -> None:
    with pytest.raises((CorruptModel, UnsupportedModel), match=message):
        bundle(index, shards)[1].entry(name)


def test_entries_that_cannot_be_true() -> None:
    from tensorflow.core.protobuf import tensor_bundle_pb2 as pb

    index, shards, _ = real_bundle()
    table = read_table(index, "real")

    def changed(name: str = "layer/5/kernel", **fields: int) -> bytes:
        entry = pb.BundleEntryProto.FromString(table[name.encode()])
        for field, number in fields.items():
            setattr(entry, field, number)
        return write_table({**table, name.encode(): entry.SerializeToString()})

    _refused(changed(shard_id=1), shards, "data shard 1 of 1")
    _refused(changed(shard_id=-1), shards, "data shard -1 of 1")
    _refused(changed(offset=-1), shards, "is outside")
    _refused(changed(offset=1 << 62), shards, "is outside")
    _refused(changed(size=1 << 62), shards, "is outside")
    _refused(changed(size=-5), shards, "is outside")
    _refused(changed(dtype=9999), shards, "unknown dtype")
    _refused(changed(dtype=20), shards, "resource, which cannot be streamed")
    _refused(changed(dtype=101), shards, "_ref, which cannot")
    _refused(index, (), "Data shard 0 of 1 .* is missing")
    huge = pb.BundleEntryProto.FromString(table[b"words"])
    huge.shape.dim[0].size = 1 << 60
    reader = bundle(write_table({**table, b"words": huge.SerializeToString()}), shards)
    entry = reader[1].entry("words")
    assert entry is not None
    with pytest.raises(CorruptModel, match="strings in"):
        reader[1].value(entry, lambda _: np.zeros(entry.nbytes, np.uint8))
    header = pb.BundleHeaderProto.FromString(table[b""])
    header.endianness = pb.BundleHeaderProto.BIG
    _refused(write_table({**table, b"": header.SerializeToString()}), shards, "big-endian")
    header.endianness, header.version.min_consumer = pb.BundleHeaderProto.LITTLE, 99
    _refused(write_table({**table, b"": header.SerializeToString()}), shards, "newer format")
    cut = pb.BundleEntryProto.FromString(table[b"cut"])
    del cut.slices[2]
    _refused(write_table({**table, b"cut": cut.SerializeToString()}), shards, "do not make up its shape", "cut")
    cut.slices.add().CopyFrom(cut.slices[0])
    _refused(write_table({**table, b"cut": cut.SerializeToString()}), shards, "do not make up its shape", "cut")
    cut.slices[0].extent[0].length = 1 << 40
    _refused(write_table({**table, b"cut": cut.SerializeToString()}), shards, "outside its shape", "cut")


def test_keys_that_expand_without_measure() -> None:
    body = varint(0) + varint(1000) + varint(0) + bytes(1000)
    for i in range(5000):
        body += varint(1000) + varint(2) + varint(0) + struct.pack(">H", i)
    body += struct.pack("<II", 0, 1)
    table = body + b"\x00" + struct.pack("<I", mask_crc(crc32c.crc32c(body + b"\x00")))
    handle = varint(0) + varint(len(body))
    index = varint(0) + varint(1) + varint(len(handle)) + b"z" + handle + struct.pack("<II", 0, 1)
    where = varint(len(table)) + varint(len(index))
    table += index + b"\x00" + struct.pack("<I", mask_crc(crc32c.crc32c(index + b"\x00")))
    with pytest.raises(CorruptModel, match="expand without measure"):
        read_table(table + varint(0) * 2 + where + bytes(40 - 2 - len(where)) + MAGIC, "t")


def _seal(data: bytes) -> bytes:
    """Makes the checksums of the mutated table right again, so that the fuzzer comes past them."""
    try:
        numbers, at = [], len(data) - 48
        for _ in range(4):
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            numbers.append(value)
        out = bytearray(data)
        index_at, index_size = numbers[2:]
        # TensorFlow writes one data block for so small a bundle, and the metaindex right behind it.
        for start, size in ((0, numbers[0] - 5), (index_at, index_size)):
            if size > 0 and start + size + 5 <= len(out):
                crc = mask_crc(crc32c.crc32c(bytes(out[start : start + size + 1])))
                struct.pack_into("<I", out, start + size + 1, crc)
        return bytes(out)
    except IndexError:
        return data


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 60),
    st.booleans(),
)
def test_a_mutated_index_gives_the_truth_or_a_clear_error(flips: list[tuple[int, int]], cut: int, sealed: bool) -> None:
    index, shards, values = real_bundle()
    mutated = bytearray(index)
    for at, byte in flips:
        mutated[at % len(mutated)] = byte
    data = bytes(mutated[: len(mutated) - (cut if cut < 8 else 0)])
    with contextlib.suppress(CorruptModel, UnsupportedModel):
        store, table = bundle(_seal(data) if sealed else data, shards)
        for name, expected in values.items():
            entry = table.entry(name)
            if sealed:
                assert entry is None or entry.nbytes <= len(shards[0])
            else:
                assert entry is not None
                np.testing.assert_array_equal(value(store, table, entry), expected)


@settings(max_examples=300)
@given(st.binary(max_size=100), st.integers(0, 1 << 40))
@example(b"\x80" * 9 + b"\x02", 0)  # a length of 65 bits
def test_hostile_strings(data: bytes, count: int) -> None:
    with pytest.raises(CorruptModel):
        string_values(data, count + 1, 0, "t")


def test_a_table_that_ends_early() -> None:
    index = real_bundle()[0]
    for length in (0, 1, 47, 48, 100, len(index) - 1):
        with pytest.raises(CorruptModel):
            read_table(index[:length], "t")
