"""The index that is fetched ahead of HDF5's own library: all that it asks for, and never more than there is."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import h5py
import numpy as np
import pytest

from headrace.transforms.models.keras_model import hdf5_index
from headrace.transforms.models.keras_model.hdf5_index import fetch_index
from headrace.transforms.models.streaming.ranges import BLOCK, NotFetched, RangeFile, Ranges
from headrace.transforms.storage import open_store
from headrace.transforms.storage.memory import put
from tests.transforms.models.keras_model.test_hdf5 import layers, opened

BEFORE = 5000


def wanted(name: str) -> bool:
    return name != "optimizer"


@pytest.mark.parametrize(("count", "trips"), [(50, 4), (400, 6)])
def test_the_library_finds_all_that_is_wanted_and_nothing_else_was_fetched(count: int, trips: int) -> None:
    data = layers(count, 128)
    with opened(data, BEFORE) as (_, ranges, store):
        before = ranges.round_trips
        fetch_index(ranges, BEFORE, len(data), wanted)
        assert ranges.round_trips - before <= trips
        requests = store.counters.requests
        with h5py.File(RangeFile(ranges, BEFORE, len(data)), "r") as file:
            ranges.collecting = True  # where bytes are missing, it fails
            for i in range(count):
                offset = file[f"layers/dense_{i}/vars/0"].id.get_offset()
                assert data[offset : offset + 4] == np.float32(i).tobytes()
            with pytest.raises((NotFetched, KeyError, OSError, RuntimeError)):
                file[f"optimizer/dense_{count - 1}/vars/0"].id.get_offset()
            ranges.collecting = False
        assert store.counters.requests == requests


def test_places_are_bounded_within_a_pass_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of a symbol table whose entries all share a wide tree, each with a heap of its own: their product is followed."""
    entries, children = 60, 50
    data = bytearray(layers(1, 16))
    tree = len(data) + 24 * children
    leaves = b"".join(struct.pack("<4sBBH16x", b"TREE", 0, 0, 0) for _ in range(children))
    shared = struct.pack("<4sBBH16x", b"TREE", 0, 1, children)
    shared += b"".join(struct.pack("<QQ", 0, len(data) + 24 * i) for i in range(children))
    node = tree + len(shared)
    symbols = struct.pack("<4sBxH", b"SNOD", 1, entries)
    symbols += b"".join(struct.pack("<QQI4xQQ", 0, 1 << 40, 1, tree, i) for i in range(entries))
    heap = node + len(symbols)
    names = struct.pack("<4s4xQQQ8x", b"HEAP", 8, 0, heap + 32)
    first = struct.pack("<4sBBH16xQQ", b"TREE", 0, 0, 1, 0, node)
    data += leaves + shared + symbols + names + first
    struct.pack_into("<I4xQQ", data, 56 + 16, 1, heap + len(names), heap)
    followed: list[tuple[str, int, int]] = []
    follow = hdf5_index._Index.follow

    def noted(index: hdf5_index._Index, place: tuple[str, int, int]) -> list[tuple[str, int, int]]:
        followed.append(place)
        return follow(index, place)

    monkeypatch.setattr(hdf5_index._Index, "follow", noted)

    def places(most: int) -> int:
        followed.clear()
        monkeypatch.setattr(hdf5_index, "_MAX_PLACES", most)
        with Ranges(open_store("memory://x"), put("memory://index/places", bytes(data))) as ranges:
            fetch_index(ranges, 0, len(data), wanted)
        return len(followed)

    assert places(1_000_000) > entries * children
    assert places(500) < 500 + 2 * entries


@pytest.mark.parametrize("damage", ["addresses", "counts", "lengths"])
def test_an_index_that_leads_round_or_astray_ends_and_says_nothing(damage: str) -> None:
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
    for seed in range(60):
        noise, data = np.random.default_rng(seed), bytearray(sound)
        for _ in range(10):
            signature, after, value = places[damage](noise)
            found = [match.start() for match in re.finditer(signature, sound)]
            at = int(noise.choice(found)) + after
            data[at : at + len(value)] = value
        with opened(bytes(data), BEFORE) as (_, ranges, store):
            fetch_index(ranges, BEFORE, len(data), wanted)
            assert ranges.round_trips <= 64
            assert store.counters.bytes_read <= len(data) + BEFORE + BLOCK
