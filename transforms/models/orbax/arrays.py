"""The arrays of one tree of a checkpoint: by name, with the place of each chunk.

A tree is in a folder of its own, in an OCDBT database or with an object for each key
(orbax/checkpoint/_src/serialization/tensorstore_utils.py).
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


class Tree:
    """One tree, in `folder`; `objects` are those of the folder, by their path below it."""

    def __init__(self, store: Store, folder: str, objects: Mapping[str, ObjectRef]) -> None:
        self._store, self.folder, self._objects = store, folder, objects

    def by_path(self, prefixes: Sequence[str] = ("",)) -> dict[tuple[str, ...], StoredArray]:
        """As `by_name`, by the keys that lead to each array, as far as the tree's metadata has them."""
        paths = self._paths()
        return {paths[name]: stored for name, stored in self.by_name(prefixes).items() if name in paths}

    def by_name(self, prefixes: Sequence[str] = ("",)) -> dict[str, StoredArray]:
        """The arrays whose name begins with one of `prefixes`.

        Raises `CorruptModel`, and `UnsupportedModel` for arrays of a kind that is not known.
        """
        with reported(self.folder):
            found = self._values(prefixes)
            values = {key: value for key, value in found.items() if key.startswith(tuple(prefixes))}
            arrays = {
                name: self._placed(name, parse_array(described), values) for name, described in self._described(values)
            }
            _check_size(arrays)
        return arrays

    def _paths(self) -> dict[str, tuple[str, ...]]:
        """For the name of each array the keys that lead to it, which the name joins by dots."""
        with reported(self.folder):
            if TREE_METADATA not in self._objects:
                raise Damaged(f"no {TREE_METADATA}")
            ref = self._objects[TREE_METADATA]
            if ref.size > _TREE_METADATA_BYTES:
                raise Damaged(f"{TREE_METADATA} of {ref.size} bytes")
            tree = parse_json_object(read_whole(self._store, ref)).get("tree_metadata")
            if not isinstance(tree, dict):
                raise Damaged(f"no tree in {TREE_METADATA}")
            paths = [tuple(_keys(entry)) for entry in tree.values()]
        return {".".join(path): path for path in paths}

    def _values(self, prefixes: Sequence[str]) -> dict[str, Value]:
        if MANIFEST not in self._objects:
            return {path: Place(path, 0, ref.size) for path, ref in self._objects.items()}
        manifest = self._objects[MANIFEST]
        if manifest.size > NODE_BYTES:
            raise Damaged(f"a manifest of {manifest.size} bytes")
        return keys_and_values(read_whole(self._store, manifest), self._read, prefixes)

    def _read(self, place: Place) -> bytes:
        return self._store.read(self._object(place), place.offset, place.length)

    def _object(self, place: Place) -> ObjectRef:
        if (ref := self._objects.get(place.path)) is None:
            raise Damaged(f"no file {place.path[:200]!r}, which its index names")
        if place.offset + place.length > ref.size:
            raise Damaged(f"{place.path} of {ref.size} bytes, where its index has {place.offset + place.length}")
        return ref

    def _described(self, values: Mapping[str, Value]) -> Iterator[tuple[str, bytes]]:
        """The name of each array, and its metadata."""
        keys = [key for key in values if key.rpartition("/")[2] in METADATA]

        def read(key: str) -> bytes:
            value = values[key]
            if isinstance(value, bytes):
                return value
            if value.length > METADATA_BYTES:
                raise Damaged(f"{key} of {value.length} bytes")
            return self._read(value)

        with ThreadPoolExecutor(_READS_AT_ONCE, "headrace-arrays") as pool:
            yield from zip((key.rpartition("/")[0] for key in keys), pool.map(read, keys), strict=True)

    def _placed(self, name: str, array: ZarrArray, values: Mapping[str, Value]) -> StoredArray:
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
                chunks.append(Chunk(start, self._object(value), value.offset, value.length))
        return StoredArray(ObjectRef(f"{self.folder}/{name}", array.nbytes, ""), array, tuple(chunks))


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


def _check_size(arrays: Mapping[str, StoredArray]) -> None:
    stored = sum(chunk.length for array in arrays.values() for chunk in array.chunks)
    made = sum(max(one.array.nbytes, len(one.chunks) * one.array.chunk_nbytes) for one in arrays.values())
    if made > _FREE_BYTES + _MOST_TIMES * stored:
        raise Damaged(f"{stored} bytes that claim to unpack to {made}")
