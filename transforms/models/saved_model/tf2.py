"""SavedModels: the graph through TensorFlow's own loader, the weights through the engine. Those of TensorFlow 2 here.

The loader reads from a folder in TensorFlow's in-memory file system, which holds the graph and the assets but no
variable. Which node of the checkpoint fills which variable follows TensorFlow's own rule: the saved object graph and the
checkpoint's object graph are walked together, from the root, by the names of their edges
(tensorflow/core/protobuf/saved_object_graph.proto and trackable_object_graph.proto). A signature's function names the
nodes that it captures, in the order in which the loaded function lists its captured inputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...errors import UnsupportedModel
from ...storage import Store
from ..direct_call import by_keywords
from ..model import Model
from ..operations import ASSET, SEED, Found, Label, Library, check_known, check_outside, check_runnable
from ..ref import ModelRef
from ..spec import ModelSpec, Operations, Signature
from ..streaming.dlpack import to_tensor
from ..streaming.tensor_stream import StreamOptions, TensorStream, open_stream
from ..streaming.whole_reads import Readable
from . import tf1 as saved_model_v1
from .example_parsers import ExampleParsers
from .files import (
    INIT_OP,
    check_fit,
    graph_in_memory,
    no_such_signature,
    open_bundle,
    read_front,
    read_proto,
    reading_graph,
    signature_of,
    unfit,
)
from .flat_inputs import function_of, nested_inputs
from .one_signature import held, keep_only
from .tensor_bundle import Bundle, Entry, damaged
from .traced_functions import TracedFunction, traced_functions

_RUN_BY_THE_LOADER = ("_create_resource", "_initialize", "_destroy_resource")
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"

State = tuple[Entry, ...]
"""A variable's value, or a table's keys and values."""


def describe(store: Store, ref: ModelRef, signature: str | None = None) -> ModelSpec:
    """Reads the graph and the bundle's index. Counts `signature`'s weights, and raises what loading it would raise.

    With none named, counts those of `serving_default`, else of all signatures, and refuses no state.
    """
    with read_front(store, ref) as front:
        proto = read_proto(front, ref)
        if _is_v1(proto):
            return saved_model_v1.describe(front, ref, proto, signature)
        with reading_graph(ref):
            graph = _Graph(front, ref, proto)
            check_known(ref, graph.graph_def)
            signatures = graph.signatures
            if signature is not None:
                signatures = signatures | {signature: graph.signature(signature)}
                weights = graph.weights(graph.captures(signature))
            else:
                signatures = signatures or graph.called_functions()
                counted = ["serving_default"] if "serving_default" in signatures else list(signatures)
                nodes = dict.fromkeys(node for name in counted for node in graph.captures(name))
                weights = graph.weights(nodes, refuse=False)
            operations = {name: graph.operations(name) for name in signatures}
    nbytes = graph.nbytes
    functions = tuple(graph.functions)
    return ModelSpec("saved_model", signatures, _parameters(weights), _nbytes(weights), nbytes, operations, functions)


def load(store: Store, ref: ModelRef, signature: str, stream: StreamOptions) -> Model:
    """Streams what `signature` captures while TensorFlow loads the graph.

    Raises `SignatureNotFound`, `UnsupportedModel` where the signature needs state that cannot be restored, `CorruptModel`.
    """
    with read_front(store, ref) as front:
        proto = read_proto(front, ref)
        if _is_v1(proto):
            return saved_model_v1.load(store, ref, proto, signature, stream, front)
        with reading_graph(ref):
            graph = _Graph(front, ref, proto)
            spec = graph.signature(signature)
            check_known(ref, graph.graph_def)
            operations = graph.operations(signature)
            check_runnable(ref, operations)
            check_outside(ref, operations)
            captures = graph.captures(signature)
            weights = graph.weights(captures)
            of_a_function = graph.function(signature)
    # It holds every constant of the graph: only the folder keeps it, and not for long.
    del proto
    slots = [piece.slot for state in weights.values() for entry in state for piece in entry.pieces]
    with open_stream(store, slots, stream) as tensors:
        folder = graph_in_memory(store, ref, graph.take_proto(signature))
        try:
            loaded = folder.load(ref, graph.tags)
            function = loaded.signatures[signature] if of_a_function is None else of_a_function.restored(loaded)
            fill = _Filler(function, captures, weights, ref)
            for node in sorted(weights, key=lambda node: weights[node][0].place):
                fill(node, tensors, graph.bundle)
        except BaseException:
            folder.remove()
            raise
    # A function that captures an asset's path reads the file whenever it is called.
    if not graph.captures_asset(captures):
        folder.remove()
    return Model(
        ref,
        signature,
        spec.inputs,
        spec.outputs,
        by_keywords(function) if of_a_function is None else of_a_function.call(loaded),
        parameters=_parameters(weights),
        nbytes=_nbytes(weights),
        keep=(loaded, folder),
        operations=operations,
    )


@dataclass(frozen=True, slots=True)
class _Node:
    """Where a node of the saved object graph is in the checkpoint's; `path` is its name from the root."""

    path: str
    attributes: Mapping[str, str]
    has_saver: bool


class _Graph:
    """saved_model.pb, and the two object graphs side by side."""

    def __init__(self, store: Readable, ref: ModelRef, proto: Any) -> None:
        self._store, self._ref, self._proto = store, ref, proto
        metas = proto.meta_graphs
        self.tags = list(metas[0].meta_info_def.tags)
        self._objects = metas[0].object_graph_def
        self.graph_def = metas[0].graph_def
        self.nbytes = proto.ByteSize()
        self._parsers = ExampleParsers(self.graph_def)
        self.signatures = {
            name: self._parsers.with_examples(
                nested_inputs(signature_of(name, definition, ref), self.graph_def, self._objects), definition
            )
            for name, definition in sorted(metas[0].signature_def.items())
            if name != INIT_OP
        }
        # Keras exports each endpoint as a signature and as a function of the same name: those are signatures.
        traced = traced_functions(self._objects).items()
        self.functions = {name: function for name, function in traced if name not in self.signatures}

    def take_proto(self, signature: str) -> Any:
        """The message, for the loader: it holds every constant of the graph, so nothing here keeps it."""
        if signature in self.signatures:
            keep_only(self._proto.meta_graphs[0], [self._concrete(signature), *self._initialisers()])
        proto, self._proto = self._proto, None
        del self.graph_def, self._parsers
        return proto

    @cached_property
    def bundle(self) -> Bundle:
        return open_bundle(self._store, self._ref)

    def signature(self, name: str) -> Signature:
        """One of `signatures`, or the inputs and outputs of a function that was saved next to them."""
        if name in self.signatures:
            return self.signatures[name]
        if name in self.functions:
            function = self.functions[name]
            return self._parsers.with_examples_of_function(
                function.signature(self._ref), function.chosen(self._ref).name
            )
        raise no_such_signature(self._ref, name, list(self.signatures), list(self.functions))

    def called_functions(self) -> dict[str, Signature]:
        """The inputs and outputs of the functions that replace signatures, where each has one form."""
        found = {}
        for name in self.functions:
            with suppress(UnsupportedModel):
                found[name] = self.signature(name)
        return found

    def function(self, signature: str) -> TracedFunction | None:
        """None for one of `signatures`."""
        return None if signature in self.signatures else self.functions[signature]

    def captures(self, signature: str) -> list[int]:
        """The nodes that the signature's function is bound to, in order."""
        return self._bound(self._concrete(signature))

    def _concrete(self, signature: str) -> str:
        """The concrete function's name."""
        if (function := self.function(signature)) is not None:
            return function.chosen(self._ref).name
        function_name, _ = function_of(signature, self._objects)
        if function_name not in self._objects.concrete_functions:
            raise damaged(self._ref.uri, f"signature {signature!r} leads to no function")
        return function_name

    def _bound(self, function: str) -> list[int]:
        objects = self._objects
        if function not in objects.concrete_functions:
            raise damaged(self._ref.uri, f"function {function!r} does not exist")
        bound = list(objects.concrete_functions[function].bound_inputs)
        if any(not 0 <= n < len(objects.nodes) for n in bound):
            raise damaged(self._ref.uri, f"function {function!r} captures an object that does not exist")
        return bound

    def operations(self, signature: str) -> Operations:
        """What the signature does in addition to computing; `outside` and `python` also cover what the loader runs first."""
        library, found, before = Library(self.graph_def), Found(), Found()
        function = self._concrete(signature)
        library.walk([(function, self._labels(function))], found)
        library.walk([(name, self._labels(name)) for name in self._initialisers()], before)
        found.outside |= before.outside
        found.python |= before.python
        return found.operations

    def _labels(self, function: str) -> tuple[Label, ...]:
        """The inputs that the function is bound to: its last arguments."""
        return tuple(self._label(self._objects.nodes[node]) for node in self._bound(function))

    def _label(self, node: Any) -> Label:
        kind = node.WhichOneof("kind")
        if kind == "asset":
            return ASSET
        # The name that Keras gives it (keras/src/random/seed_generator.py).
        if kind != "variable" or [dim.size for dim in node.variable.shape.dim] != [2]:
            return None
        return SEED if re.fullmatch(r"(.*/)?seed_generator_state(_\d+)?", node.variable.name) else None

    def _initialisers(self) -> Iterator[str]:
        """The functions that TensorFlow's loader runs: tables and other resources make and fill themselves by them."""
        nodes = self._objects.nodes
        for node in nodes:
            for child in node.children:
                if child.local_name in _RUN_BY_THE_LOADER and 0 <= child.node_id < len(nodes):
                    yield from held(nodes[child.node_id])

    def captures_asset(self, nodes: Iterable[int]) -> bool:
        return any(self._objects.nodes[node].WhichOneof("kind") == "asset" for node in nodes)

    def weights(self, nodes: Iterable[int], refuse: bool = True) -> dict[int, State]:
        """The steps that fill captured variables and tables. Raises `UnsupportedModel` where anything else has saved state."""
        kinds = {node: self._objects.nodes[node].WhichOneof("kind") for node in nodes}
        # Constants are in the graph itself; a model with nothing else may lack a checkpoint.
        stateful = [node for node, kind in kinds.items() if kind not in ("constant", "asset", "captured_tensor")]
        if not stateful:
            return {}
        places = self._places()
        states: dict[int, State] = {}
        for node in stateful:
            place = places.get(node)
            if kinds[node] == "variable":
                states[node] = (self._variable(node, place),)
            elif place is not None and (place.attributes or place.has_saver):
                if table := self._table(place):
                    states[node] = table
                elif refuse:
                    state = ", ".join(sorted(place.attributes)) or "a saver of its own"
                    raise UnsupportedModel(
                        f"{place.path!r} of {self._ref.uri} keeps state that cannot be streamed",
                        expected="variables and lookup tables only",
                        found=f"a {kinds[node]} with {state} in the checkpoint",
                        cure="Replace it by a variable or a table (tf.lookup) and export again.",
                    )
        entries = [entry for state in states.values() for entry in state]
        if len({entry.name for entry in entries}) != len(entries):
            raise damaged(self._ref.uri, "two variables share one value of the checkpoint")
        return states

    def _variable(self, node: int, place: _Node | None) -> Entry:
        import tensorflow as tf

        key = place.attributes.get("VARIABLE_VALUE") if place is not None else None
        entry = self.bundle.entry(key) if key else None
        saved = self._objects.nodes[node].variable
        if entry is None:
            raise damaged(
                self._ref.uri, f"variable {place.path if place else saved.name!r} has no value in the checkpoint"
            )
        check_fit(self._ref, entry, tf.dtypes.as_dtype(saved.dtype).name, tf.TensorShape(saved.shape))
        return entry

    def _table(self, place: _Node) -> State | None:
        """The keys and values of a mutable or dense table (tensorflow/python/ops/lookup_ops.py saves them so)."""
        if place.has_saver or list(place.attributes) != ["table"]:
            return None
        found = [self.bundle.entry(place.attributes["table"] + part) for part in ("-keys", "-values")]
        if None in found:
            raise damaged(self._ref.uri, f"the table {place.path!r} has no keys or no values in the checkpoint")
        keys, values = (entry for entry in found if entry is not None)
        if not keys.shape or keys.shape[:1] != values.shape[:1]:
            raise damaged(self._ref.uri, f"the table {place.path!r} has {keys.shape} keys for {values.shape} values")
        return keys, values

    def _places(self) -> dict[int, _Node]:
        from google.protobuf.message import DecodeError
        from tensorflow.core.protobuf import trackable_object_graph_pb2

        raw = self.bundle.string(_OBJECT_GRAPH)
        if raw is None:
            raise damaged(self._ref.uri, "the checkpoint holds no object graph")
        try:
            checkpoint = trackable_object_graph_pb2.TrackableObjectGraph.FromString(raw).nodes
        except DecodeError as error:
            raise damaged(self._ref.uri, "the checkpoint's object graph cannot be parsed") from error
        places: dict[int, _Node] = {}
        todo = [(0, 0, "")]
        while todo:
            saved, kept, path = todo.pop()
            if saved in places:
                continue
            if not (0 <= saved < len(self._objects.nodes) and 0 <= kept < len(checkpoint)):
                raise damaged(self._ref.uri, "an object graph names an object that does not exist")
            node = checkpoint[kept]
            attributes = {a.name: a.checkpoint_key for a in node.attributes}
            places[saved] = _Node(path, attributes, node.HasField("registered_saver"))
            children = {c.local_name: c.node_id for c in node.children}
            todo += [
                (c.node_id, children[c.local_name], f"{path}.{c.local_name}" if path else c.local_name)
                for c in reversed(self._objects.nodes[saved].children)
                if c.local_name in children
            ]
        return places


class _Filler:
    """Fills what the loaded function captures, in the order in which it lists its captured inputs: that of `captures`."""

    def __init__(self, function: Any, captures: list[int], weights: Mapping[int, State], ref: ModelRef) -> None:
        captured = function.captured_inputs
        variables = {id(variable.handle): variable for variable in function.variables}
        handles = dict(zip(captures, captured, strict=False))
        self._weights, self._ref = weights, ref
        self._tables = {node: handles[node] for node in weights if len(weights[node]) == 2 and node in handles}
        self._variables = {
            node: variables[id(handles[node])]
            for node in weights
            if len(weights[node]) == 1 and id(handles.get(node)) in variables
        }
        filled = {id(target) for target in (*self._tables.values(), *self._variables.values())}
        if len(captured) != len(captures) or len(filled) != len(weights):
            raise UnsupportedModel(
                f"The loaded function of {ref.uri} captures other objects than its graph says",
                expected=f"{len(captures)} captured inputs",
                found=f"{len(captured)}, {len(variables)} of them variables",
            )

    def __call__(self, node: int, tensors: TensorStream, bundle: Bundle) -> None:
        import tensorflow as tf

        values = [to_tensor(bundle.value(entry, tensors.take), entry.dtype) for entry in self._weights[node]]
        if node in self._variables:
            self._variables[node].assign(values[0], read_value=False)
            return
        try:
            tf.raw_ops.LookupTableImportV2(table_handle=self._tables[node], keys=values[0], values=values[1])
        except tf.errors.InvalidArgumentError as error:
            what = f"table {self._weights[node][0].name!r}"
            raise unfit(self._ref, what, error.message.partition("\n")[0]) from error


def _is_v1(proto: Any) -> bool:
    """TensorFlow's own rule (tensorflow/python/saved_model/load.py)."""
    return len(proto.meta_graphs) != 1 or not proto.meta_graphs[0].HasField("object_graph_def")


def _parameters(weights: Mapping[int, State]) -> int:
    return sum(math.prod(state[0].shape) for state in weights.values() if len(state) == 1)


def _nbytes(weights: Mapping[int, State]) -> int:
    return sum(entry.nbytes for state in weights.values() for entry in state)
