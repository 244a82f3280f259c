"""The features that one parser takes, from its constants and attributes (tensorflow/core/ops/parsing_ops.cc)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..spec import ExampleFeature
from .graph_scope import Scope, data_inputs


def features_of(node: Any, scope: Scope, *, sequence: bool) -> Iterator[ExampleFeature]:
    """Of tf.train.Example, or of a `sequence`, tf.train.SequenceExample: those of its context, and its feature lists.

    Raises `Computed`.
    """
    arguments = _arguments(node)

    def keys(name: str) -> list[str]:
        if name in arguments:
            return [text for one in arguments[name] for text in scope.texts(one)]
        return [key.decode(errors="backslashreplace") for key in of_attribute(name, "s")]

    def of_attribute(name: str, kind: str) -> list[Any]:
        return list(getattr(node.attr[name].list, kind)) if name in node.attr else []

    groups = (("context_", False), ("feature_list_", True)) if sequence else (("", False),)
    for form, types in (("sparse", "sparse_types"), ("ragged", "ragged_value_types")):
        for group, steps in groups:
            shape = (None, None) if steps else (None,)
            for key, kind in zip(keys(f"{group}{form}_keys"), of_attribute(f"{group}{types}", "type"), strict=True):
                yield ExampleFeature(key, _dtype(kind), shape, False, steps)
    for group, steps in groups:
        dense, kinds = keys(f"{group}dense_keys"), f"{group}dense_types" if steps else f"T{group}dense"
        typed = zip(dense, of_attribute(kinds, "type"), of_attribute(f"{group}dense_shapes", "shape"), strict=True)
        if steps:
            optional = _may_be_missing(node, scope, arguments, dense)
            for key, kind, one in typed:
                yield ExampleFeature(key, _dtype(kind), (None, *_dims(one)), key not in optional, steps)
        else:
            for (key, kind, one), default in zip(typed, arguments.get(f"{group}dense_defaults", ()), strict=True):
                dims = _dims(one)
                yield ExampleFeature(key, _dtype(kind), dims, dims[:1] != (None,) and scope.is_empty(default))


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
