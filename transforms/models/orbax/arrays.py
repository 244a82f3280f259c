"""The arrays of one tree of a checkpoint: by name, with the place of each chunk.

A tree is in a folder of its own, in an OCDBT database or with an object for each key
(orbax/checkpoint/_src/serialization/tensorstore_utils.py). `objects` are those of the folder, by their path below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ...bounded_json import NotJson, parse_json_object
from ...errors import CorruptModel, UnsupportedModel
from ...storage import ObjectRef, Store
from ..streaming.whole_reads import read_whole
from .array_store import Chunk, StoredArray
from .ocdbt import MANIFEST, NODE_BYTES, Damaged, Place, Value, keys_and_values
from .zarr import METADATA, METADATA_BYTES, NotSupported, ZarrArray, parse_array

TREE_METADATA = "_METADATA"
_TREE_METADATA_BYTES = 64 << 20
_READS_AT_ONCE = 32
# Zstandard packs 128 KiB of zeros into 4 bytes, and new weights may be zeros. The limit is for what would fill all memory.
_FREE_BYTES, _MOST_TIMES = 1 << 30, 100


def stored_arrays(
    store: Store, folder: str, objects: Mapping[str, ObjectRef], prefixes: Sequence[str] = ("",)
) -> dict[str, StoredArray]:
    """The arrays whose name begins with one of `prefixes`, by name.

    Raises `CorruptModel`, and `UnsupportedModel` for arrays of a kind that is not known.
    """
    with reported(folder):
        found = _values(store, objects, prefixes)
        values = {key: value for key, value in found.items() if key.startswith(tuple(prefixes))}
        arrays = {
            name: _placed(folder, objects, name, parse_array(described), values)
            for name, described in _described(store, objects, values)
        }
        _check_size(arrays)
    return arrays


def tree_paths(store: Store, folder: str, objects: Mapping[str, ObjectRef]) -> dict[str, tuple[str, ...]]:
    """For the name of each array the keys that lead to it, which the name joins by dots. Raises `CorruptModel`."""
    with reported(folder):
        if TREE_METADATA not in objects:
            raise Damaged(f"no {TREE_METADATA}")
        ref = objects[TREE_METADATA]
        if ref.size > _TREE_METADATA_BYTES:
            raise Damaged(f"{TREE_METADATA} of {ref.size} bytes")
        tree = parse_json_object(read_whole(store, ref)).get("tree_metadata")
        if not isinstance(tree, dict):
            raise Damaged(f"no tree in {TREE_METADATA}")
        paths = [tuple(_keys(entry)) for entry in tree.values()]
    return {".".join(path): path for path in paths}


def _keys(entry: object) -> Iterator[str]:
    described = entry.get("key_metadata") if isinstance(entry, dict) else None
    for key in described if isinstance(described, list) else [None]:
        name = key.get("key") if isinstance(key, dict) else None
        if not isinstance(name, str):
            raise Damaged(f"keys without a name in {TREE_METADATA}")
        yield name


@contextmanager
def reported(folder: str) -> Iterator[None]:
    try:
        yield
    except NotSupported as error:
        raise UnsupportedModel(
            f"The checkpoint {folder} holds arrays of a kind that headrace does not read",
            expected="what keras.callbacks.OrbaxCheckpoint writes: Zarr arrays, unpacked or packed by Zstandard",
            found=str(error),
            cure="Load it with keras.models.load_model where it was trained, and save it with model.save('….keras').",
        ) from error
    except (Damaged, NotJson) as error:
        raise CorruptModel(
            f"The checkpoint {folder} is damaged",
            expected="every file as Orbax wrote it",
            found=str(error),
            cure="Copy the whole folder again from where it was saved.",
        ) from error


def _values(store: Store, objects: Mapping[str, ObjectRef], prefixes: Sequence[str]) -> dict[str, Value]:
    if MANIFEST not in objects:
        return {path: Place(path, 0, ref.size) for path, ref in objects.items()}
    if objects[MANIFEST].size > NODE_BYTES:
        raise Damaged(f"a manifest of {objects[MANIFEST].size} bytes")

    def read(place: Place) -> bytes:
        return store.read(_object(objects, place), place.offset, place.length)

    return keys_and_values(read_whole(store, objects[MANIFEST]), read, prefixes)


def _object(objects: Mapping[str, ObjectRef], place: Place) -> ObjectRef:
    if (ref := objects.get(place.path)) is None:
        raise Damaged(f"no file {place.path[:200]!r}, which its index names")
    if place.offset + place.length > ref.size:
        raise Damaged(f"{place.path} of {ref.size} bytes, where its index has {place.offset + place.length}")
    return ref


def _described(
    store: Store, objects: Mapping[str, ObjectRef], values: Mapping[str, Value]
) -> Iterator[tuple[str, bytes]]:
    """The name of each array, and its metadata."""
    keys = [key for key in values if key.rpartition("/")[2] in METADATA]

    def read(key: str) -> bytes:
        value = values[key]
        if isinstance(value, bytes):
            return value
        if value.length > METADATA_BYTES:
            raise Damaged(f"{key} of {value.length} bytes")
        return store.read(_object(objects, value), value.offset, value.length)

    with ThreadPoolExecutor(_READS_AT_ONCE, "headrace-arrays") as pool:
        yield from zip((key.rpartition("/")[0] for key in keys), pool.map(read, keys), strict=True)


def _placed(
    folder: str, objects: Mapping[str, ObjectRef], name: str, array: ZarrArray, values: Mapping[str, Value]
) -> StoredArray:
    if array.chunks > len(values):
        raise Damaged(f"{array.chunks} chunks of {name}, more than there are keys")
    chunks = []
    for start, key in array.places():
        value = values.get(f"{name}/{key}")
        if value is None:
            raise Damaged(f"no chunk {key} of {name}")
        if isinstance(value, bytes):
            chunks.append(Chunk(start, None, 0, len(value), value))
        else:
            chunks.append(Chunk(start, _object(objects, value), value.offset, value.length))
    return StoredArray(ObjectRef(f"{folder}/{name}", array.nbytes, ""), array, tuple(chunks))


def _check_size(arrays: Mapping[str, StoredArray]) -> None:
    stored = sum(chunk.length for array in arrays.values() for chunk in array.chunks)
    made = sum(max(one.array.nbytes, len(one.chunks) * one.array.chunk_nbytes) for one in arrays.values())
    if made > _FREE_BYTES + _MOST_TIMES * stored:
        raise Damaged(f"{stored} bytes that claim to unpack to {made}")
