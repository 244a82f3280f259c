"""The files of a saved Keras model: members of a zip archive, or objects in a store.

A `.keras` file is a zip of config.json, model.weights.h5 and assets/; unzipped, it is a folder of the same
(keras/src/saving/saving_lib.py). Weights that were saved with `max_shard_size` are a model.weights.json, which records
the HDF5 file next to it that holds each group of variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from ...bounded_json import NotJson, objects_in, parse_json
from ...errors import CorruptModel, NotAModel, UnsupportedModel
from ...storage import ObjectRef, Store
from ..streaming.composed_crc import CheckedSpan
from ..streaming.ranges import Ranges, Resident
from ..streaming.whole_reads import read_whole
from .archive import Archive
from .weights import HEAD_BYTES, Placed, SavedWeights, open_weights

CONFIG, ASSETS, _METADATA = "config.json", "assets/", "metadata.json"
WEIGHTS, SHARDED_WEIGHTS, NPZ_WEIGHTS = "model.weights.h5", "model.weights.json", "model.weights.npz"
# Up to this many bytes, the weights come whole in one request, sooner than their index would in several.
WHOLE_BYTES = 1 << 20
# A configuration is text, 1 MiB for a thousand layers; a vocabulary of 10 M words makes 100 MiB.
CONFIG_BYTES, ASSET_BYTES = 64 << 20, 1 << 30
SHARD_INDEX_BYTES = 64 << 20
_METADATA_BYTES, _INFLATED_BYTES = 1 << 20, 1 << 40
_SHARD_NAME = re.compile(r"[^/\\\0]+\.weights\.h5")
_MAX_SHARDS = 10_000
# The files that KerasHub's tokenizers read (VOCAB_FILENAME and MERGES_FILENAME in keras_hub/src/tokenizers and models).
_VOCABULARIES = ("vocabulary.txt", "vocabulary.json", "merges.txt", "vocabulary.spm")
_FOLDER = re.compile(r"\w[\w-]{0,99}")
_MOST_FOLDERS = 16


class ZipFiles:
    """Members of an archive, by their paths below the model. `store` is the one to read the weights' bytes from."""

    def __init__(self, store: Store, ranges: Ranges) -> None:
        """Raises `NotAModel` or `CorruptModel`."""
        self.store, self.uri = store, ranges.ref.uri
        self._ranges, self._archive = ranges, Archive(ranges)
        self.names = list(self._archive.members)
        self._archive.fetch_starts({CONFIG: WHOLE_BYTES, _METADATA: WHOLE_BYTES, WEIGHTS: HEAD_BYTES})

    def read(self, name: str, limit: int) -> bytearray:
        """A whole file of at most `limit` bytes."""
        return self._archive.read(name, limit)

    def place(self, name: str) -> Placed:
        """The place of an HDF5 file."""
        located = self._archive.locate(name)
        if located is None or located[1] <= WHOLE_BYTES:
            data = self._archive.read(name, _INFLATED_BYTES)
            return Placed(name, self._ranges.ref, Resident(data), 0, len(data))
        member = self._archive.checksum(name)
        return Placed(name, self._ranges.ref, self._ranges, *located, (*whole_object(self._ranges.ref), member))


class ObjectFiles:
    """The same of objects of their own, by name; `uri` is what the model is called by."""

    def __init__(self, store: Store, uri: str, objects: Mapping[str, ObjectRef], opened: ExitStack) -> None:
        self.store, self.uri, self.names = store, uri, list(objects)
        self._objects, self._opened = objects, opened

    def read(self, name: str, limit: int) -> bytes:
        ref = self._objects[name]
        if ref.size > limit:
            raise CorruptModel(
                f"{ref.uri} is too large for what it is",
                expected=f"at most {limit} bytes",
                found=f"{ref.size} bytes",
                cure="Save the model again.",
            )
        return read_whole(self.store, ref)

    def place(self, name: str) -> Placed:
        ref = self._objects[name]
        if ref.size <= WHOLE_BYTES:
            return Placed(name, ref, Resident(read_whole(self.store, ref)), 0, ref.size)
        ranges = self._opened.enter_context(Ranges(self.store, ref))
        return Placed(name, ref, ranges, 0, ref.size, whole_object(ref))


Files = ZipFiles | ObjectFiles


def whole_object(ref: ObjectRef) -> tuple[CheckedSpan, ...]:
    """The checksum that a store keeps of the object, if it does."""
    return () if ref.crc32c is None else (CheckedSpan(ref, 0, ref.size, ref.crc32c, "CRC-32C"),)


def assets(files: Files) -> dict[str, bytes | bytearray]:
    """Asset files by their path below `assets/`."""
    names = [name for name in files.names if name.startswith(ASSETS) and not name.endswith("/")]
    return {name.removeprefix(ASSETS): files.read(name, ASSET_BYTES) for name in names}


def read_json(data: bytes | bytearray, what: str, cure: str) -> Any:
    """Raises `CorruptModel` where it is not JSON."""
    try:
        return parse_json(data)
    except NotJson as error:
        raise CorruptModel(f"{what} is not JSON", found=str(error)[:200], cure=cure) from error


def keras_version(files: Files) -> str | None:
    """The version of the Keras that wrote the model, from its metadata.json."""
    if _METADATA not in files.names:
        return None
    data = files.read(_METADATA, _METADATA_BYTES)
    described = read_json(data, f"{_METADATA} of {files.uri}", "Copy the model again.")
    version = described.get("keras_version") if isinstance(described, dict) else None
    return version if isinstance(version, str) else None


def weights_of(files: Files) -> SavedWeights:
    """The weights next to a config.json. Raises `CorruptModel`, `UnsupportedModel`."""
    names = files.names
    if WEIGHTS in names:
        return open_weights(files.store, [files.place(WEIGHTS)])
    if SHARDED_WEIGHTS in names:
        return sharded_weights(files, SHARDED_WEIGHTS)
    if NPZ_WEIGHTS in names:
        raise UnsupportedModel(
            f"{files.uri} keeps its weights in {NPZ_WEIGHTS}",
            expected=WEIGHTS,
            cure="Save the model again with model.save('….keras').",
        )
    raise CorruptModel(
        f"{files.uri} has no weights",
        expected=f"{WEIGHTS} or {SHARDED_WEIGHTS}",
        found=", ".join(sorted(names)[:5]),
        cure="Save the model again with model.save('….keras').",
    )


def sharded_weights(files: Files, index: str) -> SavedWeights:
    """The weights that a `….weights.json` names. Raises `CorruptModel`."""
    mapped = weight_map(files.read(index, SHARD_INDEX_BYTES), f"{index} of {files.uri}")
    shards = sorted({shard for shards in mapped.values() for shard in shards})
    if missing := [shard for shard in shards if shard not in files.names]:
        raise CorruptModel(
            f"{files.uri} lacks {', '.join(missing[:3])}, which its {index} names",
            expected=f"{len(shards)} files of weights",
            cure="Copy the whole folder.",
        )
    number = {shard: i for i, shard in enumerate(shards)}
    placed = [files.place(shard) for shard in shards]
    by_group = {group: tuple(number[shard] for shard in names) for group, names in mapped.items()}
    return open_weights(files.store, placed, by_group)


def weight_map(data: bytes | bytearray, what: str) -> dict[str, list[str]]:
    """HDF5 group (no leading slash) to the files that hold its variables.

    Raises `CorruptModel`, for names too that lead out of the folder; `NotAModel` where it is another kind of JSON.
    """
    described = read_json(data, what, "Copy the file again.")
    mapped = described.get("weight_map") if isinstance(described, dict) else None
    if not isinstance(mapped, dict):
        raise NotAModel(
            f"{what} does not say where the weights are",
            expected="a 'weight_map', as model.save_weights('….weights.json', max_shard_size=…) writes it",
            cure="Name the file that save_weights wrote.",
        )
    found: dict[str, list[str]] = {}
    for group, shards in mapped.items():
        found[group.lstrip("/")] = several = shards if isinstance(shards, list) else [shards]
        for shard in several:
            if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
                raise CorruptModel(
                    f"{what} names a file that no sound one would",
                    expected="names of files next to it that end in .weights.h5",
                    found=repr(shard)[:200],
                    cure="Save the weights again.",
                )
    if len({shard for shards in found.values() for shard in shards}) > _MAX_SHARDS:
        raise CorruptModel(f"{what} names too many files", expected=f"at most {_MAX_SHARDS}")
    return found


def asset_names(task: bytes | bytearray) -> list[str]:
    """The paths below the preset at which the tokenizers of a task.json may have files; none where it is not JSON.

    For stores that list no folders.
    """
    try:
        described = parse_json(task)
    except NotJson:
        return []
    folders: set[str] = set()
    for found in objects_in(described):
        folder = str(found.get("config_file")).partition(".")[0]
        # A preprocessor has a config_file too, but no folder.
        if "config_file" in found and folder != "preprocessor" and _FOLDER.fullmatch(folder):
            folders.add(folder)
    return [f"assets/{folder}/{name}" for folder in sorted(folders)[:_MOST_FOLDERS] for name in _VOCABULARIES]
