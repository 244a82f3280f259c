"""How the index of an HDF5 file is followed: in few round trips, and within bounds wherever crafted bytes lead."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import time
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest

from headrace.transforms.errors import CorruptModel, ModelError, UnsupportedModel
from headrace.transforms.models.keras_model.hdf5 import Hdf5File
from headrace.transforms.models.keras_model.hdf5_format import lookup3
from headrace.transforms.models.streaming.ranges import BLOCK, RangeFile, Resident
from tests.transforms.models.keras_model.test_hdf5 import layers, opened, texts_of, written

BEFORE = 5000


@pytest.mark.parametrize(("count", "trips"), [(50, 5), (400, 6)])
def test_what_is_likely_is_fetched_together_and_nothing_else(count: int, trips: int) -> None:
    data = layers(count, 128)
    with opened(data, BEFORE) as (_, ranges, store):
        file = Hdf5File(RangeFile(ranges, BEFORE, len(data)), "the file", likely=lambda name: name != "optimizer")
        before = ranges.round_trips
        assert file.group("layers") == {}
        assert ranges.round_trips - before <= trips
        requests = store.counters.requests
        for i in range(count):
            offset = (file.group(f"layers/dense_{i}/vars") or {})["0"].offset
            assert offset is not None
            assert data[offset : offset + 4] == np.float32(i).tobytes()
        assert store.counters.requests == requests
        assert (file.group(f"optimizer/dense_{count - 1}/vars") or {})["1"].shape == (128,)
        assert store.counters.requests > requests


@pytest.mark.parametrize("library", ["earliest", "v108", "v110", "latest"])
@pytest.mark.parametrize("count", [3, 12, 400])
def test_every_layout_of_the_library_is_read(library: str, count: int) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=library) as file:
        for i in range(count):
            file[f"layers/dense_{i}/vars/0"] = np.full((2, 3), i, "f4")
            file["layers"].attrs[f"weight_names{i}"] = np.array([b"0", b"%d" % i])
    with opened(buffer.getvalue()) as (found, _, _):
        assert len(found.walk(bool)) == 2 + 2 * count
        for i in range(count):
            (dataset,) = (found.group(f"layers/dense_{i}/vars") or {}).values()
            np.testing.assert_array_equal(found.read(dataset), np.full((2, 3), i, "f4"))
    texts = Hdf5File(
        RangeFile(Resident(buffer.getvalue()), 0, len(buffer.getvalue())), "f", re.compile("weight_names.*")
    )
    assert texts.texts("layers") == {f"weight_names{i}": ("0", str(i)) for i in range(count)}


def test_the_newer_layout_is_checked() -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        for i in range(12):
            file[f"layers/dense_{i}/0"] = np.ones(3, "f4")
    data = buffer.getvalue()
    for signature in (b"OHDR", b"FRHP", b"BTHD", b"BTLF"):
        damaged = bytearray(data)
        damaged[data.rindex(signature) + 20] ^= 1
        with opened(bytes(damaged)) as (found, _, _), pytest.raises(CorruptModel, match="does not match its checksum"):
            found.walk(bool)
    # The values that Bob Jenkins' lookup3.c prints for these.
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551


def text_file() -> bytearray:
    def fill(file: Any) -> None:
        file.attrs["layer_names"] = "a text"
        for i in range(3):
            file.attrs[f"text_{i}"] = "x" * 20

    return bytearray(written(fill))


SIZES = [0, 1, 7, 8, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 16, 2**64 - 8, 2**64 - 1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [8, 16 + 8, 16 + 16 + 8 + 8])
def test_no_length_in_the_heap_of_texts_hangs(size: int, place: int) -> None:
    """HDF5's own library loops for ever on some of them."""
    data = text_file()
    heap = data.index(b"GCOL")
    struct.pack_into("<Q", data, heap + place, size)
    start = time.process_time()
    with contextlib.suppress(ModelError):
        assert texts_of(bytes(data)).texts("")["layer_names"] == ("a text",)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("where", ["length", "address", "number"])
@pytest.mark.parametrize("value", [1 << 31, 0xFFFFFFF0, 1000])
def test_a_reference_to_a_text_that_is_not_there_is_refused(where: str, value: int) -> None:
    data = text_file()
    reference = data.index(struct.pack("<IQI", 6, data.index(b"GCOL"), 1))
    struct.pack_into("<I", data, reference + {"length": 0, "address": 4, "number": 12}[where], value)
    with pytest.raises(CorruptModel, match="the file"):
        texts_of(bytes(data)).texts("")


def test_a_header_that_continues_in_itself_ends() -> None:
    data = bytearray(written(lambda file: file.attrs.update({f"a{i}": "x" * 40 for i in range(20)})))
    found = [m.start() for m in re.finditer(re.escape(struct.pack("<HHB", 0x10, 16, 0)), bytes(data))]
    assert found
    for at in found:
        address, length = struct.unpack_from("<QQ", data, at + 8)
        for inside in (address, at - at % 8):
            looped = bytearray(data)
            struct.pack_into("<HHB3xQQ", looped, address, 0x10, 16, 0, inside, length)
            with opened(bytes(looped)) as (file, _, _), pytest.raises(ModelError):
                file.walk(bool)


def test_a_chain_of_groups_without_end_costs_what_its_bytes_cost() -> None:
    """Each group holds the next, so that the paths together would be as long as the square of the file."""
    depth = 600

    def fill(file: Any) -> None:
        group = file
        for _ in range(depth):
            group = group.create_group("g" * 400)

    data = written(fill)
    start = time.process_time()
    with opened(data) as (file, _, _), pytest.raises(CorruptModel, match="without measure"):
        file.walk(bool)
    assert time.process_time() - start < 20


def test_groups_that_share_a_wide_tree_cost_what_their_bytes_cost() -> None:
    """A node of a symbol table whose entries all lead to one tree of many nodes: the product is not followed."""
    entries, children = 1500, 1500
    data = bytearray(layers(1, 16))
    heap = len(data)
    data += struct.pack("<4s4xQQQ", b"HEAP", 8, 0, heap + 32) + b"a\0bbbbb\0"
    nodes = len(data)
    data += b"".join(struct.pack("<4sBxH", b"SNOD", 1, 0) for _ in range(children))
    tree = len(data)
    data += struct.pack("<4sBBH16x", b"TREE", 0, 0, children)
    data += b"".join(struct.pack("<QQ", 0, nodes + 8 * i) for i in range(children))
    names = len(data)
    data += struct.pack("<4s4xQQQ", b"HEAP", 8 * entries, 0, names + 32)
    data += b"".join(b"%07d\0" % i for i in range(entries))
    headers = len(data)
    data += b"".join(struct.pack("<BxHII4xHHB3xQQ", 1, 1, 1, 24, 0x11, 16, 0, tree, heap) for _ in range(entries))
    symbols = len(data)
    data += struct.pack("<4sBxH", b"SNOD", 1, entries)
    data += b"".join(struct.pack("<QQI4x16x", 8 * i, headers + 40 * i, 0) for i in range(entries))
    root = len(data)
    data += struct.pack("<4sBBH16xQQ", b"TREE", 0, 0, 1, 0, symbols)
    struct.pack_into("<I4xQQ", data, 56 + 16, 1, root, names)
    (header,) = struct.unpack_from("<Q", data, 56 + 8)
    struct.pack_into("<QQ", data, header + 16 + 8, root, names)
    struct.pack_into("<Q", data, 40, len(data))
    start = time.process_time()
    with opened(bytes(data)) as (file, _, _), pytest.raises(CorruptModel, match="without measure"):
        file.walk(bool)
    assert time.process_time() - start < 10


def test_a_name_without_an_end_is_refused() -> None:
    data = bytearray(layers(3, 4))
    for heap in [match.start() for match in re.finditer(b"HEAP", bytes(data))]:
        length, address = struct.unpack_from("<Q8xQ", data, heap + 8)
        data[address : address + length] = b"a" * length
    with opened(bytes(data)) as (file, _, _), pytest.raises(CorruptModel, match="name without an end"):
        file.walk(bool)


@pytest.mark.parametrize("name", [b"a/b", b"..", b"."])
def test_names_that_lead_elsewhere_are_refused(name: bytes) -> None:
    data = written(lambda file: file.create_group("a" * len(name)))
    data = data.replace(b"a" * len(name) + b"\0", name + b"\0")
    with opened(data) as (file, _, _), pytest.raises(CorruptModel, match="leads elsewhere"):
        file.walk(bool)


def test_what_the_library_has_beyond_what_keras_writes_is_refused() -> None:
    def shared_type(file: Any) -> None:
        file["type"] = np.dtype("f4")
        file.create_dataset("g/0", data=np.zeros(3, "f4"), dtype=file["type"])

    def newer_chunks(file: Any) -> None:
        file.create_dataset("g/0", data=np.zeros(30, "f4"), chunks=(7,))

    with opened(written(shared_type)) as (file, _, _), pytest.raises(UnsupportedModel, match="several objects share"):
        file.group("g")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as made:
        newer_chunks(made)
    with opened(buffer.getvalue()) as (file, _, _):
        (dataset,) = (file.group("g") or {}).values()
        with pytest.raises(UnsupportedModel, match="newer layout"):
            file.read(dataset)


@pytest.mark.parametrize("damage", ["addresses", "counts", "lengths"])
def test_an_index_that_leads_round_or_astray_ends(damage: str) -> None:
    sound = layers(20, 16)
    places: dict[str, Callable[[np.random.Generator], tuple[bytes, int, bytes]]] = {
        "addresses": lambda noise: (
            (b"TREE", b"SNOD", b"HEAP")[noise.integers(3)],
            8 * int(noise.integers(1, 12)),
            int(noise.integers(0, 2 * len(sound))).to_bytes(8, "little"),
        ),
        "counts": lambda noise: ((b"TREE", b"SNOD")[noise.integers(2)], 6, noise.bytes(2)),
        "lengths": lambda noise: (b"HEAP", 8, noise.bytes(8)),
    }
    refused = 0
    for seed in range(60):
        noise, data = np.random.default_rng(seed), bytearray(sound)
        for _ in range(10):
            signature, after, value = places[damage](noise)
            found = [match.start() for match in re.finditer(signature, sound)]
            at = int(noise.choice(found)) + after
            data[at : at + len(value)] = value
        with opened(bytes(data), BEFORE) as (file, ranges, store):
            try:
                file.walk(bool)
            except ModelError:
                refused += 1
            assert ranges.round_trips <= 64
            assert store.counters.bytes_read <= len(data) + BEFORE + BLOCK
    assert refused > 10


def test_what_many_links_lead_to_costs_what_their_bytes_cost() -> None:
    """Thousands of links to one group of thousands of attributes, and to one packed value."""

    def many_attributes(file: Any) -> None:
        group = file.create_group("a")
        for i in range(1500):
            group.attrs[f"weight_names{i}"] = 1.0
        for i in range(1500):
            file[f"link_{i}"] = group

    def packed(file: Any) -> None:
        file.create_dataset("a", data=np.zeros(1 << 18, "f4"), chunks=(1 << 18,), compression="gzip")
        for i in range(1500):
            file[f"link_{i}"] = file["a"]

    start = time.process_time()
    with opened(written(many_attributes)) as (file, _, _), pytest.raises(CorruptModel, match="without measure"):
        file.walk(bool)
    with opened(written(packed)) as (file, _, _):
        datasets = (file.group("") or {}).values()
        with pytest.raises(UnsupportedModel, match="such values in all"):
            sum(file.read(dataset).nbytes for dataset in datasets)
    assert time.process_time() - start < 20


def test_chunks_that_no_file_can_hold_are_not_counted_out() -> None:
    data = bytearray(written(lambda file: file.create_dataset("a", data=np.zeros(5, "u1"), chunks=(1,))))
    space = data.index(struct.pack("<BBBxIQ", 1, 1, 1, 0, 5))
    struct.pack_into("<Q", data, space + 8, 1 << 20)
    with opened(bytes(data)) as (file, _, _):
        (dataset,) = (file.group("") or {}).values()
        with pytest.raises(CorruptModel, match="more chunks than a file"):
            file.read(dataset)
