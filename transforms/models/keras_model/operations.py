"""Layers of a Keras model that draw random numbers or change their own state when it predicts.

Keras' own layers may do so only where the model calls them with `training=True`, or where they are stateful. A trace of the
model's call, which needs no weights, shows whether they do. Other classes are traced in any case.

It uses these private parts of Keras, each checked by tests/transforms/models/keras_model/test_keras_private.py:
`Layer._flatten_layers`; `Functional._nodes_by_depth` and `Node.arguments`: how a functional model calls its layers;
`StatelessScope`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from ..operations import Found, Library
from ..spec import Operations
from . import signature as keras_signature

_log = logging.getLogger(__name__)


def operations(model: Any, signature: list[Any]) -> Operations:
    """`signature` are the model's arguments as nested `tf.TensorSpec`. No weight is needed."""
    layers = list(model._flatten_layers())
    called = list(_in_training(layers))
    random = {_name(layer) for layer in called if _draws(layer)}
    writes = {_name(layer) for layer in called if _moves(layer)}
    writes |= _stateful(layers)
    suspected = Operations(random=tuple(sorted(random)), writes=tuple(sorted(writes)))
    if not random and not writes and all(map(_is_kerass_own, layers)):
        return suspected
    try:
        return _traced(model, signature)
    except Exception:
        # A model that cannot be traced without weights is judged by what its layers declare.
        _log.debug("The call of a model could not be traced without weights", exc_info=True)
        return suspected


def _is_kerass_own(layer: Any) -> bool:
    return type(layer).__module__.partition(".")[0] == "keras" and type(layer).__name__ not in ("Lambda", "TFSMLayer")


def _name(layer: Any) -> str:
    return f"{type(layer).__name__} {layer.name!r}"


def _stateful(layers: Iterable[Any]) -> set[str]:
    return {_name(layer) for layer in layers if getattr(layer, "stateful", False)}


def _in_training(layers: list[Any]) -> Iterator[Any]:
    """The layers that a functional model calls with `training=True`, and those inside of them."""
    for model in layers:
        by_depth = getattr(model, "_nodes_by_depth", {}).values()
        for node in (node for nodes in by_depth for node in nodes):
            if node.arguments.kwargs.get("training") is True:
                operation = node.operation
                yield from operation._flatten_layers() if hasattr(operation, "_flatten_layers") else ()


def _draws(layer: Any) -> bool:
    """Layers of Keras that draw numbers keep a generator for them, and a rate or a spread, which may be 0."""
    strengths = [
        getattr(layer, key) for key in ("rate", "stddev", "dropout", "recurrent_dropout") if hasattr(layer, key)
    ]
    return bool(_generators(layer)) and (not strengths or any(strengths))


def _moves(layer: Any) -> bool:
    """Moving averages, and what a spectral normalization keeps."""
    kind = type(layer).__name__
    return (kind == "BatchNormalization" and layer.trainable) or kind == "SpectralNormalization"


def _traced(model: Any, signature: list[Any]) -> Operations:
    import inspect

    import tensorflow as tf
    from keras.src.backend.common.stateless_scope import StatelessScope

    states = [generator.state for layer in model._flatten_layers() for generator in _generators(layer)]
    variables = list({id(variable): variable for variable in [*model.variables, *states]}.values())
    options = {"training": False} if "training" in inspect.signature(model.call).parameters else {}
    changed: list[Any] = []
    others: list[int] = []

    def call(*args: Any) -> Any:
        values = [tf.raw_ops.Placeholder(dtype=v.dtype, shape=v.shape) for v in variables]
        with StatelessScope(state_mapping=list(zip(variables, values, strict=True))) as scope:
            outputs = model(*args, **options)
            now = [scope.get_current_value(variable) for variable in variables]
            known = {id(variable) for variable in variables}
            others.extend(key for key in scope.state_mapping if key not in known)
        changed.extend(
            v for v, old, new in zip(variables, values, now, strict=True) if new is not None and new is not old
        )
        return tf.nest.map_structure(tf.convert_to_tensor, outputs)

    concrete = keras_signature.trace(call, signature)
    found, graph = Found(), concrete.graph.as_graph_def()
    library = Library(graph)
    for node in graph.node:
        found.add(node, ())
        library.walk(library.calls(node, ()), found)
    for variable in changed:
        (found.random if "seed_generator_state" in variable.name else found.writes).add(variable.path)
    if others:  # of recurrent layers, whose states are none of the model's variables
        found.writes |= _stateful(model._flatten_layers())
    return Operations(random=tuple(sorted(found.random)), writes=tuple(sorted(found.writes)))


def _generators(layer: Any) -> list[Any]:
    return [value for value in vars(layer).values() if type(value).__name__ == "SeedGenerator"]
