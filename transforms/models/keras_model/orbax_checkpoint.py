"""Orbax checkpoints of Keras models: the configuration, the state that a model is called with, and vocabularies.

The layout is that of keras/src/callbacks/orbax_checkpoint.py: in the folder of a step, model_config/ holds the configuration
as a text, pytree/ the state as a tree of arrays (those of the optimizer and the metrics are not read), and assets/ the
layers' files as a tree of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ...errors import CorruptModel, UnsupportedModel
from ...storage import Store
from ..orbax import steps
from ..orbax.array_store import ArrayStore, StoredArray
from ..orbax.arrays import Tree
from ..ref import ModelRef
from ..streaming.composed_crc import CheckedSpan
from ..streaming.dlpack import to_tensor
from ..streaming.tensor_stream import StreamOptions, TensorSlot, TensorStream
from ..streaming.whole_reads import read_whole, say_unchecked
from .build import Built, Recipe, build
from .files import ASSET_BYTES, CONFIG_BYTES, read_json
from .fill import fill_variables, no_value
from .variable_paths import Path, matched, owners

_SEED_STATE = "seed_generator_state"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open step; `arrays` are those of its state, by the keys that lead to them, and are read from `store`."""

    recipe: Recipe
    step: str
    arrays: Mapping[Path, StoredArray]
    assets: Mapping[str, bytes]
    store: Store

    @property
    def nbytes(self) -> int:
        return sum(stored.array.nbytes for stored in self.arrays.values())

    def build(self) -> Built:
        """Raises `UnsupportedModel` where a layer has learned what no checkpoint keeps."""
        built = build(self.recipe)
        for layer in built.model._flatten_layers():
            if getattr(layer, "output_mode", None) == "tf_idf" and layer.get_config().get("idf_weights") is None:
                raise UnsupportedModel(
                    f"{self.recipe.uri} has no weights of the words for its {type(layer).__name__} {layer.name!r}",
                    expected="idf_weights in its configuration: what adapt() learns of them is in no Orbax checkpoint",
                    cure="Save the model with model.save('….keras'), which keeps them.",
                )
        return built

    def parts(self, _: Built) -> dict[str, str]:
        return {"step": self.step}

    def bytes_to_stream(self, built: Built) -> int:
        self._of_variables(built)
        return self.nbytes

    def slots(self) -> list[TensorSlot]:
        return [stored.slot for stored in self.arrays.values()]

    def spans(self, _: Sequence[TensorSlot]) -> list[CheckedSpan]:
        """No checksum covers a chunk, and a whole file's covers the optimizer, too."""
        say_unchecked(self.recipe.uri)
        return []

    def fill(self, built: Built, tensors: TensorStream) -> None:
        values = (
            (variable, to_tensor(tensors.take(stored.slot.name))) for variable, stored in self._of_variables(built)
        )
        fill_variables(built, values, self.assets, self.recipe.uri)

    def _of_variables(self, built: Built) -> list[tuple[Any, StoredArray]]:
        """Raises `CorruptModel` where the state does not fit the model, `UnsupportedModel` where its names do not show how."""
        uri, full = self.recipe.uri, owners(built.model)
        found = []
        for half in steps.WEIGHTS:
            variables = {id(variable): variable for variable in getattr(built.model, half) if id(variable) in full}
            names = {variable: full[variable] for variable in variables}
            paths = matched(names, (path[1:] for path in self.arrays if path[0] == half), uri)
            for variable in variables.values():
                if id(variable) not in paths:
                    raise no_value(variable, uri)
                stored = self.arrays[(half, *paths[id(variable)])]
                if stored.array.shape != tuple(variable.shape):
                    raise CorruptModel(
                        f"The weights of {uri} do not fit its variable {variable.path!r}",
                        expected=f"{variable.dtype} {list(variable.shape)}, as the configuration declares",
                        found=f"{stored.array.dtype} {list(stored.array.shape)}",
                        cure="Copy the whole folder again from where it was saved.",
                    )
                found.append((variable, stored))
        return found


def open_checkpoint(store: Store, ref: ModelRef, stream: StreamOptions, opened: ExitStack) -> Checkpoint:
    """Raises `CorruptModel`, and `UnsupportedModel` for a checkpoint of weights alone."""
    recipe = Recipe(ref.uri, _config(store, ref), False, None, ref.custom_objects, ref.unsafe)
    found = _tree(store, ref, steps.STATE).by_path([f"{half}." for half in steps.WEIGHTS])
    # Generators of random numbers are numbered, and in inference nothing is drawn.
    arrays = {path: stored for path, stored in found.items() if path[-1] != _SEED_STATE}
    assets = _assets(store, _tree(store, ref, steps.ASSETS)) if steps.below(ref.objects, steps.ASSETS) else {}
    step = steps.step_of(ref.objects)[1]
    return Checkpoint(recipe, step, arrays, assets, opened.enter_context(ArrayStore(store, arrays.values(), stream)))


def _tree(store: Store, ref: ModelRef, folder: str) -> Tree:
    place = f"{steps.step_of(ref.objects)[0]}/{folder}".rstrip("/")
    return Tree(store, place, steps.below(ref.objects, folder))


def _config(store: Store, ref: ModelRef) -> str:
    found = steps.below(ref.objects, steps.CONFIG).get(steps.TEXTS)
    if found is None:
        raise UnsupportedModel(
            f"The checkpoint {ref.uri} holds weights alone",
            expected=f"the model's configuration, in {steps.CONFIG}",
            found="a checkpoint without it, as OrbaxCheckpoint(save_weights_only=True) writes it",
            cure="Load it into the model with model.load_weights(…), and save that with model.save('….keras').",
        )
    if found.size > CONFIG_BYTES:
        raise CorruptModel(f"{found.uri} is too large", expected=f"at most {CONFIG_BYTES} bytes")
    described = read_json(read_whole(store, found), found.uri, "Copy the whole folder again.")
    config = described.get("config") if isinstance(described, dict) else None
    if not isinstance(config, str):
        raise CorruptModel(
            f"{found.uri} holds no configuration of a Keras model",
            expected="its JSON as a text, under 'config'",
            cure="Save the checkpoint again with keras.callbacks.OrbaxCheckpoint.",
        )
    return config


def _assets(store: Store, tree: Tree) -> dict[str, bytes]:
    """The layers' files, by their path below the folder of assets."""
    arrays = tree.by_path()
    if (nbytes := sum(stored.array.nbytes for stored in arrays.values())) > ASSET_BYTES:
        most = f"at most {ASSET_BYTES} bytes"
        raise CorruptModel(f"{tree.folder} is too large", expected=most, found=f"{nbytes} bytes")
    with ArrayStore(store, arrays.values(), StreamOptions()) as files:
        return {"/".join(path): files.read(stored.ref) for path, stored in arrays.items()}
