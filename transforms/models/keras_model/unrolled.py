"""Layers whose graph grows with the number of steps: one small number in a configuration, and a graph of millions of nodes.

An unrolled recurrent layer, and `TimeDistributed` over a known number of steps, write each step into the graph (Keras 3.15 on
TensorFlow). Their steps are counted twice. Once the model is built, the shapes that it was built for show them to `plan`. While
the model is loaded, they are counted as its graph is made, where layers are called again with other shapes.

It uses these private parts of Keras, each checked by tests/transforms/models/keras_model/test_keras_private.py:

- `Layer._build_shapes_dict`: the shapes that a layer was built for.
- `Layer._flatten_layers`: every layer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from ...errors import UnsupportedModel

MOST_STEPS = 16_000


def bound_steps(model: Any, uri: str) -> None:
    """Raises `UnsupportedModel` where the model's graph would hold too many steps, now or when it is made."""
    budget = _Budget(uri)
    layers = [layer for layer in model._flatten_layers() if _is_unrolled(layer)]
    for layer in layers:
        budget.spend(layer, max(_steps(layer), default=0) * _weight(layer))
    tracing = _Budget(uri)
    for layer in layers:
        # Not through Keras' own attributes, which are part of the model's state.
        object.__setattr__(layer, "call", _counting(layer, tracing))


def release(model: Any) -> None:
    """Ends the count: from here on, shapes come from the user's data and not from the file."""
    for layer in model._flatten_layers():
        if _is_unrolled(layer):
            vars(layer).pop("call", None)


class _Budget:
    def __init__(self, uri: str) -> None:
        self._uri, self._spent = uri, 0

    def spend(self, layer: Any, steps: int) -> None:
        self._spent += steps
        if self._spent > MOST_STEPS:
            raise UnsupportedModel(
                f"{type(layer).__name__} {layer.name!r} of {self._uri} would write each of its many steps into the graph",
                expected=f"at most {MOST_STEPS:,} steps of layers in all",
                found=f"{self._spent:,}",
                cure="Save the model with unroll=False, or leave the number of steps open: keras.Input((None, …)).",
            )


def _counting(layer: Any, budget: _Budget) -> Any:
    call = layer.call

    @functools.wraps(call)
    def counted(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        shape: Any = getattr(inputs[0] if isinstance(inputs, (list, tuple)) else inputs, "shape", ())
        if len(shape) > 1 and shape[1] is not None:
            budget.spend(layer, int(shape[1]) * _weight(layer))
        return call(inputs, *args, **kwargs)

    return counted


def _is_unrolled(layer: Any) -> bool:
    from keras import layers

    return isinstance(layer, layers.TimeDistributed) or (isinstance(layer, layers.RNN) and bool(layer.unroll))


def _weight(layer: Any) -> int:
    """How many layers a step runs."""
    return sum(1 for inner in layer._flatten_layers() if inner is not layer) or 1


def _steps(layer: Any) -> Iterator[int]:
    shapes = list((getattr(layer, "_build_shapes_dict", None) or {}).values())
    for node in getattr(layer, "_inbound_nodes", ()):
        shapes.extend(tensor.shape for tensor in node.input_tensors[:1])
    for shape in shapes:
        if isinstance(shape, (list, tuple)) and len(shape) > 1 and isinstance(shape[1], int):
            yield shape[1]
