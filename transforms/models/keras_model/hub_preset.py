"""KerasHub presets: a task with its backbone, the weights of both in files of their own, and what the task is fed through.

The layout is that of keras_hub/src/utils/preset_utils.py: task.json describes the task, with backbone and preprocessor;
model.weights.h5 (or the shards that model.weights.json names) holds the backbone's variables, task.weights.h5 those of the
task's own layers; assets/ holds the tokenizers' vocabularies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ...errors import CorruptModel, UnsupportedModel
from ...storage import Store
from ..ref import ModelRef
from ..streaming.composed_crc import CheckedSpan
from ..streaming.tensor_stream import TensorSlot, TensorStream
from . import files as keras_files
from .build import Built, Recipe, build, custom_objects, keras_on_tensorflow
from .fill import Part, fill, saved_paths
from .hub_inputs import AsGiven, HubPreprocessing, preprocessing
from .refusals import brief
from .weights import SavedWeights, open_weights

TASK, TASK_WEIGHTS = "task.json", "task.weights.h5"


@dataclass(frozen=True, slots=True)
class Preset:
    """An open preset; `head` are the weights of the task's own layers, if it has such."""

    recipe: Recipe
    described: dict[str, Any]
    backbone: SavedWeights
    head: SavedWeights | None
    store: Store
    files: keras_files.Files

    @property
    def nbytes(self) -> int:
        return sum(weights.nbytes for weights in self._weights())

    def build(self) -> Built:
        """Raises as `build.build` does, and `UnsupportedModel` for a task that headrace cannot run."""
        uri = self.recipe.uri
        import_keras_hub(uri)
        custom_objects(self.recipe.custom_objects)
        _check_task(self.described, uri)
        config = self.described["config"]
        # A preprocessor holds no weights.
        changed = {"backbone": _as_loaded(config["backbone"]), "preprocessor": None}
        built = build(replace(self.recipe, config=json.dumps({**self.described, "config": {**config, **changed}})))
        layer = config.get("preprocessor")
        if layer is None:
            built.preprocessing = AsGiven(built.model)
        else:
            assets = keras_files.assets(self.files)
            built.preprocessing = preprocessing(replace(self.recipe, config=json.dumps(layer)), built.model, assets)
        return built

    def parts(self, built: Built) -> dict[str, str]:
        found = {"task": type(built.model).__name__, "backbone": type(built.model.backbone).__name__}
        fed = built.preprocessing
        return found | (fed.parts() if isinstance(fed, HubPreprocessing) else {"preprocessor": "none"})

    def bytes_to_stream(self, built: Built) -> int:
        return sum(
            tensor.dataset.nbytes
            for weights, model, but in self._filled(built)
            for tensor in weights.tensors(saved_paths(model, but))
        )

    def slots(self) -> list[TensorSlot]:
        return [slot for weights in self._weights() for slot in weights.slots(weights.guess())]

    def spans(self, slots: Sequence[TensorSlot]) -> list[CheckedSpan]:
        return [span for weights in self._weights() for span in weights.spans(slots)]

    def fill(self, built: Built, tensors: TensorStream) -> None:
        parts = [Part(model, weights, tensors, but) for weights, model, but in self._filled(built)]
        fill(built, parts, {}, self.recipe.uri)

    def _weights(self) -> list[SavedWeights]:
        return [self.backbone] if self.head is None else [self.head, self.backbone]

    def _filled(self, built: Built) -> list[tuple[SavedWeights, Any, frozenset[int]]]:
        """Pairs weights with the parts that they fill, in KerasHub's own order, and the ids of what they leave out."""
        backbone = built.model.backbone
        found: list[tuple[SavedWeights, Any, frozenset[int]]] = [(self.backbone, backbone, frozenset())]
        if self.head is not None:
            found.insert(0, (self.head, built.model, frozenset(map(id, backbone._flatten_layers()))))
        return found


def open_preset(store: Store, ref: ModelRef, opened: ExitStack) -> Preset:
    """Raises `CorruptModel` where a file is not what its name says."""
    objects = {file.uri.removeprefix(f"{ref.uri}/"): file for file in ref.objects}
    files = keras_files.ObjectFiles(store, ref.uri, objects, opened)
    described = described_task(files.read(TASK, keras_files.CONFIG_BYTES), ref.uri)
    backbone = keras_files.weights_of(files)
    head = open_weights(store, [files.place(TASK_WEIGHTS)]) if TASK_WEIGHTS in objects else None
    version = keras_files.keras_version(files)
    recipe = Recipe(ref.uri, b"", False, version, ref.custom_objects, ref.unsafe)
    return Preset(recipe, described, backbone, head, store, files)


def described_task(data: bytes | bytearray, uri: str) -> dict[str, Any]:
    """Raises `CorruptModel` where it does not describe a task with a backbone."""
    described = keras_files.read_json(data, f"{TASK} of {uri}", "Copy the folder again.")
    config = described.get("config") if isinstance(described, dict) else None
    backbone = config.get("backbone") if isinstance(config, dict) else None
    if not isinstance(backbone, dict) or not isinstance(backbone.get("config"), dict):
        raise CorruptModel(
            f"{TASK} of {uri} describes no task of KerasHub",
            expected="a task with a backbone, as task.save_to_preset(…) writes it",
            found=f"{type(described).__name__} {str(described)[:80]}",
            cure="Save the task again, or copy the folder again.",
        )
    return dict(described)


def import_keras_hub(uri: str) -> Any:
    """Raises `UnsupportedModel` where it is not installed."""
    keras_on_tensorflow(uri)
    try:
        import keras_hub
    except ImportError as error:
        raise UnsupportedModel(
            f"{uri} is a preset of KerasHub, which cannot be imported",
            expected="the package keras-hub, where the job starts and on the workers",
            found=brief(error),
            cure="pip install 'headrace[keras_hub]'.",
        ) from error
    return keras_hub


def _check_task(described: dict[str, Any], uri: str) -> None:
    """Raises `UnsupportedModel` where the task's `predict` is more than a call of the model."""
    import keras

    name = described.get("registered_name")
    kind = keras.saving.get_registered_object(name) if isinstance(name, str) else None
    if not isinstance(kind, type):
        return  # safe mode says what is wrong with it
    if hasattr(kind, "generate"):
        raise UnsupportedModel(
            f"{uri} is a {kind.__name__}, which generates: headrace does not run generate()",
            expected="a task that gives each row its result in one call of the model, as a classifier does",
            found="generate(), a loop of calls whose number differs from row to row, and whose sampler may draw at random",
            cure="Run keras_hub's generate() in a DoFn of your own, or name the preset of a classifier or an embedder.",
        )
    if getattr(kind, "predict_step", None) is not keras.Model.predict_step:
        raise UnsupportedModel(
            f"{uri} is a {kind.__name__}, whose predict() does more than call the model",
            expected="a task whose predict() calls its preprocessor and its model",
            found="a predict_step of its own",
            cure="Export it with task.export(…), and name that folder: it gives the model's own outputs.",
        )


def _as_loaded(backbone: dict[str, Any]) -> dict[str, Any]:
    """As `from_preset` has it: a backbone saved in one float type is loaded in the one that Keras is set to."""
    import keras

    dtype = backbone["config"].get("dtype")
    policy = (
        dtype.get("config", {}).get("name")
        if isinstance(dtype, dict) and isinstance(dtype.get("config"), dict)
        else None
    )
    if not isinstance(policy, str) or "float" not in policy:
        return backbone
    return {**backbone, "config": {**backbone["config"], "dtype": keras.config.dtype_policy().name}}
