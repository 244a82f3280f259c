"""The directory of an OCDBT database, against what TensorStore itself wrote."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping

import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.models.orbax import ocdbt
from headrace.transforms.models.orbax.ocdbt import MANIFEST, Damaged, Place, keys_and_values


def database(values: Mapping[str, bytes], *, node_bytes: int = 100_000_000, level: int | None = 0) -> dict[str, bytes]:
    """The files of a database in two versions; the newer one has all `values`."""
    context = tensorstore.Context()
    compression = None if level is None else {"id": "zstd", "level": level}
    config = {"max_inline_value_bytes": 20, "max_decoded_node_bytes": node_bytes, "compression": compression}
    spec = {"driver": "ocdbt", "base": "memory://db/", "config": config}
    store = tensorstore.KvStore.open(spec, context=context).result()
    store.write("an older version", b"has this alone").result()
    store.delete_range(tensorstore.KvStore.KeyRange()).result()
    with tensorstore.Transaction() as together:
        for key, value in values.items():
            store.with_transaction(together)[key] = value
    files = tensorstore.KvStore.open("memory://db/", context=context).result()
    return {key.decode(): bytes(files[key]) for key in files.list().result()}


def read(files: Mapping[str, bytes], place: Place) -> bytes:
    return files[place.path][place.offset : place.offset + place.length]


def contents(files: Mapping[str, bytes], prefixes: tuple[str, ...] = ("",)) -> dict[str, bytes]:
    found = keys_and_values(files[MANIFEST], functools.partial(read, files), prefixes)
    return {key: read(files, value) if isinstance(value, Place) else value for key, value in found.items()}


@given(
    values=st.dictionaries(st.text(max_size=12), st.binary(max_size=40), max_size=60),
    node_bytes=st.sampled_from([200, 1000, 100_000_000]),
    level=st.sampled_from([None, 3]),
)
@settings(max_examples=15, deadline=None)
def test_what_tensorstore_wrote(values: dict[str, bytes], node_bytes: int, level: int | None) -> None:
    assert contents(database(values, node_bytes=node_bytes, level=level)) == values


def test_only_nodes_that_may_hold_what_is_wanted_are_read() -> None:
    values = {f"{tree}.{i:03}/c/0": b"%d" % i for tree in ("optimizer", "trainable") for i in range(300)}
    files = database(values, node_bytes=300)
    places: list[Place] = []

    def noted(place: Place) -> bytes:
        places.append(place)
        return read(files, place)

    keys_and_values(files[MANIFEST], noted)
    of_all = len(places)
    found = keys_and_values(files[MANIFEST], noted, ("trainable.",))
    assert {key for key in found if key.startswith("trainable.")} == {key for key in values if key.startswith("t")}
    assert of_all > 40
    assert len(places) - of_all < 0.75 * of_all  # nodes differ from one writing to the next


def test_whatever_is_changed_in_it_is_damage() -> None:
    """Each node and the manifest have a checksum, so all changes are found, but for those where no node is."""
    noise = random.Random(1)
    files = database({f"key {i}": bytes([i]) * 15 for i in range(50)}, node_bytes=300)
    sound = contents(files)
    for _ in range(300):
        name = noise.choice(list(files))
        data = bytearray(files[name])
        if noise.random() < 0.3:
            del data[noise.randrange(len(data)) :]
        else:
            data[noise.randrange(len(data))] ^= 1 << noise.randrange(8)
        try:
            assert contents({**files, name: bytes(data)}) == sound
        except Damaged:
            continue


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "beyond the end"),
        (b"\0" * 16 + b"\1", "versions are in files of their own"),
        (b"\0" * 16 + b"\0\0\0\0\7", "unknown method 7"),
        (b"\0" * 16 + b"\0\0\0\0\0" + b"\xff" * 11, "more than 64 bits"),
        (b"\0" * 16 + b"\0\0\0\0\0" + b"\xff\xff\xff\x0f", "33554431 entries in 0 bytes"),
        (b"\0" * 16 + b"\0\0\0\0\0\0\0\0", "without a version"),
        (b"\0" * 16 + b"\0\0\0\0\0\2\1\4\4\0\0abcdabcd", "shares more than there is|paths cannot be|beyond"),
    ],
)
def test_a_manifest_that_cannot_be(body: bytes, message: str) -> None:
    with pytest.raises(Damaged, match=message):
        keys_and_values(_signed(ocdbt.MANIFEST_MAGIC, body), lambda place: b"")


def test_few_bytes_that_unpack_to_many_end_early() -> None:
    import zstandard

    packed = zstandard.ZstdCompressor().compress(bytes(300 << 20))
    assert len(packed) < 100_000
    with pytest.raises(Damaged, match="more than 268435456 bytes"):
        keys_and_values(_signed(ocdbt.MANIFEST_MAGIC, packed, packing=1), lambda place: b"")


def _signed(magic: int, body: bytes, packing: int = 0) -> bytes:
    import crc32c

    data = magic.to_bytes(4, "big") + (len(body) + 18).to_bytes(8, "little") + bytes([0, packing]) + body
    return data + crc32c.crc32c(data).to_bytes(4, "little")
