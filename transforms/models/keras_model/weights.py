"""The tensors of a Keras model by their HDF5 group, over one file or several shards.

Two layouts: that of Keras 3, a group `…/vars` for each object, with numbered datasets (keras/src/saving/saving_lib.py); and
the older one, a group for each layer, with the names of layers and weights in attributes
(keras/src/legacy/saving/legacy_h5_format.py).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...errors import CorruptModel
from ...storage import ObjectRef, Store
from ..streaming.composed_crc import CheckedSpan
from ..streaming.dlpack import aligned_empty, to_tensor
from ..streaming.ranges import RangeFile, Ranges, Resident
from ..streaming.tensor_stream import TensorSlot, TensorStream, numpy_dtype, read_of
from .hdf5 import Hdf5File
from .hdf5_types import Dataset
from .refusals import damaged

_TEXTS = re.compile(r"(layer_names|weight_names)\d*|model_config|keras_version")
_MODEL_WEIGHTS, _TOP_LEVEL = "model_weights", "top_level_model_weights"
# Keras 2.12 to 2.15 called the layers of a model so, in `.weights.h5` and `.keras` files.
_LAYERS_ONCE = "_layer_checkpoint_dependencies"
_FILES_AT_ONCE = 8
# For all layers together: a file may name one layer, and its weight, any number of times.
_MAX_NAMED = 1_000_000
HEAD_BYTES = 16 << 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placed:
    """An HDF5 file that begins at byte `offset` of an object, or is in memory.

    `checksums` cover its bytes, perhaps with others, the quickest first.
    """

    name: str
    ref: ObjectRef
    source: Ranges | Resident
    offset: int
    size: int
    checksums: tuple[CheckedSpan, ...] = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dataset, and the file that holds it."""

    file: int
    dataset: Dataset


@dataclass(frozen=True, slots=True)
class LegacyLayer:
    name: str
    tensors: tuple[Tensor, ...]


class SavedWeights:
    """Open HDF5 files. `shards` maps each group to the files that hold it; without it there is one file."""

    def __init__(
        self, store: Store, files: Sequence[tuple[Placed, Hdf5File]], shards: Mapping[str, Sequence[int]] | None
    ) -> None:
        self._store, self._files, self._shards = store, files, shards
        self._streamed: set[str] = set()
        self._named = 0
        self.nbytes = 0
        """Bytes of the requested tensors."""

    @property
    def round_trips(self) -> int:
        return max(p.source.round_trips if isinstance(p.source, Ranges) else 0 for p, _ in self._files)

    @property
    def config(self) -> str | None:
        """The configuration that a whole model's file of the older layout holds."""
        return next(iter(self._files[0][1].texts("").get("model_config", ())), None)

    @property
    def keras_version(self) -> str | None:
        """The version of the Keras that wrote a file of the older layout."""
        texts = self._files[0][1].texts("") or self._files[0][1].texts(_MODEL_WEIGHTS)
        return next(iter(texts.get("keras_version", ())), None)

    @property
    def legacy_root(self) -> str | None:
        """The group of the older layout, or None where it is not in that layout."""
        if self._shards is not None:
            return None
        for root in ("", _MODEL_WEIGHTS):
            if _names(self._files[0][1].texts(root), "layer_names") is not None:
                return root
        return None

    def group(self, path: str) -> dict[str, Tensor] | None:
        """The tensors directly below a group by name; None where there is no such group. Raises as `Hdf5File.group`."""
        found = [(i, group) for i in self._holding(path) if (group := self._files[i][1].group(path)) is not None]
        if not found and self._shards is None and path.startswith("layers/") and self._files[0][1].has(_LAYERS_ONCE):
            # As H5IOStore.get does.
            older = self._files[0][1].group(path.replace("layers", _LAYERS_ONCE))
            found = [(0, older)] if older is not None else []
        return {name: Tensor(i, d) for i, group in found for name, d in group.items()} if found else None

    def has(self, path: str) -> bool:
        if self._shards is None:
            return self._files[0][1].has(path)
        return any(group == path or group.startswith(f"{path}/") for group in self._shards)

    def tensors(self, groups: Sequence[str]) -> list[Tensor]:
        """The tensors directly below each of the groups, which are located together."""
        self._each(lambda i: self._files[i][1].locate([g for g in groups if i in self._holding(g)]))
        return [tensor for group in groups for tensor in (self.group(group) or {}).values()]

    def guess(self) -> list[Tensor]:
        """The tensors that inference needs, before there is a model to ask: all except the optimizers'.

        One too many costs its bytes; one too few is read when Keras asks for it.
        """
        legacy = self.legacy_root

        def wanted(name: str) -> bool:
            return name != "optimizer_weights" if legacy is not None else _is_for_inference(name)

        def find(i: int) -> list[Tensor]:
            hdf5 = self._files[i][1]
            return [
                Tensor(i, dataset)
                for group in hdf5.walk(wanted)
                if legacy is not None or (group.endswith("vars") and i in self._holding(group))
                for dataset in (hdf5.group(group) or {}).values()
            ]

        return [tensor for found in self._each(find) for tensor in found]

    def legacy_layers(self) -> tuple[list[LegacyLayer], LegacyLayer | None]:
        """The layers that have weights, in the order of the older layout, and the model's own weights, if any are saved.

        Raises `CorruptModel` where a layer or a weight that is named does not exist.
        """
        root = self.legacy_root
        assert root is not None
        texts = self._files[0][1].texts(root)
        layers = [self._legacy_layer(root, name) for name in _names(texts, "layer_names") or ()]
        top = f"{root}/{_TOP_LEVEL}".lstrip("/")
        has_top = self._files[0][1].group(top) is not None
        return [layer for layer in layers if layer.tensors], self._legacy_layer(root, _TOP_LEVEL) if has_top else None

    def slots(self, tensors: Sequence[Tensor]) -> list[TensorSlot]:
        """One for each tensor that is not in memory already."""
        slots = []
        for tensor in tensors:
            placed, dataset = self._files[tensor.file][0], tensor.dataset
            if dataset.offset is not None and isinstance(placed.source, Ranges):
                name, at = self._slot_name(tensor), placed.offset + dataset.offset
                slots.append(TensorSlot(name, dataset.dtype, dataset.shape, placed.ref, at, dataset.nbytes))
        self._streamed = {slot.name for slot in slots}
        return slots

    def spans(self, slots: Sequence[TensorSlot]) -> list[CheckedSpan]:
        """The checksums that hold for what is read with these slots, as far as there are such."""
        found: dict[CheckedSpan, None] = {}
        for placed, _ in self._files:
            usable = (span for span in placed.checksums if span.besides(read_of(span, slots)) is not None)
            if (span := next(usable, None)) is not None:
                found[span] = None
            elif isinstance(placed.source, Ranges):
                _say_unchecked(placed.ref.name)
        return list(found)

    def take(self, tensor: Tensor, stream: TensorStream) -> Any:
        """The value as a `tf.Tensor`: from the stream, from memory, or fetched now where it was not planned."""
        dataset, (placed, hdf5) = tensor.dataset, self._files[tensor.file]
        self.nbytes += dataset.nbytes
        if dataset.offset is None:
            return to_tensor(hdf5.read(dataset))
        if (name := self._slot_name(tensor)) in self._streamed:
            self._streamed.remove(name)
            return to_tensor(stream.take(name))
        buffer = aligned_empty(dataset.nbytes)
        if isinstance(placed.source, Resident):
            memoryview(buffer)[:] = placed.source.view(dataset.offset, dataset.nbytes)
        else:
            self._store.read_into(placed.ref, placed.offset + dataset.offset, [memoryview(buffer)])
        return to_tensor(buffer.view(numpy_dtype(dataset.dtype)).reshape(dataset.shape))

    def _slot_name(self, tensor: Tensor) -> str:
        return f"{self._files[tensor.file][0].name}/{tensor.dataset.path}"

    def _holding(self, group: str) -> Sequence[int]:
        return (0,) if self._shards is None else self._shards.get(group, ())

    def _each(self, work: Callable[[int], Any]) -> list[Any]:
        """For every file; their round trips go side by side, except for those of one object's parts."""
        if len({id(placed.source) for placed, _ in self._files}) < len(self._files):
            return [work(i) for i in range(len(self._files))]
        if len(self._files) == 1:
            return [work(0)]
        with ThreadPoolExecutor(_FILES_AT_ONCE, "headrace-shards") as pool:
            return list(pool.map(work, range(len(self._files))))

    def _legacy_layer(self, root: str, name: str) -> LegacyLayer:
        placed, hdf5 = self._files[0]
        path = f"{root}/{name}".lstrip("/")
        if hdf5.group(path) is None:
            raise self._missing(placed, "layer", name)
        tensors = []
        for weight in _names(hdf5.texts(path), "weight_names") or ():
            parent, _, leaf = f"{path}/{weight}".rpartition("/")
            dataset = (hdf5.group(parent) or {}).get(leaf)
            if dataset is None:
                raise self._missing(placed, "weight", f"{name}/{weight}")
            tensors.append(Tensor(0, dataset))
        self._named += len(tensors)
        if self._named > _MAX_NAMED:
            raise damaged(
                f"{placed.name} in {placed.ref.uri} names the same weights over and over",
                f"at most {_MAX_NAMED:,} weights",
                f"{self._named:,} up to layer {name!r}",
            )
        return LegacyLayer(name, tuple(tensors))

    def _missing(self, placed: Placed, kind: str, name: str) -> CorruptModel:
        what = f"{placed.name} in {placed.ref.uri} has no {kind} {name!r}, which it names"
        return damaged(what, "every name in its attributes")


def open_weights(
    store: Store, files: Sequence[Placed], shards: Mapping[str, Sequence[int]] | None = None
) -> SavedWeights:
    """Raises `CorruptModel` where a file is not an HDF5 file."""

    def opened(placed: Placed) -> tuple[Placed, Hdf5File]:
        file = RangeFile(placed.source, placed.offset, placed.size)
        what = placed.name if placed.ref.uri.endswith(placed.name) else f"{placed.name} in {placed.ref.uri}"
        return placed, Hdf5File(file, what, _TEXTS, _is_for_inference)

    with ThreadPoolExecutor(_FILES_AT_ONCE, "headrace-shards") as pool:
        list(pool.map(_fetch_heads, _by_source(files)))
    return SavedWeights(store, [opened(placed) for placed in files], shards)


@cache
def _say_unchecked(name: str) -> None:
    _log.info("%s: no checksum covers just the bytes of the weights that are read: TLS and length alone", name)


def _is_for_inference(name: str) -> bool:
    return "optimizer" not in name


def _by_source(files: Sequence[Placed]) -> list[tuple[Ranges, list[int]]]:
    """Where the files begin in each object: `Ranges` are for one thread at a time."""
    found: dict[int, tuple[Ranges, list[int]]] = {}
    for placed in files:
        if isinstance(placed.source, Ranges):
            found.setdefault(id(placed.source), (placed.source, []))[1].append(placed.offset)
    return list(found.values())


def _fetch_heads(begins: tuple[Ranges, list[int]]) -> None:
    """The superblock and what is mostly near it, of all files at once."""
    source, offsets = begins
    source.fetch((offset, HEAD_BYTES) for offset in offsets)


def _names(texts: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...] | None:
    """A list of names that may be split over the attributes name0, name1, …"""
    if name in texts:
        return texts[name]
    if f"{name}0" not in texts:
        return None
    pieces: list[tuple[str, ...]] = []
    while (piece := f"{name}{len(pieces)}") in texts:
        pieces.append(texts[piece])
    return tuple(text for texts_of_one in pieces for text in texts_of_one)
