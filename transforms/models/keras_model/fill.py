"""Puts the weights of a Keras model where Keras puts them: through the layers' own methods, from streamed tensors.

It uses these private parts of Keras, each checked by tests/transforms/models/keras_model/test_keras_private.py, for Keras
3.15 on TensorFlow:

- `saving_lib._load_state`, `_walk_saveable`, `_get_unique_name`: the walk that puts each layer's variables where
  `model.save` wrote them, and the layers' own `load_own_variables` and `load_assets`.
- `saving_lib.H5IOStore`, `DiskIOStore`: `_load_state` accepts only their subclasses.
- `legacy_h5_format._legacy_weights`, `_set_weights`: the order of a layer's weights in the older layout, and what a layer
  does once it has them. The loop around them, `load_weights_from_hdf5_group`, copies each weight.
- `Variable._value`, `_initialize`, `_direct_assign`, `_deferred_initialize`: a variable takes its first value from the
  stream, instead of being initialised and then assigned.
- TensorFlow's `UninitializedVariable`, as `tf.saved_model.load` uses it: a variable that a graph can refer to before it
  has a value.
- `Layer._flatten_layers`: every layer; `Model._trainable_variables`, `_non_trainable_variables`: the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...errors import CorruptModel, HeadraceError, UnsupportedModel
from ..streaming.tensor_stream import TensorStream
from .asset_files import AssetFiles, AssetFolder
from .build import Built, uninitialized
from .refusals import brief
from .weights import LegacyLayer, SavedWeights, Tensor

_SAVE_AGAIN = "Save the model again with the Keras that wrote it."


def saved_paths(model: Any, but: Collection[int] = ()) -> list[str]:
    """The HDF5 groups that may hold the model's variables, in the order in which Keras fills these.

    `but` are ids of parts that are saved elsewhere. This plans what to fetch, not what goes where: a path too many costs bytes,
    one too few a round trip.
    """
    from keras.src.saving import saving_lib
    from keras.src.saving.keras_saveable import KerasSaveable

    paths: list[str] = []
    visited = _not_for_inference(model) | set(but)
    containers: set[int] = set()

    def walk(saveable: Any, path: str) -> None:
        if id(saveable) in visited:
            return
        visited.add(id(saveable))
        paths.append(f"{path}/vars".lstrip("/"))
        for name, child in saving_lib._walk_saveable(saveable):
            follow(child, f"{path}/{name}".lstrip("/"))

    def follow(child: Any, path: str) -> None:
        if isinstance(child, KerasSaveable):
            walk(child, path)
        elif isinstance(child, (list, dict, tuple)) and id(child) not in containers:
            containers.add(id(child))
            kept.append(child)
            used: dict[str, int] = {}
            for item in list(child.values()) if isinstance(child, dict) else child:
                if isinstance(item, KerasSaveable):
                    name = saving_lib.naming.to_snake_case(type(item).__name__)
                    walk(item, f"{path}/{saving_lib._get_unique_name(name, used)}")
                elif isinstance(item, (list, dict, tuple)):
                    follow(item, f"{path}/{saving_lib._get_unique_name('container', used)}")

    # Some attributes make a new list each time: one that is dropped would lend its id to the next.
    kept: list[Any] = []
    walk(model, "")
    return paths


class Weights(Mapping[str, Any]):
    """The variables directly below an HDF5 group, by name; each is fetched when it is asked for."""

    def __init__(self, found: Mapping[str, Tensor], part: Part) -> None:
        self._found, self._part = found, part

    def __getitem__(self, name: str) -> Any:
        return self._part.saved.take(self._found[name], self._part.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True, slots=True)
class Part:
    """What files of the layout of Keras 3 fill: `model` without what the ids in `but` name."""

    model: Any
    saved: SavedWeights
    tensors: TensorStream
    but: frozenset[int] = frozenset()


def fill(built: Built, parts: Sequence[Part], assets: Mapping[str, bytes | bytearray], uri: str) -> None:
    """Gives every variable its saved value through the layers' own `load_own_variables` and `load_assets`.

    `assets` holds vocabulary files by their path below `assets/`. Raises `CorruptModel` naming a variable that remains without
    a value, or whose shape differs, and anything that the weights raise.
    """
    with _filling(built, assets, uri) as files:
        for part in parts:
            _load_state(part.model, part, files, uri)


def fill_variables(
    built: Built, values: Iterable[tuple[Any, Any]], assets: Mapping[str, bytes | bytearray], uri: str
) -> None:
    """Gives each variable its value, and each layer its assets. Raises as `fill`."""
    from keras import layers

    with _filling(built, assets, uri) as files:
        for variable, value in values:
            try:
                variable.assign(value)
            except Exception as error:
                raise _failure({0: (variable, error)}, uri) from error
        if files is not None:
            _load_state(built.model, None, files, uri)
    for layer in built.model._flatten_layers():
        if isinstance(layer, layers.Normalization):
            # `keras.models.load_model` leaves it out, and so loads a model that normalizes nothing.
            layer.finalize_state()


def _load_state(model: Any, part: Part | None, files: AssetFiles | None, uri: str) -> None:
    """Fills from a part, which is of the model, and from files; from what there is of them."""
    from keras.src.saving import saving_lib

    class WeightsStore(saving_lib.H5IOStore):
        def __init__(self, part: Part) -> None:
            self._part = part

        def __bool__(self) -> bool:
            return True

        def get(self, path: str) -> Any:
            return Weights(self._part.saved.group(f"{path}/vars".lstrip("/")) or {}, self._part)

        def has_path(self, path: str) -> bool:
            return self._part.saved.has(path)

    class AssetStore(saving_lib.DiskIOStore):
        def __init__(self, files: AssetFiles) -> None:
            self._files = files

        def get(self, path: str) -> Any:
            return self._files.folder(path)

        def has_path(self, path: str) -> bool:
            return self._files.folder(path) is not None

    errors: dict[int, tuple[Any, Exception]] = {}
    failed: set[int] = set()
    saving_lib._load_state(
        model,
        weights_store=None if part is None else WeightsStore(part),
        assets_store=AssetStore(files) if files is not None else None,
        inner_path="",
        visited_saveables=_not_for_inference(model) | (frozenset() if part is None else part.but),
        failed_saveables=failed,
        error_msgs=errors,
    )
    if failed:
        raise _failure(errors, uri)


def allocate(built: Built) -> bool:
    """Gives every variable its place, but no value yet: the model can be traced while its weights arrive.

    Does nothing and returns False where a layer makes more of its weights than variables, which a trace would not see.
    """
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

    if not all(map(_is_all_variables, built.model._flatten_layers())):
        return False
    for variable in built.model.weights:
        if variable._value is None:
            place = UninitializedVariable(
                trainable=variable.trainable, shape=variable.shape, dtype=variable._dtype, name=variable.name
            )
            variable._initialize(place)
    _initialise_helpers(built)
    return True


def _is_all_variables(layer: Any) -> bool:
    """Whether loading the layer only fills its variables, and its call reads none of them during tracing."""
    from keras import layers

    # Reading a variable without a value gives garbage, not an error. Custom code may read any.
    if not type(layer).__module__.startswith("keras.") or isinstance(layer, layers.Lambda):
        return False
    # Keras' own layers that override it do so for quantized weights.
    plain = (layers.Layer, layers.Dense, layers.EinsumDense, layers.Embedding, layers.Conv2D)
    return (
        type(layer).load_own_variables in {kind.load_own_variables for kind in plain}
        and not hasattr(layer, "load_assets")
        and not hasattr(layer, "finalize_state")
        and getattr(layer, "quantization_mode", None) is None
    )


def _initialise_helpers(built: Built) -> None:
    for variable in built.helpers:
        if variable._value is None:
            variable._deferred_initialize()


def legacy_pairs(
    model: Any, layers: Sequence[LegacyLayer], top: LegacyLayer | None, uri: str
) -> list[tuple[Any, list[Any], tuple[Tensor, ...]]]:
    """Which layer takes which saved weights, and into which variables: by their order, as `load_weights_from_hdf5_group` does.

    `layers` are the saved layers that have weights, `top` the model's own. Raises `CorruptModel` where the counts differ.
    """
    from keras.src.legacy.saving import legacy_h5_format

    def mismatch(what: str, expected: int, found: int) -> CorruptModel:
        return CorruptModel(
            f"The weights of {uri} do not fit {what}",
            expected=f"{expected}, as its configuration declares",
            found=str(found),
            cure=_SAVE_AGAIN,
        )

    wanted = [(layer, weights) for layer in model.layers if (weights := legacy_h5_format._legacy_weights(layer))]
    if len(wanted) != len(layers):
        raise mismatch("its model: the number of layers with weights differs", len(wanted), len(layers))
    pairs = []
    for (layer, variables), saved in zip(wanted, layers, strict=True):
        if len(variables) != len(saved.tensors):
            what = f"its {type(layer).__name__} {layer.name!r}, saved as {saved.name!r}: the number of weights differs"
            raise mismatch(what, len(variables), len(saved.tensors))
        pairs.append((layer, variables, saved.tensors))
    if top is not None:
        weights = {id(v) for v in model.weights}
        own = [v for v in model._trainable_variables + model._non_trainable_variables if id(v) in weights]
        if len(own) != len(top.tensors):
            raise mismatch("the model's own variables: their number differs", len(own), len(top.tensors))
        pairs.append((model, own, top.tensors))
    return pairs


def legacy_fill(
    built: Built, pairs: Sequence[tuple[Any, list[Any], Sequence[Tensor]]], take: Callable[[Tensor], Any], uri: str
) -> None:
    """Gives every variable its saved value as Keras gives it from HDF5 files of the older layout. Raises as `fill`."""
    from keras.src.legacy.saving import legacy_h5_format

    with _filling(built, {}, uri):
        for layer, variables, saved in pairs:
            try:
                legacy_h5_format._set_weights(layer, variables, [take(value) for value in saved], name=layer.name)
            except Exception as error:
                raise _failure({0: (layer, error)}, uri) from error


def _check_vocabularies(built: Built, uri: str) -> None:
    """A file without assets has lost a vocabulary that was learned by `adapt`."""
    for layer in built.model._flatten_layers():
        if hasattr(layer, "load_assets") and layer.get_config().get("vocabulary", ()) is None:
            raise UnsupportedModel(
                f"{uri} holds no vocabulary for its {type(layer).__name__} {layer.name!r}",
                expected="a vocabulary in the configuration, or in assets next to it",
                cure="Save the model as a whole `.keras` file, which keeps it.",
            )


def no_value(variable: Any, uri: str) -> CorruptModel:
    return CorruptModel(
        f"{uri} has no value for variable {variable.path!r}",
        expected=f"{variable.dtype} {list(variable.shape)}",
        found="none among its weights",
        cure=_SAVE_AGAIN,
    )


@contextmanager
def _filling(built: Built, assets: Mapping[str, bytes | bytearray], uri: str) -> Iterator[AssetFiles | None]:
    """Within it, `variable.assign` sets a first value without computing one; yields the assets, if there are any.

    At its end, every variable must have its value, and every layer its vocabulary.
    """
    from keras.src.backend.common.stateless_scope import StatelessScope

    filled: set[int] = set()

    class Filling(StatelessScope):
        def add_update(self, update: tuple[Any, Any]) -> None:
            variable, value = update
            if variable._value is None:
                variable._initialize(value)
            else:
                variable._direct_assign(value)
            filled.add(id(variable))

    with uninitialized(), AssetFiles(assets) as files, Filling(initialize_variables=False):
        yield files if assets else None
    for variable in built.model.weights:
        if id(variable) not in filled:
            raise no_value(variable, uri)
    _initialise_helpers(built)
    if not assets:
        _check_vocabularies(built, uri)


def _not_for_inference(model: Any) -> set[int]:
    """Ids of the metrics, losses and optimizers that hang on the model: training's state, never fetched."""
    from keras import Loss, Metric, Optimizer

    found: set[int] = set()
    for layer in model._flatten_layers():
        for child in vars(layer).values():
            children = child if isinstance(child, (list, tuple)) else [child]
            found.update(id(c) for c in children if isinstance(c, (Metric, Optimizer, Loss)))
    return found


def _failure(errors: Mapping[int, tuple[Any, Exception]], uri: str) -> Exception:
    for saveable, error in errors.values():
        if isinstance(error, HeadraceError):
            return error
        if isinstance(error, FileNotFoundError) and AssetFolder.PLACE in str(error):
            return UnsupportedModel(
                f"Layer {saveable.name!r} ({type(saveable).__name__}) of {uri} reads assets that only a disk could hold",
                expected="files that are opened by their path below the folder given to load_assets",
                found=brief(error),
                cure="Keep its state in variables or in its configuration, or export the model with model.export(…).",
            )
    saveable, error = next(iter(errors.values()))
    failure = CorruptModel(
        f"The weights of {uri} do not fit its {type(saveable).__name__} {getattr(saveable, 'name', '')!r}",
        expected="what its configuration declares",
        found=brief(error),
        cure=_SAVE_AGAIN,
    )
    failure.__cause__ = error
    return failure
