"""Finds the inputs of a graph that take serialized tf.train.Example, from its own parsers in nodes and functions.

An input's strings are followed from the input through operations that leave them unchanged, function calls and loops
included, to `ParseExample` and similar operations, whose keys and types are constants of the graph
(tensorflow/core/ops/parsing_ops.cc).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..operations import functions_in
from ..spec import ExampleFeature, ExampleFormat, Signature
from .graph_scope import Computed, Scope, data_inputs, node_of

_EXAMPLES = frozenset({"ParseExample", "ParseExampleV2", "ParseSingleExample"})
_SEQUENCES = frozenset({"ParseSequenceExample", "ParseSequenceExampleV2", "ParseSingleSequenceExample"})
_PARSERS = _EXAMPLES | _SEQUENCES
# Operations that pass strings on unchanged: all of them, some, or through a loop.
_SAME_NAMES = """
    Identity IdentityN StopGradient PreventGradient PlaceholderWithDefault Snapshot EnsureShape Reshape ExpandDims Squeeze
    StridedSlice Slice GatherV2 Gather Pack Unpack Concat ConcatV2 TensorListFromTensor TensorListGetItem TensorListStack
    TensorArrayScatterV3 TensorArrayReadV3 Enter Exit Merge Switch NextIteration RefEnter RefSwitch RefMerge
"""
_SAME = frozenset(_SAME_NAMES.split())
_DEEPEST = 100  # calls of functions within functions
# Their first input is a condition, not an argument of the branches.
_BRANCHING = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})


class ExampleParsers:
    """Asked for one graph; where it has no parser, nothing is walked."""

    def __init__(self, graph_def: Any) -> None:
        functions = {function.signature.name: function for function in graph_def.library.function}
        bodies = [graph_def.node, *(function.node_def for function in functions.values())]
        self._any = any(node.op in _PARSERS for nodes in bodies for node in nodes)
        self._graph_def, self._functions = graph_def, functions
        self._scopes: dict[str, Scope] = {}

    def with_examples(self, signature: Signature, definition: Any) -> Signature:
        """The signature with what its inputs are parsed as; `definition` names the tensors of the graph that they feed."""
        if not self._any:
            return signature
        return _with_examples(
            signature, {name: self._walk("", node_of(tensor.name)) for name, tensor in definition.inputs.items()}
        )

    def with_examples_of_function(self, signature: Signature, function: str) -> Signature:
        """The same of a function, whose first arguments are the signature's inputs."""
        if not self._any or function not in self._functions:
            return signature
        taken = [
            part
            for name, spec in signature.inputs.items()
            for part in (spec.composite.parts if spec.composite else [name])
        ]
        walks = zip(taken, self.arguments(function), strict=False)
        return _with_examples(signature, {name: self._walk(function, argument) for name, argument in walks})

    def _walk(self, function: str, start: str) -> list[tuple[Any, Scope]]:
        walk = _Walk(self)
        walk.follow(function, start)
        return walk.parsers

    def scope(self, function: str) -> Scope:
        if function not in self._scopes:
            body = self._functions[function].node_def if function else self._graph_def.node
            self._scopes[function] = Scope(body)
        return self._scopes[function]

    def arguments(self, function: str) -> list[str]:
        return [argument.name for argument in self._functions[function].signature.input_arg]

    def returned(self, function: str) -> set[str]:
        return {node_of(name) for name in self._functions[function].ret.values()}

    def called(self, node: Any) -> Iterator[str]:
        if node.op in self._functions:
            yield node.op
        for value in node.attr.values():
            yield from (name for name in functions_in(value) if name in self._functions)


class _Walk:
    def __init__(self, graph: ExampleParsers) -> None:
        self._graph = graph
        self._gives_back: dict[tuple[str, str], bool] = {}
        self.parsers: list[tuple[Any, Scope]] = []

    def follow(self, function: str, start: str, depth: int = 0) -> bool:
        """Collects the parsers that get what `start` holds; whether the function gives it back."""
        if (function, start) in self._gives_back:
            return self._gives_back[function, start]
        if depth > _DEEPEST:
            return False
        self._gives_back[function, start] = False  # until the walk is done
        scope, todo, reached = self._graph.scope(function), [start], {start}
        while todo:
            for node, at in scope.takers.get(todo.pop(), ()):
                if node.op in _PARSERS:
                    if at == 0:
                        self.parsers.append((node, scope))
                elif node.name not in reached and (node.op in _SAME or self._handed_on(node, at, depth + 1)):
                    reached.add(node.name)
                    todo.append(node.name)
        gives_back = bool(function) and not reached.isdisjoint(self._graph.returned(function))
        self._gives_back[function, start] = gives_back
        return gives_back

    def _handed_on(self, node: Any, at: int, depth: int) -> bool:
        at -= node.op in _BRANCHING
        found = False
        for function in self._graph.called(node):
            arguments = self._graph.arguments(function)
            if 0 <= at < len(arguments):
                found = self.follow(function, arguments[at], depth) or found
        return found


def _with_examples(signature: Signature, parsers: Mapping[str, Sequence[tuple[Any, Scope]]]) -> Signature:
    inputs = {
        name: replace(spec, example=_format(parsers[name])) if spec.dtype == "string" and parsers.get(name) else spec
        for name, spec in signature.inputs.items()
    }
    return replace(signature, inputs=inputs)


def _format(parsers: Sequence[tuple[Any, Scope]]) -> ExampleFormat:
    """The format that suits all of the parsers."""
    features: dict[str, ExampleFeature] = {}
    sequences = {node.op in _SEQUENCES for node, _ in parsers}
    message = "tf.train.SequenceExample" if True in sequences else "tf.train.Example"
    problem = "the graph parses both tf.train.Example and tf.train.SequenceExample" if len(sequences) > 1 else ""
    for node, scope in parsers:
        try:
            own = list(_features_of(node, scope, sequence=node.op in _SEQUENCES))
        except Computed:
            return ExampleFormat((), message, "the graph computes the keys of its parser")
        for feature in own:
            other = features.setdefault(feature.name, feature)
            if feature.dtype != other.dtype:
                problem = f"the graph parses {feature.name!r} as {other.dtype} and as {feature.dtype}"
            if (feature.steps, feature.shape[1:]) != (other.steps, other.shape[1:]) and (feature.steps or other.steps):
                problem = f"the graph parses {feature.name!r} in two ways: as {other} and as {feature}"
            features[feature.name] = replace(
                other if feature.varies else feature, required=feature.required or other.required
            )
    return ExampleFormat(tuple(features[name] for name in sorted(features)), message, problem)


def _features_of(node: Any, scope: Scope, *, sequence: bool) -> Iterator[ExampleFeature]:
    """What one parser takes, from its constants and attributes: of tf.train.Example, or of a `sequence`,
    tf.train.SequenceExample, the features of its context, and its feature lists. Raises `Computed`.
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
