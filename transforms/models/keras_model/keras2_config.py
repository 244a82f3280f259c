"""Rewrites configurations of Keras 1 or 2 so that Keras 3 understands them.

Keras 3 reads most of them through its legacy code. It is known to fail on these; the rewriting loses nothing:

- recurrent layers with `time_major: false`, the only value that Keras 3 supports;
- convolutions with arguments that they inherited in Keras 2 and never used, or `groups: 1`;
- calls of a nested model: Keras 2 counted the call that made the model as its first (`_should_skip_first_node` in
  keras/src/engine/functional.py of 2.15), Keras 3 does not;
- since 2.13, `module` next to each `class_name`, which makes Keras 3 skip its legacy code;
- before 2.13, no `module` for what a layer wraps (Bidirectional, TimeDistributed, RNN), where Keras 3 has no legacy code;
- Sequential models whose configuration is the bare list of their layers (2.0 to 2.2), and whose first layer has the shape of
  the input (`batch_input_shape`) with no InputLayer before it;
- names of layers with a slash, which Keras 3 refuses.

`keras2_meanings` handles what Keras 3 reads but understands in another way.
"""

from __future__ import annotations

from typing import Any

from ...bounded_json import objects_in
from .keras2_meanings import keep_meaning

_RECURRENT = {"RNN", "LSTM", "GRU", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"}
_SEPARABLE = {"SeparableConv1D", "SeparableConv2D", "SeparableConvolution1D", "SeparableConvolution2D"}
_UNGROUPED = _SEPARABLE | {
    *("DepthwiseConv1D", "DepthwiseConv2D", "DepthwiseConvolution2D"),
    *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
}
_MODULES = (
    *("keras", "keras.layers", "keras.models"),
    *("keras.src.engine.functional", "tf_keras.src.engine.functional"),
)
_MODELS = {
    "Sequential": "keras",
    "Functional": "keras.src.models.functional",
    "Model": "keras.src.models.functional",
}
_OF_CONVOLUTIONS = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")


def is_old(keras_version: Any) -> bool:
    """Whether a file names no version, or Keras 1 or 2."""
    return keras_version is None or (isinstance(keras_version, str) and keras_version.startswith(("1.", "2.")))


def modernised(described: Any, keras_version: str | None = None) -> Any:
    """A model's configuration of Keras 1 or 2, as Keras 3 takes it."""
    return _renamed(_modernised(described, keras_version, listed=True))


def _modernised(described: Any, version: str | None, *, listed: bool) -> Any:
    """`listed`: it is a model, or one of a model's `layers`."""
    if isinstance(described, list):
        return [_modernised(value, version, listed=listed) for value in described]
    if not isinstance(described, dict):
        return described
    if described.get("class_name") == "Sequential" and isinstance(described.get("config"), list):
        described = {
            **described,
            "config": {"name": described.get("name", "sequential"), "layers": described["config"]},
        }
    found = {
        key: _modernised(value, version, listed=key == "layers" or (key == "config" and "class_name" not in described))
        for key, value in described.items()
    }
    name, config = found.get("class_name"), found.get("config")
    if not isinstance(name, str) or not isinstance(config, dict):
        return found
    if name == "Sequential":
        _begin_with_input(config)
    _set_module(found, name, listed)
    keep_meaning(name, config, version)
    if name in _RECURRENT and config.get("time_major") is False:
        del config["time_major"]
    if name in _UNGROUPED and config.get("groups") == 1:
        del config["groups"]
    if name in _SEPARABLE:
        for key in _OF_CONVOLUTIONS:
            config.pop(key, None)
    if isinstance(config.get("layers"), list):
        for layer in config["layers"]:
            _drop_shape(layer)
        _renumber(config)
    return found


def _begin_with_input(config: dict[str, Any]) -> None:
    layers = config.get("layers")
    first = layers[0] if isinstance(layers, list) and layers and isinstance(layers[0], dict) else {}
    inner = first.get("config")
    if not isinstance(inner, dict) or first.get("class_name") == "InputLayer" or not inner.get("batch_input_shape"):
        return
    dtype = inner.get("dtype")
    shaped = {
        "name": f"{inner.get('name') or 'first'}_input",
        "batch_input_shape": inner["batch_input_shape"],
        # A mixed policy computes in 16 bits, and takes and keeps 32.
        "dtype": dtype if isinstance(dtype, str) and not dtype.startswith("mixed") else "float32",
        "sparse": False,
    }
    config["layers"] = [{"class_name": "InputLayer", "config": shaped}, *config["layers"]]


def _drop_shape(layer: Any) -> None:
    """Keras 3 would take it for a shape without the batch."""
    inner = layer.get("config") if isinstance(layer, dict) else None
    if isinstance(inner, dict) and layer.get("class_name") != "InputLayer":
        inner.pop("batch_input_shape", None)


def _renamed(described: Any) -> Any:
    """With names that Keras 3 accepts, if a layer's has a slash."""
    names = {found["name"] for found in objects_in(described) if isinstance(found.get("name"), str)}
    new: dict[str, str] = {}
    for name in sorted(name for name in names if "/" in name):
        chosen = name.replace("/", "_")
        while chosen in names:
            chosen += "_"
        names.add(chosen)
        new[name] = chosen
    for found in objects_in(described) if new else ():
        if isinstance(found.get("name"), str):
            found["name"] = new.get(found["name"], found["name"])
        for reference in _references([found.get(key) for key in ("inbound_nodes", "input_layers", "output_layers")]):
            reference[0] = new.get(reference[0], reference[0])
    return described


def _set_module(found: dict[str, Any], name: str, listed: bool) -> None:
    """Keras 3 has legacy code for the members of a model's `layers`; it looks up by module what a layer wraps."""
    from keras import layers

    module = found.get("module")
    if listed:
        if module is None or module in _MODULES:
            for key in ("module", "registered_name", "build_config"):
                found.pop(key, None)
    elif module is None and name in _MODELS:
        found |= {"module": _MODELS[name], "registered_name": name if name == "Sequential" else None}
    elif module is None and isinstance(getattr(layers, name, None), type):
        found |= {"module": "keras.layers", "registered_name": None}
        found["config"].pop("batch_input_shape", None)


def _renumber(config: dict[str, Any]) -> None:
    layers = [layer for layer in config["layers"] if isinstance(layer, dict)]
    counted = {layer["name"] for layer in layers if _starts_with_input(layer) and isinstance(layer.get("name"), str)}
    nodes = [layer.get("inbound_nodes") for layer in layers]
    for reference in _references([nodes, config.get("input_layers"), config.get("output_layers")]):
        if reference[0] in counted and reference[1] > 0:
            reference[1] -= 1


def _starts_with_input(layer: dict[str, Any]) -> bool:
    config = layer.get("config")
    nested = config.get("layers") if isinstance(config, dict) else None
    first = nested[0] if isinstance(nested, list) and nested else None
    return isinstance(first, dict) and first.get("class_name") == "InputLayer"


def _references(value: Any) -> list[list[Any]]:
    """The `[layer's name, number of its call, number of the output, …]` somewhere in lists and dicts."""
    if isinstance(value, dict):
        return [found for inner in value.values() for found in _references(inner)]
    if not isinstance(value, list):
        return []
    if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int) and isinstance(value[2], int):
        return [value, *(found for inner in value[3:] for found in _references(inner))]
    return [found for inner in value for found in _references(inner)]
