"""The features that one parser takes, from its constants and attributes (tensorflow/core/ops/parsing_ops.cc)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..spec import ExampleFeature
from .graph_scope import Scope, attribute, data_inputs


def example_features(node: Any, scope: Scope) -> Iterator[ExampleFeature]:
    """Of tf.train.Example. Raises `Computed`."""
    inputs = data_inputs(node)
    ragged: list[str] = []
    if node.op == "ParseExampleV2":
        sparse, dense, ragged = (scope.texts(name) for name in inputs[2:5])
        defaults = inputs[5:]
    elif node.op == "ParseExample":
        of_sparse, of_dense = attribute(node, "Nsparse").i, attribute(node, "Ndense").i
        keys = [text for name in inputs[2 : 2 + of_sparse + of_dense] for text in scope.texts(name)]
        sparse, dense, defaults = keys[:of_sparse], keys[of_sparse:], inputs[2 + of_sparse + of_dense :]
    else:
        sparse, dense = (
            [key.decode(errors="backslashreplace") for key in attribute(node, name).list.s]
            for name in ("sparse_keys", "dense_keys")
        )
        defaults = inputs[1:]

    for key, kind in zip(sparse, attribute(node, "sparse_types").list.type, strict=True):
        yield ExampleFeature(key, _dtype(kind), (None,), False)
    ragged_types = attribute(node, "ragged_value_types").list.type if ragged else ()
    for key, kind in zip(ragged, ragged_types, strict=True):
        yield ExampleFeature(key, _dtype(kind), (None,), False)
    kinds, shapes = attribute(node, "Tdense").list.type, attribute(node, "dense_shapes").list.shape
    for key, kind, shape, default in zip(dense, kinds, shapes, defaults, strict=True):
        dims = _dims(shape)
        varies = dims[:1] == (None,)
        yield ExampleFeature(key, _dtype(kind), dims, not varies and scope.is_empty(default))


def sequence_features(node: Any, scope: Scope) -> Iterator[ExampleFeature]:
    """Of tf.train.SequenceExample: those of its context, and its feature lists. Raises `Computed`."""
    arguments = _arguments(node)

    def keys(name: str) -> list[str]:
        if name in arguments:
            return [text for one in arguments[name] for text in scope.texts(one)]
        named = node.attr[name].list.s if name in node.attr else ()
        return [key.decode(errors="backslashreplace") for key in named]

    def of_attribute(name: str, kind: str) -> list[Any]:
        return list(getattr(node.attr[name].list, kind)) if name in node.attr else []

    for form, types in (("sparse", "sparse_types"), ("ragged", "ragged_value_types")):
        for key, kind in zip(keys(f"context_{form}_keys"), of_attribute(f"context_{types}", "type"), strict=True):
            yield ExampleFeature(key, _dtype(kind), (None,), False)
        listed = zip(keys(f"feature_list_{form}_keys"), of_attribute(f"feature_list_{types}", "type"), strict=True)
        for key, kind in listed:
            yield ExampleFeature(key, _dtype(kind), (None, None), False, steps=True)
    dense, defaults = keys("context_dense_keys"), arguments.get("context_dense_defaults", [])
    kinds, shapes = of_attribute("Tcontext_dense", "type"), of_attribute("context_dense_shapes", "shape")
    for key, kind, shape, default in zip(dense, kinds, shapes, defaults, strict=True):
        yield ExampleFeature(key, _dtype(kind), _dims(shape), scope.is_empty(default))
    dense = keys("feature_list_dense_keys")
    kinds, shapes = of_attribute("feature_list_dense_types", "type"), of_attribute("feature_list_dense_shapes", "shape")
    optional = _may_be_missing(node, scope, arguments, dense)
    for key, kind, shape in zip(dense, kinds, shapes, strict=True):
        yield ExampleFeature(key, _dtype(kind), (None, *_dims(shape)), key not in optional, steps=True)


def _may_be_missing(node: Any, scope: Scope, arguments: dict[str, list[str]], dense: list[str]) -> set[str]:
    """The keys of feature lists without which a message can be parsed: named, or marked in the order of `dense`."""
    name = "feature_list_dense_missing_assumed_empty"
    if node.op == "ParseSequenceExampleV2":
        return {key for key, may in zip(dense, scope.flags(arguments[name][0], len(dense)), strict=True) if may}
    if name in arguments:
        return set(scope.texts(arguments[name][0]))
    return {key.decode(errors="backslashreplace") for key in node.attr[name].list.s} if name in node.attr else set()


def _arguments(node: Any) -> dict[str, list[str]]:
    """The node's inputs by the names of the operation's arguments, of which some take several."""
    # Private, as in ..operations.
    from tensorflow.python.framework import op_def_registry

    inputs, found, at = data_inputs(node), {}, 0
    for argument in op_def_registry.get(node.op).input_arg:
        count = 1
        if argument.number_attr:
            count = node.attr[argument.number_attr].i if argument.number_attr in node.attr else 0
        elif argument.type_list_attr:
            named = argument.type_list_attr
            count = len(node.attr[named].list.type) if named in node.attr else 0
        found[argument.name] = inputs[at : at + count]
        at += count
    return found


def _dtype(number: int) -> str:
    import tensorflow as tf

    return str(tf.dtypes.as_dtype(number).name)


def _dims(shape: Any) -> tuple[int | None, ...]:
    return tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)
