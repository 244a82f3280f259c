"""Builds a Keras model without its weights from its configuration, and computes no weight on the way.

It uses these private parts of Keras, each checked by tests/transforms/models/keras_model/test_keras_private.py, for Keras
3.15 on TensorFlow:

- `backend.StatelessScope(initialize_variables=False)`: building a model would compute random weights otherwise.
- global state "uninitialized_variables": that scope leaves its variables there, and Keras initialises them all at the
  end of the next scope, or fails.
- global state "custom_objects_scope_dict": the custom objects of the surrounding scope.
- `saving_lib._model_from_config`; for configurations as Keras 1 and 2 wrote them `saving_utils.model_from_config`,
  `json_utils.decode` and `saving_options.keras_option_scope` of `keras.src.legacy.saving`: how Keras itself reads them.
- `serialization_lib.SafeModeScope`, `deserialize_keras_object`: likewise.
- `object_registration.GLOBAL_CUSTOM_OBJECTS` (in safe_mode.py): what code of the process registered.
- `Variable._value`, `_deferred_initialize`: whether a variable has a value yet; the process-wide random generator needs one.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import logging
import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from ...bounded_json import parse_json
from ...errors import InvalidRequest, NotAModel, UnsupportedModel
from ...storage.store import public_uri
from ..first_bytes import FIRST_BYTES, other_file
from ..gc_pause import while_modules_load
from . import hub_safe_mode, keras2_config, keras2_meanings
from . import safe_mode as keras_safe_mode
from .refusals import brief, cannot_build, damaged
from .unrolled import bound_steps

_UNINITIALIZED = "uninitialized_variables"
_CHEAP_TO_INITIALISE = 10_000
_MOST_TO_INITIALISE, _MOST_NORMALIZED, _MOST_OUTSIDE = 1 << 26, 1 << 26, 1 << 30
_STATEFUL, _STATELESS = '"stateful": true', '"stateful": false'

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The source of a model: `config` is JSON, in the older form of HDF5 files where it is `legacy`.

    `keras_version` is that of the Keras that wrote it, if the file records it.

    `custom_objects` are `module:name`, or just modules, that are imported; `unsafe` allows Python code in the configuration.
    """

    uri: str
    config: bytes | bytearray | str
    legacy: bool = False
    keras_version: str | None = None
    custom_objects: tuple[str, ...] = ()
    unsafe: bool = False


class Preprocessing(Protocol):
    """How a model's inputs are made: `signature` are its arguments as `tf.TensorSpec`."""

    def signature(self) -> list[Any]: ...

    def check(self, uri: str) -> None: ...

    def __call__(self, *arguments: Any) -> Any: ...


class Built:
    """A model without weights. `helpers` are its variables that no file holds, such as the states of random generators.

    `preprocessing` is what the model is called through, where it has such.
    """

    def __init__(self, model: Any, pending: list[weakref.ref[Any]]) -> None:
        self.model, self._pending = model, pending
        self.preprocessing: Preprocessing | None = None

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
            found = alive()
        if (numbers := sum(math.prod(v.shape) for v in found)) > _MOST_TO_INITIALISE:
            raise UnsupportedModel(
                f"The model {self.model.name!r} has large variables that no file holds",
                expected=f"at most {_MOST_TO_INITIALISE:,} numbers in states such as those of random generators",
                found=f"{numbers:,}",
                cure="Export the model with model.export(…).",
            )
        return found


def build(recipe: Recipe) -> Built:
    """The model that a configuration describes, with no weight computed.

    Raises `UnsupportedModel` for what safe mode does not allow, for classes that are not known here, and for what Keras cannot
    rebuild,
    `CorruptModel` where the config is not JSON, and `InvalidRequest` for custom objects that cannot be imported.
    """
    keras = keras_on_tensorflow(recipe.uri)
    from keras.src.backend.common import global_state

    uri = recipe.uri
    try:
        described = parse_json(recipe.config, not_finite=True)
    except (ValueError, RecursionError) as error:
        start = recipe.config[:FIRST_BYTES]
        start = start.encode() if isinstance(start, str) else bytes(start)
        raise other_file(f"The configuration of {uri}", len(recipe.config), start) or damaged(
            f"The configuration of {uri} is not JSON", "what model.save writes", brief(error)
        ) from error
    _recognise(described, uri)
    described, legacy = _in_one_form(hub_safe_mode.without_training(described), recipe)
    # A scope hides the one around it, which a caller may have entered.
    around = global_state.get_global_attribute("custom_objects_scope_dict", {})
    own = {**around, **custom_objects(recipe.custom_objects)}
    ours = keras2_meanings.own_objects()
    if recipe.unsafe:
        _say_unsafe(public_uri(uri))
        has_own = True
    else:
        has_own = keras_safe_mode.check(described, uri, {**keras_safe_mode.registered(), **own}, ours)
    known = {**ours, "Sequential": _sequential_built_once(), "Normalization": _normalization_of_bounded_size(), **own}
    text = json.dumps(described)

    def make(text: str) -> Any:
        with keras.saving.CustomObjectScope(known):
            return _legacy_model(text, recipe.unsafe, known) if legacy else _model(text, recipe.unsafe)

    built = _built(make, text, has_own, uri)
    if not recipe.unsafe:
        bound_steps(built.model, uri)
    return built


def _built(make: Callable[[str], Any], text: str, has_own: bool, uri: str) -> Built:
    try:
        return _build(lambda: make(text), stateless=True)
    except Exception as error:
        # A custom layer may make a variable from an array, and a stateful one does: not within such a scope.
        if "stateless scope" not in str(error) or not (has_own or _STATEFUL in text):
            raise cannot_build(error, uri) from error
    try:
        if not has_own:
            _check_size(_build(lambda: make(text.replace(_STATEFUL, _STATELESS)), stateless=True), uri)
        return _build(lambda: make(text), stateless=False)
    except Exception as error:
        raise cannot_build(error, uri) from error


def _check_size(built: Built, uri: str) -> None:
    """Raises where building the model outside a scope, which computes its first weights, would take a lot of memory."""
    numbers = sum(math.prod(variable.shape) for variable in built.model.weights)
    if numbers > _MOST_OUTSIDE:
        raise UnsupportedModel(
            f"{uri} has stateful layers, and too many weights for them",
            expected=f"at most {_MOST_OUTSIDE:,} numbers",
            found=f"{numbers:,}",
            cure="Save the model with stateful=False, or export it with model.export(…).",
        )


def keras_on_tensorflow(uri: str) -> Any:
    """Keras, on TensorFlow. Raises `UnsupportedModel` where the environment chooses another backend for it."""
    chosen = os.environ.get("KERAS_BACKEND")
    try:
        with while_modules_load():
            import keras
    except ImportError as error:
        if error.name not in ("jax", "torch", "openvino", "keras.src.backend"):
            raise
        raise _wrong_backend(
            uri, f"KERAS_BACKEND={chosen or error.name}, which cannot be imported ({brief(error)})"
        ) from error
    except ValueError as error:
        if "backend" not in str(error):
            raise
        raise _wrong_backend(uri, f"KERAS_BACKEND={chosen}, which Keras does not have") from error
    if keras.backend.backend() != "tensorflow":
        raise _wrong_backend(uri, f"KERAS_BACKEND={keras.backend.backend()}")
    return keras


def _wrong_backend(uri: str, found: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{uri} needs Keras on TensorFlow",
        expected="the TensorFlow backend",
        found=found,
        cure="Set KERAS_BACKEND=tensorflow, or unset it.",
    )


def _recognise(described: Any, uri: str) -> None:
    if isinstance(described, dict) and described.get("class_name") == "FeatureSpace":
        raise NotAModel(
            f"{uri} holds a FeatureSpace, which is preprocessing and no model",
            expected="a model",
            found="keras.utils.FeatureSpace",
            cure="Save a model that begins with it: keras.Model(space.get_inputs(), model(space.get_encoded_features())).",
        )


def custom_objects(names: Sequence[str]) -> dict[str, Any]:
    """The objects that `module:name` refer to, by the names that a configuration may use for them.

    Raises `InvalidRequest` where one cannot be imported.
    """
    import keras

    found: dict[str, Any] = {}
    for given in names:
        module, colon, path = given.partition(":")
        try:
            value: Any = importlib.import_module(module)
            for part in filter(None, path.split(".")):
                value = getattr(value, part)
        except (Exception, SystemExit) as error:  # the user's module may raise anything, and a script exits
            raise InvalidRequest(
                f"The custom object {given!r} cannot be imported",
                expected="module:name, e.g. my_package.layers:Scale",
                found=brief(error),
                cure="Install the module where the model is loaded, on the workers too, or put it on PYTHONPATH.",
            ) from error
        # A module alone may register what it has when it is imported.
        if colon:
            found[path.rpartition(".")[2]] = value
            if callable(value):
                found[keras.saving.get_registered_name(value)] = value
    return found


@cache
def _say_unsafe(name: str) -> None:
    _log.warning("%s may run Python code that it holds itself: safe mode is off for it", name)


def _model(text: str, unsafe: bool) -> Any:
    from keras.src.saving import saving_lib

    return saving_lib._model_from_config(text, custom_objects=None, compile=False, safe_mode=not unsafe)


def _legacy_model(text: str, unsafe: bool, known: dict[str, Any]) -> Any:
    """As `legacy_h5_format.load_model_from_hdf5` does."""
    import keras
    from keras.src.legacy.saving import json_utils, saving_options, saving_utils
    from keras.src.saving import serialization_lib

    with saving_options.keras_option_scope(use_legacy_config=True), serialization_lib.SafeModeScope(not unsafe):
        return saving_utils.model_from_config(
            json_utils.decode(text), custom_objects={**keras.saving.get_custom_objects(), **known}
        )


@cache
def _sequential_built_once() -> Any:
    """Replaces `Sequential` in a configuration: its own `from_config` builds the model again with each layer."""
    import keras
    from keras.src.legacy.saving import saving_utils
    from keras.src.saving import serialization_lib

    class BuiltOnce:
        @classmethod
        def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
            layers = [
                (serialization_lib.deserialize_keras_object if "module" in layer else saving_utils.model_from_config)(
                    layer, custom_objects=custom_objects
                )
                for layer in config["layers"]
            ]
            model = keras.Sequential(layers, name=config["name"])
            shape = config.get("build_input_shape")
            if not model.built and isinstance(shape, (list, tuple)) and shape:
                model.build(shape)
            return model

    return BuiltOnce


@cache
def _normalization_of_bounded_size() -> Any:
    """Stands for `Normalization`, which computes on building: its mean and variance, where given, as large as its input."""
    import keras

    class Bounded:
        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            layer = keras.layers.Normalization.from_config(config)
            build = layer.build

            @functools.wraps(build)
            def bounded(input_shape: Any) -> None:
                kept = layer.axis if isinstance(layer.axis, (tuple, list)) else [layer.axis]
                sizes = [input_shape[axis] for axis in kept if isinstance(axis, int)]
                if layer.input_mean is not None and math.prod(size for size in sizes if size) > _MOST_NORMALIZED:
                    raise ValueError(f"{layer.name} would normalize {sizes} values, each by its own mean")
                build(input_shape)

            object.__setattr__(layer, "build", bounded)
            return layer

    return Bounded


def _build(make: Callable[[], Any], *, stateless: bool) -> Built:
    from keras import Model
    from keras.src.backend.common.stateless_scope import StatelessScope

    with uninitialized() as made:
        if stateless:
            with StatelessScope(initialize_variables=False):
                model = make()
        else:
            model = make()
    if not isinstance(model, Model):
        raise TypeError(f"the configuration describes a {type(model).__name__}, not a Model")
    return Built(model, [weakref.ref(variable) for variable in made])


@contextmanager
def uninitialized() -> Iterator[list[Any]]:
    """Within it, variables that Keras leaves without a value are put on a list of its own, which it yields."""
    from keras.src.backend.common import global_state

    earlier = global_state.get_global_attribute(_UNINITIALIZED)
    made: list[Any] = []
    global_state.set_global_attribute(_UNINITIALIZED, made)
    try:
        yield made
    finally:
        for variable in made:
            # The process-wide random generator may be among them, and outlives this model.
            if variable.name == "seed_generator_state" and variable._value is None:
                variable._deferred_initialize()
        global_state.set_global_attribute(_UNINITIALIZED, earlier or [])


def _in_one_form(described: Any, recipe: Recipe) -> tuple[Any, bool]:
    """The configuration that Keras is to read, and whether by its legacy code."""
    legacy = recipe.legacy or (isinstance(described, dict) and "module" not in described)
    version = recipe.keras_version
    if version is None and isinstance(described, dict):
        version = described.get("keras_version")
    if keras2_config.is_old(version) and (legacy or version is not None):
        return keras2_config.modernised(_adapted(described), version), True
    return _adapted(described), legacy


def _adapted(config: Any) -> Any:
    """Removes what only training needs, and sets names under which Keras finds the replacements of two classes."""
    if isinstance(config, list):
        return [_adapted(value) for value in config]
    if not isinstance(config, dict):
        return config
    is_object = "class_name" in config and "config" in config
    adapted = {key: None if is_object and key == "compile_config" else _adapted(value) for key, value in config.items()}
    name, module = adapted.get("class_name"), adapted.get("module")
    once = name == "Sequential" and module in ("keras", "keras.models")
    if once or (name == "Normalization" and module == "keras.layers"):
        adapted["registered_name"] = name
    return adapted
