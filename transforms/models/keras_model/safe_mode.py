"""Safe mode: every object that a Keras configuration names, resolved through an allow-list before Keras sees it.

Keras' own safe mode is a block-list over names that it resolves as it goes. Here the whole configuration is walked
first, in the form in which Keras will read it, and each name in it must be

- one of `allow_list`, which holds the pure ones of Keras' names, in the module that the configuration gives; or
- what the user named with `--custom_objects`, or what code of the user's process registered with Keras; of KerasHub,
  which registers everything that it has, only what `hub_allow_list` holds.

A function's place must hold a function, and a class's place a class. A place where a layer would read a file must not hold a
path. Numbers that would make Keras work or take memory out of all proportion to the file are refused too.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from ...bounded_json import objects_in
from . import hub_safe_mode
from .allow_list import CLASSES, FUNCTIONS
from .refusals import malformed, python_code, refused, too_much, unknown

# serialization_lib.BUILTIN_MODULES: where Keras looks for functions that were saved by their bare name.
_BARE_FUNCTIONS = frozenset().union(*(FUNCTIONS[m] for m in ("keras.activations", "keras.losses", "keras.metrics")))
_SHORT_CLASSES = frozenset().union(*(names for m, names in CLASSES.items() if not m.startswith("keras.src."))) | {
    "Functional",
    "GroupedQueryAttention",  # its name in HDF5 files; elsewhere it is `GroupQueryAttention`
}
_DTYPES = {
    *("bool", "string", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
    *("int4", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "complex64", "complex128"),
}
_CODE = {"__lambda__": "Python code", "__typespec__": "a type of TensorFlow's"}
_DATA = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}
# Layers of Keras that run what no list can cover.
_FOREIGN = {"FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"}
# Keys of a configuration that must hold layers.
_LAYERS = {"layers", "layer", "forward_layer", "backward_layer", "cell", "cells"}
_VOCABULARIES = ("vocabulary", "idf_weights", "input_vocabulary", "input_idf_weights")
_LOOKUPS = {"StringLookup", "IntegerLookup", "IndexLookup", "TextVectorization"}

_MOST_CALLS = 100_000
_MOST_RETRIES = 20_000_000
_LARGEST = 1 << 40
_NOT_SIZES = {"seed", "shared_object_id", "keras_history", "salt", "value", "vocabulary", "mask_token", "oov_token"}
# Lengths of Python loops or lists; larger numbers do not belong to a real model.
_LOOPS = {
    "ngrams": 1000,
    "num_oov_indices": 1_000_000,
    "num_ops": 1000,
    "num_chains": 1000,
    "chain_depth": 1000,
    "power_iterations": 1000,
    "num_thresholds": 100_000,
    "top_paths": 1000,
    "bins": 65_536,
    "fft_length": 65_536,
    "num_mel_bins": 4096,
    "frame_length": 65_536,
}
_LOOPING = {
    *("Split", "ArraySplit", "Hsplit", "Vsplit", "Dsplit", "Unstack", "Diff", "Rot90", "Unfold", "Fold", "CtcDecode"),
    *("split", "array_split", "hsplit", "vsplit", "dsplit", "unstack", "diff", "rot90", "unfold", "fold", "ctc_decode"),
}
_MOST_LOOPS = 4096
_MOST_DIMENSIONS = 64
# Numbers in one row of an input: 1 GiB as float32.
_MOST_IN_A_ROW = 1 << 28
_MOST_ROWS = 1 << 16


@dataclass(slots=True)
class _Walk:
    uri: str
    known: Mapping[str, Any]
    ours: Mapping[str, Any]
    custom: bool = False
    """Whether anything of the user's own was named."""
    shared: dict[int, int] = field(default_factory=dict)
    """How many calls an object makes that others refer to by number."""
    repeats: int = 0
    """How often KerasHub's classes repeat parts of the model."""


def check(config: Any, uri: str, known: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether the configuration names anything that is not Keras' own.

    `known` are the user's own objects, and `ours` headrace's, by the names that a configuration may use for them. Raises
    `UnsupportedModel` for what is not on the list, with its name, its place, and the flag that would allow it.
    """
    walk = _Walk(uri, known, ours)
    calls = _value(walk, config, "config", None)
    if calls > _MOST_CALLS:
        raise too_much(uri, "calls its layers too often", f"at most {_MOST_CALLS:,} calls of layers", f"{calls:,}")
    hub_safe_mode.check_repeats(uri, walk.repeats)
    return walk.custom


def _value(walk: _Walk, value: Any, place: str, key: str | None) -> int:
    """Checks it, and returns how many calls of layers it makes."""
    if isinstance(value, list):
        return sum(_value(walk, inner, f"{place}[{i}]", key) for i, inner in enumerate(value))
    if isinstance(value, dict):
        if "class_name" in value:
            return _object(walk, value, place, key)
        return sum(_value(walk, inner, f"{place}.{name}", name) for name, inner in value.items())
    if isinstance(value, str) and walk.known.get(value) is not None:
        walk.custom = True
    if hub_safe_mode.is_of_hub(value):
        raise unknown(walk.uri, str(value), place, None)
    _check_number(walk, value, place, key)
    return 0


def _check_number(walk: _Walk, value: Any, place: str, key: str | None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or key in _NOT_SIZES:
        return
    most = _LOOPS.get(key or "", _LARGEST)
    if isinstance(value, int) and abs(value) > most:
        raise too_much(walk.uri, f"has a number at {place} that no model needs", f"at most {most:,}", f"{value:,}"[:60])


def _object(walk: _Walk, described: dict[str, Any], place: str, key: str | None) -> int:
    name, config = described["class_name"], described.get("config")
    if not isinstance(name, str):
        raise malformed(walk.uri, f"{place}.class_name", "a name", name)
    if name in _CODE:
        raise refused(walk.uri, _CODE[name], place, "no code")
    if name in _DATA:
        _data(walk, name, config, place)
        return 0
    if name == "function":
        _function(walk, described, place, key)
        return 0
    return _instance(walk, described, name, config, place)


def _data(walk: _Walk, name: str, config: Any, place: str) -> None:
    inner = config if isinstance(config, dict) else {}
    dtype = inner.get("dtype")
    if dtype is not None and not _is_one_of(dtype, _DTYPES):
        raise malformed(walk.uri, f"{place}.config.dtype", "a dtype of Keras", dtype)
    if name == "__keras_tensor__":
        shape = inner.get("shape")
        if isinstance(shape, list) and len(shape) > _MOST_DIMENSIONS:
            raise malformed(walk.uri, f"{place}.config.shape", "a shape", f"{len(shape)} dimensions")
    for key, value in inner.items():
        _plain(walk, value, f"{place}.config.{key}")


def _plain(walk: _Walk, value: Any, place: str) -> None:
    """Raises where data holds objects."""
    if isinstance(value, dict):
        kind = value.get("class_name")
        if kind is not None and not _is_one_of(kind, _DATA):
            raise malformed(walk.uri, place, "plain data", kind)
        for key, inner in value.items():
            _plain(walk, inner, f"{place}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _plain(walk, inner, f"{place}[{i}]")


def _function(walk: _Walk, described: dict[str, Any], place: str, key: str | None) -> None:
    name, module = described.get("config"), described.get("module")
    if not isinstance(name, str):
        raise malformed(walk.uri, f"{place}.config", "a function's name", name)
    if key in _LAYERS:
        raise refused(walk.uri, repr(name), place, "a class", "a function")
    if name in hub_safe_mode.FUNCTIONS:
        return
    # Keras up to 3.6 saved functions by their own name alone, as if of this module.
    own = walk.known.get(name)
    if own is None and module == "builtins":
        own = next((o for n, o in walk.known.items() if n.endswith(f">{name}")), None)
    if own is not None:
        if isinstance(own, type):
            raise refused(walk.uri, repr(name), place, "a function", "a class")
        walk.custom = True
        return
    if name in walk.ours:
        return
    registered = described.get("registered_name")
    if registered not in (None, name):
        raise unknown(walk.uri, str(registered), place, module)
    if module == "builtins" and name in _BARE_FUNCTIONS:
        return
    if not isinstance(module, str) or name not in FUNCTIONS.get(module, ()):
        if isinstance(module, str) and name in CLASSES.get(module, ()):
            raise refused(walk.uri, f"{module}.{name}", place, "a function", "a class")
        raise unknown(walk.uri, name, place, module)


def _instance(walk: _Walk, described: dict[str, Any], name: str, config: Any, place: str) -> int:
    kind = _kind(walk, described, name, place)
    if hub_safe_mode.is_of_hub(described.get("registered_name")):
        walk.repeats += hub_safe_mode.check_arguments(walk.uri, config, f"{place}.config")
    if kind in _LOOKUPS and isinstance(config, dict):
        for key in _VOCABULARIES:
            if isinstance(config.get(key), str):
                raise refused(
                    walk.uri,
                    f"the file {config[key]!r}",
                    f"{place}.config.{key}",
                    "a list of words, or assets beside it",
                )
    if kind == "InputLayer" and isinstance(config, dict) and isinstance(config.get("shape"), list):
        _shape(walk, [config.get("batch_size"), *config["shape"]], f"{place}.config.shape")
    if kind == "Lambda" and isinstance(config, dict):
        _lambda(walk, config, place)
    if kind in ("GPTQConfig", "AWQConfig") and isinstance(config, dict):
        for key in ("dataset", "tokenizer"):
            if config.get(key) is not None:
                raise refused(walk.uri, f"a {key}", f"{place}.config.{key}", "none")
    if kind in _LOOPING:
        _small(walk, {k: v for k, v in described.items() if k in ("config", "inbound_nodes")}, place)
    inner = _config(walk, config, f"{place}.config")
    rest = {k: v for k, v in described.items() if k not in ("class_name", "config", "module", "registered_name")}
    calls = _calls(walk, inner, rest, place)
    shared = described.get("shared_object_id")
    if isinstance(shared, int):
        calls = max(calls, walk.shared.get(shared, 0))
        walk.shared[shared] = calls
    return calls


def _config(walk: _Walk, config: Any, place: str) -> int:
    if not isinstance(config, dict):
        return _value(walk, config, place, None)
    for key in ("batch_shape", "batch_input_shape", "input_shape", "build_input_shape"):
        _shape(walk, config.get(key), f"{place}.{key}")
    layers = config.get("layers")
    if isinstance(layers, list):
        _check_order(walk, layers, place)
    return sum(_value(walk, inner, f"{place}.{key}", key) for key, inner in config.items())


def _calls(walk: _Walk, inner: int, rest: dict[str, Any], place: str) -> int:
    """Counts the calls of the layer itself, and of the layers in it, as often as it is called."""
    nodes = rest.pop("inbound_nodes", None)
    for key, value in rest.items():
        _value(walk, value, f"{place}.{key}", key)
    times = 1
    if isinstance(nodes, list):
        times = max(1, len(nodes))
        for i, node in enumerate(nodes):
            _value(walk, node, f"{place}.inbound_nodes[{i}]", None)
            if isinstance(node, dict) and not _has_tensor(node):
                # Keras would compute it while the model is built, however much that is.
                raise malformed(walk.uri, f"{place}.inbound_nodes[{i}]", "the output of another layer", "none")
    return (inner + 1) * times


def _has_tensor(value: Any) -> bool:
    return any(found.get("class_name") == "__keras_tensor__" for found in objects_in(value))


def _check_order(walk: _Walk, layers: list[Any], place: str) -> None:
    """Keras goes over all the layers again while a call waits for a later layer's."""
    at = {
        layer.get("name"): i
        for i, layer in enumerate(layers)
        if isinstance(layer, dict) and isinstance(layer.get("name"), str)
    }
    waiting = 0
    for i, layer in enumerate(layers):
        nodes = layer.get("inbound_nodes") if isinstance(layer, dict) else None
        waiting += any(at.get(name, 0) > i for name in _inbound(nodes))
    if waiting * len(layers) > _MOST_RETRIES:
        raise too_much(walk.uri, f"has its layers at {place} in no order", "each layer after those that it takes", "")


def _inbound(value: Any) -> list[str]:
    """Names of layers whose outputs a call takes."""
    found: list[str] = []
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            history = node.get("keras_history")
            if isinstance(history, list) and history and isinstance(history[0], str):
                found.append(history[0])
            stack.extend(node.values())
        elif isinstance(node, list):
            if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int):
                found.append(node[0])
            stack.extend(node)
    return found


def _is_one_of(value: Any, names: Set[str]) -> bool:
    """Safe for any JSON value: a list in a name's place has no hash."""
    return isinstance(value, str) and value in names


def _kind(walk: _Walk, described: dict[str, Any], name: str, place: str) -> str:
    """The name of the class that Keras will take."""
    module, registered = described.get("module"), described.get("registered_name", name)
    own = walk.known.get(registered) if isinstance(registered, str) else None
    if own is not None:
        if not isinstance(own, type):
            raise refused(walk.uri, repr(registered), place, "a class", "a function")
        if name not in (registered, own.__name__) or (name != registered and name in _FOREIGN):
            # Without a module, Keras looks for the class by `class_name` alone.
            raise refused(walk.uri, f"{name!r} registered as {registered!r}", place, own.__name__, name)
        walk.custom = True
        return next((k.__name__ for k in own.__mro__ if k.__name__ in _LOOKUPS), own.__name__)
    if hub_safe_mode.is_of_hub(registered) and hub_safe_mode.allows(registered, name):
        return name
    if module is None and name in _SHORT_CLASSES:
        return name
    if not isinstance(module, str) or name not in CLASSES.get(module, ()):
        if isinstance(module, str) and name in FUNCTIONS.get(module, ()):
            raise refused(walk.uri, f"{module}.{name}", place, "a class", "a function")
        raise unknown(walk.uri, name, place, module)
    if registered not in (None, name):
        raise unknown(walk.uri, str(registered), place, module)
    return name


def _lambda(walk: _Walk, config: dict[str, Any], place: str) -> None:
    layer = f"Lambda layer {config['name']!r}" if isinstance(config.get("name"), str) else "a Lambda layer"
    for key in ("function", "output_shape", "mask"):
        value, here = config.get(key), f"{place}.config.{key}"
        named = value["class_name"] if isinstance(value, dict) and "class_name" in value else None
        # Keras 1 and 2 wrote a lambda as [bytecode, defaults, closure].
        if (key == "function" and isinstance(value, list)) or named == "__lambda__":
            raise python_code(walk.uri, layer, here)
        if named not in (None, "function", "__numpy__", "__tensor__"):
            raise refused(walk.uri, repr(named), here, "a function", "a class")
        if key == "function" and isinstance(value, str):
            if walk.known.get(value) is None:
                raise unknown(walk.uri, value, here, None)
            walk.custom = True
        if isinstance(value, dict) and _is_one_of(value.get("config"), _LOOPING):
            _small(walk, config.get("arguments"), f"{place}.config.arguments")


def _small(walk: _Walk, value: Any, place: str) -> None:
    """Raises where a number in the arguments of an operation that loops in Python is large."""
    stack = [value]
    while stack:
        inner = stack.pop()
        if isinstance(inner, dict):
            if not _is_one_of(inner.get("class_name"), _DATA):
                stack.extend(inner.values())
        elif isinstance(inner, list):
            stack.extend(inner)
        elif isinstance(inner, int) and abs(inner) > _MOST_LOOPS:
            raise too_much(
                walk.uri, f"splits a tensor into too many at {place}", f"at most {_MOST_LOOPS:,}", str(inner)[:60]
            )


def _shape(walk: _Walk, shape: Any, place: str) -> None:
    if not isinstance(shape, list):
        return
    for inner in shape:
        if isinstance(inner, list):
            _shape(walk, inner, place)
    values = 1
    for dimension in shape[1 : _MOST_DIMENSIONS + 1]:  # stop here: products of many large numbers take long
        values *= dimension if isinstance(dimension, int) and not isinstance(dimension, bool) else 1
    batch = shape[0] if shape and isinstance(shape[0], int) and not place.endswith(".input_shape") else 0
    if len(shape) > _MOST_DIMENSIONS or abs(values) > _MOST_IN_A_ROW or batch > _MOST_ROWS:
        raise too_much(
            walk.uri,
            f"has a shape at {place} that no row fits",
            f"at most {_MOST_IN_A_ROW:,} values a row, and {_MOST_ROWS:,} rows",
            str(shape)[:100],
        )


def registered() -> Mapping[str, Any]:
    """What code of this process registered with Keras, by `Package>Name`, except KerasHub's classes."""
    from keras.src.saving import object_registration

    found: Mapping[str, Any] = object_registration.GLOBAL_CUSTOM_OBJECTS
    return {name: thing for name, thing in found.items() if not hub_safe_mode.is_of_hub(name)}
