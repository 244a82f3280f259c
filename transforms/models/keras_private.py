"""Every private name of Keras that headrace uses, each with its reason; tests/test_keras_archive.py::TestPrivateNames breaks
when Keras changes one. Written for Keras 3.15 on the TensorFlow backend.

- `backend.StatelessScope(initialize_variables=False)`: building a model would compute random weights otherwise.
- global state "uninitialized_variables": that scope leaves its variables there, and Keras initialises them all at the
  end of the next scope, or fails.
- `saving_lib._model_from_config`, `_load_state`, `_walk_saveable`, `_get_unique_name`: the walk that puts each layer's
  variables where `model.save` wrote them, and the layers' own `load_own_variables` and `load_assets`.
- `saving_lib.H5IOStore`, `DiskIOStore`: `_load_state` accepts only their subclasses.
- `Variable._value`, `_initialize`, `_direct_assign`, `_deferred_initialize`: a variable takes its first value from the
  stream, instead of being initialised and then assigned.
- `export_utils.get_input_signature`, `_infer_input_signature_from_model`, `make_tf_tensor_spec`: input names and shapes as
  `model.export` gives them to a SavedModel.
- TensorFlow's `ConcreteFunction._arg_keywords`: likewise.
- `Functional._outputs_struct`, `compute_output_spec`, `Layer._flatten_layers`: outputs before there are weights; every layer.
"""

from __future__ import annotations

import gc
import json
import math
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transforms.errors import CorruptModel, HeadraceError, UnsupportedModel
from transforms.models.asset_files import AssetFiles, AssetFolder

_UNINITIALIZED = "uninitialized_variables"
_CHEAP_TO_INITIALISE = 10_000
_SAVE_AGAIN = "Save the model again with the Keras that wrote it."


class Built:
    """A model without weights. `helpers` are its variables that no file holds, such as the states of random generators."""

    def __init__(self, model: Any, pending: list[weakref.ref[Any]]) -> None:
        self.model, self._pending = model, pending

    @property
    def helpers(self) -> list[Any]:
        weights = {id(v) for v in self.model.weights}

        def alive() -> list[Any]:
            return [v for v in (ref() for ref in self._pending) if v is not None and id(v) not in weights]

        found = alive()
        if sum(math.prod(v.shape) for v in found) > _CHEAP_TO_INITIALISE:
            # Layers that the build made and dropped again would be initialised in vain.
            del found
            gc.collect()
            return alive()
        return found


def build(config: bytes | bytearray, uri: str) -> Built:
    """The model that a `.keras` file's config.json describes, with no weight computed.

    Raises `UnsupportedModel` for lambdas, for classes that are not registered here, and for what Keras cannot rebuild,
    and `CorruptModel` where the config is not JSON.
    """
    from keras import backend as keras_backend

    if keras_backend.backend() != "tensorflow":
        raise UnsupportedModel(
            f"{uri} needs Keras on TensorFlow",
            expected="the TensorFlow backend",
            found=f"KERAS_BACKEND={keras_backend.backend()}",
            cure="Set KERAS_BACKEND=tensorflow.",
        )
    try:
        described = json.loads(config)
        lambdas = list(_lambdas(described))
        text = json.dumps(_without_training(described))
    except (ValueError, RecursionError) as error:
        raise CorruptModel(
            f"config.json of {uri} is not JSON",
            expected="what model.save writes",
            found=_brief(error),
            cure="Copy the file again from where it was saved, or save it again.",
        ) from error
    if lambdas:
        raise UnsupportedModel(
            f"{uri} holds Python code in {', '.join(lambdas[:5])}, which headrace does not run",
            expected="layers that are rebuilt from their configuration",
            found="a lambda",
            cure="Replace the Lambda by a registered layer or keras.ops, or export the model with model.export(…).",
        )
    try:
        return _build(text, stateless=True)
    except Exception as error:
        # A custom layer may make a variable from an array, which Keras allows outside such a scope only.
        if "stateless scope" not in str(error):
            raise _cannot_build(error, uri) from error
    try:
        return _build(text, stateless=False)
    except Exception as error:
        raise _cannot_build(error, uri) from error


def _build(text: str, *, stateless: bool) -> Built:
    from keras.src.backend.common import global_state
    from keras.src.backend.common.stateless_scope import StatelessScope
    from keras.src.saving import saving_lib

    earlier = global_state.get_global_attribute(_UNINITIALIZED)
    global_state.set_global_attribute(_UNINITIALIZED, [])
    try:
        if stateless:
            with StatelessScope(initialize_variables=False):
                model = saving_lib._model_from_config(text, custom_objects=None, compile=False, safe_mode=True)
        else:
            model = saving_lib._model_from_config(text, custom_objects=None, compile=False, safe_mode=True)
        made = global_state.get_global_attribute(_UNINITIALIZED)
    finally:
        for variable in global_state.get_global_attribute(_UNINITIALIZED) or ():
            # The process-wide random generator may be among them, and outlives this model.
            if variable.name == "seed_generator_state" and variable._value is None:
                variable._deferred_initialize()
        global_state.set_global_attribute(_UNINITIALIZED, earlier or [])
    from keras import Model

    if not isinstance(model, Model):
        raise TypeError(f"config.json describes a {type(model).__name__}, not a Model")
    return Built(model, [weakref.ref(variable) for variable in made])


def saved_paths(model: Any) -> list[str]:
    """The HDF5 groups, in the order in which Keras fills them, in which the model's variables may lie.

    A plan of what to fetch, not of what goes where: a path too many costs bytes, one too few a round trip.
    """
    from keras.src.saving import saving_lib
    from keras.src.saving.keras_saveable import KerasSaveable

    paths: list[str] = []
    visited = _not_for_inference(model)
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


class Weights:
    """What `fill` reads from: the variables directly below an HDF5 group as tensors, by name."""

    def __init__(self, group: str, names: Mapping[str, object], tensor: Callable[[str], Any]) -> None:
        self.group, self._names, self._tensor = group, names, tensor

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def keys(self) -> list[str]:
        return list(self._names)

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._tensor(name)


def fill(
    built: Built,
    weights: Callable[[str], Weights | None],
    has_group: Callable[[str], bool],
    assets: Mapping[str, bytes | bytearray],
    uri: str,
) -> None:
    """Gives every variable its saved value through the layers' own `load_own_variables` and `load_assets`.

    `weights` answers for an HDF5 group, `assets` holds vocabulary files by their path below `assets/`. Raises
    `CorruptModel` naming a variable that stays without a value, or whose shape differs, and whatever `weights` raises.
    """
    from keras.src.backend.common import global_state
    from keras.src.saving import saving_lib

    class WeightsStore(saving_lib.H5IOStore):
        def __init__(self) -> None:
            pass

        def __bool__(self) -> bool:
            return True

        def get(self, path: str) -> Any:
            found = weights(f"{path}/vars".lstrip("/"))
            return {} if found is None else found

        def has_path(self, path: str) -> bool:
            return has_group(path)

    class AssetStore(saving_lib.DiskIOStore):
        def __init__(self, files: AssetFiles) -> None:
            self._files = files

        def get(self, path: str) -> Any:
            return self._files.folder(path)

        def has_path(self, path: str) -> bool:
            return self._files.folder(path) is not None

    errors: dict[int, tuple[Any, Exception]] = {}
    failed: set[int] = set()
    earlier = global_state.get_global_attribute(_UNINITIALIZED)
    try:
        with AssetFiles(assets) as files, _filling() as filled:
            saving_lib._load_state(
                built.model,
                weights_store=WeightsStore(),
                assets_store=AssetStore(files) if assets else None,
                inner_path="",
                visited_saveables=_not_for_inference(built.model),
                failed_saveables=failed,
                error_msgs=errors,
            )
    finally:
        global_state.set_global_attribute(_UNINITIALIZED, earlier or [])
    if failed:
        raise _failure(errors, uri)
    for variable in built.model.weights:
        if id(variable) not in filled:
            raise CorruptModel(
                f"{uri} has no value for variable {variable.path!r}",
                expected=f"{variable.dtype} {list(variable.shape)}",
                found="none in model.weights.h5",
                cure=_SAVE_AGAIN,
            )
    for variable in built.helpers:
        if variable._value is None:
            variable._deferred_initialize()


@contextmanager
def _filling() -> Iterator[set[int]]:
    """Within it, `variable.assign` sets a first value without computing one; yields the ids of what was assigned."""
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

    with Filling(initialize_variables=False):
        yield filled


def input_signature(model: Any, uri: str) -> list[Any]:
    """The positional arguments of the model as nested `tf.TensorSpec`, batch unknown, named as `model.export` names them.

    Raises `UnsupportedModel` where the saved model does not say what it takes, or takes ragged or sparse tensors.
    """
    from keras import Sequential, tree
    from keras.src.export import export_utils
    from keras.src.models import Functional

    try:
        if isinstance(model, (Functional, Sequential)):
            signature = export_utils.get_input_signature(model)
        else:
            signature = export_utils._infer_input_signature_from_model(model)
    except Exception as error:
        raise UnsupportedModel(
            f"{uri} does not say what its model takes",
            expected="inputs of known rank and dtype",
            found=_brief(error),
            cure="Call the model once on real data before saving it, or export it with model.export(…).",
        ) from error
    if not signature:
        raise UnsupportedModel(
            f"{uri} does not say what its model takes",
            expected="a model that was built before it was saved",
            cure="Call the model once on real data before saving it, or export it with model.export(…).",
        )
    for given in tree.flatten(getattr(model, "inputs", None) or []):
        if getattr(given, "sparse", False) or getattr(given, "ragged", False):
            raise UnsupportedModel(
                f"Input {given.name!r} of {uri} is sparse or ragged",
                expected="dense tensors",
                cure="Take dense inputs, e.g. padded, and convert inside the model.",
            )
    return list(tree.map_structure(export_utils.make_tf_tensor_spec, signature))


def argument_names(concrete: Any) -> list[str]:
    """What `tf.saved_model.save` calls the inputs of a concrete function, in the order of its flattened arguments."""
    return [str(name) for name in concrete._arg_keywords]


def output_struct(model: Any, signature: list[Any]) -> Any:
    """The nested outputs as symbolic tensors with `shape` and `dtype`; no weight is needed."""
    import tensorflow as tf
    from keras import KerasTensor, Sequential, backend, tree
    from keras.src.backend import compute_output_spec
    from keras.src.models import Functional

    if isinstance(model, Sequential):
        return model.outputs[0]
    if isinstance(model, Functional):
        return model._outputs_struct
    symbolic = [
        tf.nest.map_structure(
            lambda spec: KerasTensor(spec.shape.as_list(), dtype=backend.standardize_dtype(spec.dtype)), argument
        )
        for argument in signature
    ]
    return tree.map_structure(lambda x: x, compute_output_spec(lambda *xs: model.call(*xs), *symbolic))


def _not_for_inference(model: Any) -> set[int]:
    """Ids of the metrics, losses and optimizers that hang on the model: training's state, never fetched."""
    from keras import Loss, Metric, Optimizer

    found: set[int] = set()
    for layer in model._flatten_layers():
        for child in vars(layer).values():
            children = child if isinstance(child, (list, tuple)) else [child]
            found.update(id(c) for c in children if isinstance(c, (Metric, Optimizer, Loss)))
    return found


def _without_training(config: Any) -> Any:
    if isinstance(config, dict):
        is_object = "class_name" in config and "config" in config
        return {
            key: None if is_object and key == "compile_config" else _without_training(value)
            for key, value in config.items()
        }
    return [_without_training(value) for value in config] if isinstance(config, list) else config


def _lambdas(config: Any, inside: str = "config.json") -> Iterator[str]:
    if isinstance(config, dict):
        if config.get("class_name") == "__lambda__":
            yield inside
        inner = config.get("config")
        name = inner.get("name") if isinstance(inner, dict) else None
        here = f"{config.get('class_name')} layer {name!r}" if isinstance(name, str) else inside
        for key, value in config.items():
            if key != "compile_config":
                yield from _lambdas(value, here)
    elif isinstance(config, list):
        for value in config:
            yield from _lambdas(value, inside)


def _cannot_build(error: Exception, uri: str) -> HeadraceError:
    if isinstance(error, HeadraceError):
        return error
    unknown = re.search(r"Could not locate (?:class|function) '([^']+)'", str(error))
    if unknown:
        return UnsupportedModel(
            f"{uri} uses {unknown[1]!r}, which is not known here",
            expected="classes of Keras, or registered ones",
            found=f"a custom object {unknown[1]!r}",
            cure="Import the module that registers it with keras.saving.register_keras_serializable() before loading, "
            "or export the model with model.export(…).",
        )
    return UnsupportedModel(
        f"Keras cannot rebuild the model of {uri} from its config.json",
        expected="a configuration that this version of Keras reads",
        found=_brief(error),
        cure="Save the model again with this version of Keras, or export it with model.export(…).",
    )


def _failure(errors: Mapping[int, tuple[Any, Exception]], uri: str) -> Exception:
    for saveable, error in errors.values():
        if isinstance(error, HeadraceError):
            return error
        if isinstance(error, FileNotFoundError) and AssetFolder.PLACE in str(error):
            return UnsupportedModel(
                f"Layer {saveable.name!r} ({type(saveable).__name__}) of {uri} reads assets that only a disk could hold",
                expected="files that are opened by their path below the folder given to load_assets",
                found=_brief(error),
                cure="Keep its state in variables or in its configuration, or export the model with model.export(…).",
            )
    saveable, error = next(iter(errors.values()))
    failure = CorruptModel(
        f"The weights of {uri} do not fit its {type(saveable).__name__} {getattr(saveable, 'name', '')!r}",
        expected="what its configuration declares",
        found=_brief(error),
        cure=_SAVE_AGAIN,
    )
    failure.__cause__ = error
    return failure


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
