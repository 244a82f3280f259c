"""A function's call without the Python around it.

TensorFlow's own call binds, casts and compares its arguments in Python each time, while it holds the interpreter's lock:
two thirds of the time that a small network takes for a batch of a few rows. Here the same function of TensorFlow's
runtime gets the same tensors, and computes the same.

It uses these private parts of TensorFlow, each checked by tests/transforms/models/test_direct_call.py:

- `ConcreteFunction._inference_function.name`: the runtime's name of the function.
- `ConcreteFunction._captured_inputs`: tensors, or functions that make them for each call.
- `context.call_function`: the last step of TensorFlow's own call.
- `ConcreteFunction._arg_keywords`: names of its inputs, in the order in which the runtime takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Call = Callable[[Mapping[str, Any]], dict[str, Any]]


def by_keywords(function: Any) -> Call:
    """The call of a SavedModel's signature; captured variables must be in their places."""

    def usual(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return function(**tensors)

    names = function._arg_keywords
    return usual if names is None else direct(function, list(map(str, names)), usual)


def direct(function: Any, names: Sequence[str], usual: Call) -> Call:
    """`names` are the function's inputs in order. `usual` is its call, used where this one cannot replace it: outputs other
    than a dict of dense tensors, captures made for each call, other inputs, and within a graph.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    outputs, captures = function.structured_outputs, list(function._captured_inputs)
    dense = isinstance(outputs, Mapping) and all(
        isinstance(output, tf.Tensor | tf.TensorSpec) for output in outputs.values()
    )
    if not dense or not all(isinstance(capture, tf.Tensor) for capture in captures):
        return usual
    # TensorFlow flattens a dict in the order of its sorted keys.
    returned, known = sorted(outputs), frozenset(names)
    if len(function.outputs) != len(returned) or len(function.inputs) != len(names) + len(captures):
        return usual
    name, count = function._inference_function.name, len(returned)

    def call(tensors: Mapping[str, Any]) -> dict[str, Any]:
        runtime = context.context()
        if tensors.keys() != known or not runtime.executing_eagerly():
            return usual(tensors)
        given = [tensors[name] for name in names]
        return dict(zip(returned, runtime.call_function(name, given + captures, count), strict=True))

    return call
