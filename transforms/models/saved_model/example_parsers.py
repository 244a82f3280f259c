"""Finds the inputs of a graph that take serialized tf.train.Example, from its own parsers in nodes and functions.

An input's strings are followed from the input through operations that leave them unchanged, function calls and loops
included, to `ParseExample` and similar operations, whose keys and types are constants of the graph
(tensorflow/core/ops/parsing_ops.cc).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..spec import ExampleFeature, ExampleFormat, Signature

_EXAMPLES = frozenset({"ParseExample", "ParseExampleV2", "ParseSingleExample"})
_SEQUENCES = frozenset({"ParseSequenceExample", "ParseSequenceExampleV2", "ParseSingleSequenceExample"})
_PARSERS = _EXAMPLES | _SEQUENCES
# Operations that pass strings on unchanged: all of them, some, or through a loop.
_SAME = frozenset(
    (
        *(
            "Identity",
            "IdentityN",
            "StopGradient",
            "PreventGradient",
            "PlaceholderWithDefault",
            "Snapshot",
            "EnsureShape",
        ),
        *(
            "Reshape",
            "ExpandDims",
            "Squeeze",
            "StridedSlice",
            "Slice",
            "GatherV2",
            "Gather",
            "Pack",
            "Unpack",
            "Concat",
        ),
        *("ConcatV2", "TensorListFromTensor", "TensorListGetItem", "TensorListStack", "TensorArrayScatterV3"),
        *(
            "TensorArrayReadV3",
            "Enter",
            "Exit",
            "Merge",
            "Switch",
            "NextIteration",
            "RefEnter",
            "RefSwitch",
            "RefMerge",
        ),
    )
)
_DEEPEST = 100  # calls of functions within functions
# Their first input is a condition, not an argument of the branches.
_BRANCHING = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})


class _Scope:
    """The nodes of the graph or of one function, by their names and by what they take."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        self.nodes: dict[str, Any] = {}
        self.takers: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for node in nodes:
            self.nodes[node.name] = node
            for at, name in enumerate(_data_inputs(node)):
                self.takers[name].append((node, at))

    def constant(self, name: str) -> Any:
        """The constant as its message; None where it is computed."""
        for _ in range(100):  # a damaged graph may lead in a circle
            node = self.nodes.get(name)
            if node is None:
                return None
            if node.op == "Const" and "value" in node.attr:
                return node.attr["value"].tensor
            if node.op not in ("Identity", "Reshape") or not node.input:
                return None
            name = _data_inputs(node)[0]
        return None

    def texts(self, name: str) -> list[str]:
        """Raises `_Computed`."""
        tensor = self.constant(name)
        if tensor is None:
            raise _Computed
        # Not by way of `tf.make_ndarray`, which makes as many as a damaged shape claims.
        return [value.decode(errors="backslashreplace") for value in tensor.string_val]

    def is_empty(self, name: str) -> bool:
        """Whether the default is a constant without elements, which makes a feature required."""
        tensor = self.constant(name)
        return tensor is not None and any(dim.size == 0 for dim in tensor.tensor_shape.dim)


class _Computed(Exception):
    """A parser's keys are not constants."""


class ExampleParsers:
    """Asked for one graph; where it has no parser, nothing is walked."""

    def __init__(self, graph_def: Any) -> None:
        functions = {function.signature.name: function for function in graph_def.library.function}
        bodies = [graph_def.node, *(function.node_def for function in functions.values())]
        self._any = any(node.op in _PARSERS for nodes in bodies for node in nodes)
        self._graph_def, self._functions = graph_def, functions
        self._scopes: dict[str, _Scope] = {}

    def with_examples(self, signature: Signature, definition: Any) -> Signature:
        """The signature with what its inputs are parsed as; `definition` names the tensors of the graph that they feed."""
        if not self._any:
            return signature
        return _with_examples(
            signature, {name: self._walk("", _node_of(tensor.name)) for name, tensor in definition.inputs.items()}
        )

    def with_examples_of_function(self, signature: Signature, function: str) -> Signature:
        """The same of a function, whose first arguments are the signature's inputs."""
        if not self._any or function not in self._functions:
            return signature
        names = [argument.name for argument in self._functions[function].signature.input_arg]
        taken = [
            part
            for name, spec in signature.inputs.items()
            for part in (spec.composite.parts if spec.composite else [name])
        ]
        walks = zip(taken, names, strict=False)
        return _with_examples(signature, {name: self._walk(function, argument) for name, argument in walks})

    def _walk(self, function: str, start: str) -> list[tuple[Any, _Scope]]:
        walk = _Walk(self)
        walk.follow(function, start)
        return walk.parsers

    def scope(self, function: str) -> _Scope:
        if function not in self._scopes:
            body = self._functions[function].node_def if function else self._graph_def.node
            self._scopes[function] = _Scope(body)
        return self._scopes[function]

    def arguments(self, function: str) -> list[str]:
        return [argument.name for argument in self._functions[function].signature.input_arg]

    def returned(self, function: str) -> set[str]:
        return {_node_of(name) for name in self._functions[function].ret.values()}

    def called(self, node: Any) -> Iterator[str]:
        if node.op in self._functions:
            yield node.op
        for value in node.attr.values():
            named = [value.func] if value.WhichOneof("value") == "func" else value.list.func
            yield from (attribute.name for attribute in named if attribute.name in self._functions)


@dataclass
class _Call:
    """An argument of a function, on which the walk has been: whether the function gives it back."""

    gives_back: bool = False


class _Walk:
    def __init__(self, graph: ExampleParsers) -> None:
        self._graph = graph
        self._calls: dict[tuple[str, str], _Call] = {}
        self.parsers: list[tuple[Any, _Scope]] = []

    def follow(self, function: str, start: str, depth: int = 0) -> bool:
        """Collects the parsers that get what `start` holds; whether the function gives it back."""
        if (function, start) in self._calls:
            return self._calls[function, start].gives_back
        if depth > _DEEPEST:
            return False
        call = self._calls[function, start] = _Call()
        scope, todo, reached = self._graph.scope(function), [start], {start}
        while todo:
            for node, at in scope.takers.get(todo.pop(), ()):
                if node.op in _PARSERS:
                    if at == 0:
                        self.parsers.append((node, scope))
                elif node.name not in reached and (node.op in _SAME or self._handed_on(node, at, depth + 1)):
                    reached.add(node.name)
                    todo.append(node.name)
        call.gives_back = bool(function) and not reached.isdisjoint(self._graph.returned(function))
        return call.gives_back

    def _handed_on(self, node: Any, at: int, depth: int) -> bool:
        at -= node.op in _BRANCHING
        found = False
        for function in self._graph.called(node):
            arguments = self._graph.arguments(function)
            if 0 <= at < len(arguments):
                found = self.follow(function, arguments[at], depth) or found
        return found


def _with_examples(signature: Signature, parsers: Mapping[str, Sequence[tuple[Any, _Scope]]]) -> Signature:
    inputs = {
        name: replace(spec, example=_format(parsers[name])) if spec.dtype == "string" and parsers.get(name) else spec
        for name, spec in signature.inputs.items()
    }
    return replace(signature, inputs=inputs)


def _format(parsers: Sequence[tuple[Any, _Scope]]) -> ExampleFormat:
    """The format that suits all of the parsers."""
    if any(node.op in _SEQUENCES for node, _ in parsers):
        why = "headrace encodes tf.train.Example, and no sequences"
        return ExampleFormat((), "tf.train.SequenceExample", why)
    features: dict[str, ExampleFeature] = {}
    problem = ""
    for node, scope in parsers:
        try:
            own = list(_features(node, scope))
        except _Computed:
            return ExampleFormat((), problem="the graph computes the keys of its parser")
        for feature in own:
            other = features.setdefault(feature.name, feature)
            if feature.dtype != other.dtype:
                problem = f"the graph parses {feature.name!r} as {other.dtype} and as {feature.dtype}"
            features[feature.name] = replace(
                other if feature.varies else feature, required=feature.required or other.required
            )
    return ExampleFormat(tuple(features[name] for name in sorted(features)), problem=problem)


def _features(node: Any, scope: _Scope) -> Iterator[ExampleFeature]:
    """Raises `_Computed`."""
    import tensorflow as tf

    inputs = _data_inputs(node)
    ragged: list[str] = []
    if node.op == "ParseExampleV2":
        sparse, dense, ragged = (scope.texts(name) for name in inputs[2:5])
        defaults = inputs[5:]
    elif node.op == "ParseExample":
        of_sparse, of_dense = _attr(node, "Nsparse").i, _attr(node, "Ndense").i
        keys = [text for name in inputs[2 : 2 + of_sparse + of_dense] for text in scope.texts(name)]
        sparse, dense, defaults = keys[:of_sparse], keys[of_sparse:], inputs[2 + of_sparse + of_dense :]
    else:
        sparse, dense = (
            [key.decode(errors="backslashreplace") for key in _attr(node, name).list.s]
            for name in ("sparse_keys", "dense_keys")
        )
        defaults = inputs[1:]

    def dtype(number: int) -> str:
        return str(tf.dtypes.as_dtype(number).name)

    for key, kind in zip(sparse, _attr(node, "sparse_types").list.type, strict=True):
        yield ExampleFeature(key, dtype(kind), (None,), False)
    ragged_types = _attr(node, "ragged_value_types").list.type if ragged else ()
    for key, kind in zip(ragged, ragged_types, strict=True):
        yield ExampleFeature(key, dtype(kind), (None,), False)
    kinds, shapes = _attr(node, "Tdense").list.type, _attr(node, "dense_shapes").list.shape
    for key, kind, shape, default in zip(dense, kinds, shapes, defaults, strict=True):
        dims = tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)
        varies = dims[:1] == (None,)
        yield ExampleFeature(key, dtype(kind), dims, not varies and scope.is_empty(default))


def _attr(node: Any, name: str) -> Any:
    """Reads without inserting, as brackets would for a missing key. Raises `KeyError`."""
    if name not in node.attr:
        raise KeyError(f"{node.op} {node.name!r} has no attribute {name!r}")
    return node.attr[name]


def _data_inputs(node: Any) -> list[str]:
    return [_node_of(name) for name in node.input if not name.startswith("^")]


def _node_of(name: str) -> str:
    return name.partition(":")[0]
