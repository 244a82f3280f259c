"""SavedModels of TensorFlow 2: the graph through TensorFlow's own loader, the weights through the engine.

The loader reads from a folder in TensorFlow's in-memory file system, which holds the graph and the assets but no
variable. Which node of the checkpoint fills which variable follows TensorFlow's own rule: the saved object graph and the
checkpoint's object graph are walked together, from the root, by the names of their edges
(tensorflow/core/protobuf/saved_object_graph.proto and trackable_object_graph.proto). A signature's function names the
nodes that it captures, in the order in which the loaded function lists its captured inputs.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from transforms.errors import CorruptModel, SignatureNotFound, UnsupportedModel
from transforms.models.dlpack import aligned_empty, to_tensor
from transforms.models.model import Model
from transforms.models.ref import ModelRef
from transforms.models.spec import ModelSpec, Signature, TensorSpec
from transforms.models.stream import StreamOptions, TensorSlot, TensorStream, numpy_dtype, open_stream
from transforms.models.tensor_bundle import Bundle, Entry
from transforms.storage import ObjectRef, Store

_INIT_OP = "__saved_model_init_op"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_COPY_AGAIN = "Copy the model again from where it was exported."
_folders = itertools.count()


def describe(store: Store, ref: ModelRef, signature: str | None = None) -> ModelSpec:
    """Reads the graph and the bundle's index. Counts `signature`'s weights, and raises what loading it would raise.

    With none named, counts those of `serving_default`, else of all signatures, and refuses no state.
    """
    graph = _Graph(store, ref)
    if signature is not None:
        graph.signature(signature)
        weights = graph.weights(graph.captures(signature))
    else:
        counted = ["serving_default"] if "serving_default" in graph.signatures else list(graph.signatures)
        nodes = dict.fromkeys(node for name in counted for node in graph.captures(name))
        weights = graph.weights(nodes, refuse=False)
    return ModelSpec("saved_model", graph.signatures, _parameters(weights.values()), _nbytes(weights.values()))


def load(store: Store, ref: ModelRef, signature: str, stream: StreamOptions) -> Model:
    """Streams what `signature` captures while TensorFlow loads the graph.

    Raises `SignatureNotFound`, `UnsupportedModel` where the signature needs state that cannot be restored, `CorruptModel`.
    """
    graph = _Graph(store, ref)
    spec = graph.signature(signature)
    captures = graph.captures(signature)
    weights = graph.weights(captures)
    slots = [piece.slot for entry in weights.values() for piece in entry.pieces]
    with open_stream(store, slots, stream) as tensors:
        folder = _RamFolder(store, ref, graph.take_proto())
        try:
            loaded = folder.load(graph.tags)
            function = loaded.signatures[signature]
            variables = _variables(function, captures, weights, ref)
            for node in sorted(weights, key=lambda node: _place(weights[node])):
                _fill(variables[node], weights[node], tensors, graph.bundle)
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
        lambda inputs: function(**inputs),
        parameters=_parameters(weights.values()),
        nbytes=_nbytes(weights.values()),
        keep=(loaded, folder),
    )


@dataclass(frozen=True, slots=True)
class _Node:
    """Where a node of the saved object graph stands in the checkpoint's; `path` is how it is called from the root."""

    path: str
    attributes: Mapping[str, str]
    has_saver: bool


class _Graph:
    """saved_model.pb, and the two object graphs side by side."""

    def __init__(self, store: Store, ref: ModelRef) -> None:
        self._store, self._ref = store, ref
        self._proto = _read_proto(store, ref)
        metas = self._proto.meta_graphs
        if len(metas) != 1 or not metas[0].HasField("object_graph_def"):
            raise UnsupportedModel(
                f"{ref.uri} is a SavedModel of TensorFlow 1, which cannot be streamed yet",
                expected="one graph with an object graph, as tf.saved_model.save of TensorFlow 2 writes it",
                found=f"{len(metas)} graph(s), tagged {[sorted(m.meta_info_def.tags) for m in metas]}",
                cure="Load it in TensorFlow 2 and export it again.",
            )
        self.tags = list(metas[0].meta_info_def.tags)
        self._objects = metas[0].object_graph_def
        self.signatures = {
            name: Signature(name, _specs(definition.inputs, ref), _specs(definition.outputs, ref))
            for name, definition in sorted(metas[0].signature_def.items())
            if name != _INIT_OP
        }
        self._bundle: Bundle | None = None

    def take_proto(self) -> Any:
        """The whole message, for the loader: it holds every constant of the graph, so nothing here keeps it."""
        proto, self._proto = self._proto, None
        return proto

    @property
    def bundle(self) -> Bundle:
        if self._bundle is None:
            index = self._ref.object("variables/variables.index")
            if index is None:
                raise CorruptModel(
                    f"{self._ref.uri} has weights, but no variables/variables.index", cure="Copy the whole folder."
                )
            self._bundle = Bundle(self._store, index, self._shard)
        return self._bundle

    def signature(self, name: str) -> Signature:
        if name not in self.signatures:
            raise SignatureNotFound(
                f"{self._ref.uri} has no signature {name!r}",
                expected=f"one of {', '.join(map(repr, self.signatures))}" if self.signatures else "a signature",
                found="" if self.signatures else "no signature at all",
                cure="Name one with --signature." if self.signatures else "Export the model with signatures=….",
            )
        return self.signatures[name]

    def captures(self, signature: str) -> list[int]:
        """The nodes that the signature's function is bound to, in order."""
        node = self._child(self._child(0, "signatures"), signature)
        objects = self._objects
        function = objects.nodes[node].bare_concrete_function.concrete_function_name if node is not None else ""
        if function not in objects.concrete_functions:
            raise self._corrupt(f"signature {signature!r} leads to no function")
        bound = list(objects.concrete_functions[function].bound_inputs)
        if any(not 0 <= n < len(objects.nodes) for n in bound):
            raise self._corrupt(f"signature {signature!r} captures an object that does not exist")
        return bound

    def captures_asset(self, nodes: Iterable[int]) -> bool:
        return any(self._objects.nodes[node].WhichOneof("kind") == "asset" for node in nodes)

    def weights(self, nodes: Iterable[int], refuse: bool = True) -> dict[int, Entry]:
        """What fills each captured variable. Raises `UnsupportedModel` where anything else captured has saved state."""
        kinds = {node: self._objects.nodes[node].WhichOneof("kind") for node in nodes}
        # Constants lie in the graph itself; a model of nothing else may lack a checkpoint.
        stateful = [node for node, kind in kinds.items() if kind not in ("constant", "asset", "captured_tensor")]
        if not stateful:
            return {}
        places = self._places()
        entries = {}
        for node in stateful:
            place = places.get(node)
            if kinds[node] != "variable":
                if refuse and place is not None and (place.attributes or place.has_saver):
                    state = ", ".join(sorted(place.attributes)) or "a saver of its own"
                    raise UnsupportedModel(
                        f"{place.path!r} of {self._ref.uri} keeps state that cannot be streamed",
                        expected="variables and static tables only",
                        found=f"a {kinds[node]} with {state} in the checkpoint",
                        cure="Replace it by a static table (tf.lookup.StaticHashTable) and export again.",
                    )
                continue
            key = place.attributes.get("VARIABLE_VALUE") if place is not None else None
            entry = self.bundle.entry(key) if key else None
            saved = self._objects.nodes[node].variable
            if entry is None:
                raise self._corrupt(f"variable {place.path if place else saved.name!r} has no value in the checkpoint")
            self._check_fit(entry, saved)
            entries[node] = entry
        if len({entry.name for entry in entries.values()}) != len(entries):
            raise self._corrupt("two variables share one value of the checkpoint")
        return entries

    def _check_fit(self, entry: Entry, saved: Any) -> None:
        import tensorflow as tf

        shape, dtype = tf.TensorShape(saved.shape), tf.dtypes.as_dtype(saved.dtype)
        if dtype.name != entry.dtype or not shape.is_compatible_with(entry.shape):
            raise CorruptModel(
                f"The checkpoint of {self._ref.uri} does not fit its graph: variable {entry.name!r}",
                expected=f"{dtype.name} {shape}",
                found=f"{entry.dtype} {list(entry.shape)}",
                cure="Copy saved_model.pb and variables/ from the same export.",
            )

    def _places(self) -> dict[int, _Node]:
        from google.protobuf.message import DecodeError
        from tensorflow.core.protobuf import trackable_object_graph_pb2

        raw = self.bundle.string(_OBJECT_GRAPH)
        if raw is None:
            raise self._corrupt("the checkpoint holds no object graph")
        try:
            checkpoint = trackable_object_graph_pb2.TrackableObjectGraph.FromString(raw).nodes
        except DecodeError as error:
            raise self._corrupt("the checkpoint's object graph cannot be parsed") from error
        places: dict[int, _Node] = {}
        todo = [(0, 0, "")]
        while todo:
            saved, kept, path = todo.pop()
            if saved in places:
                continue
            if not (0 <= saved < len(self._objects.nodes) and 0 <= kept < len(checkpoint)):
                raise self._corrupt("an object graph names an object that does not exist")
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

    def _child(self, node: int | None, name: str) -> int | None:
        nodes = self._objects.nodes
        if node is None or not 0 <= node < len(nodes):
            return None
        found = next((c.node_id for c in nodes[node].children if c.local_name == name), None)
        return found if found is not None and 0 <= found < len(nodes) else None

    def _shard(self, i: int, n: int) -> ObjectRef | None:
        return self._ref.object(f"variables/variables.data-{i:05d}-of-{n:05d}")

    def _corrupt(self, found: str) -> CorruptModel:
        return CorruptModel(f"{self._ref.uri} is damaged", found=found, cure=_COPY_AGAIN)


class _RamFolder:
    """The graph and the assets in TensorFlow's in-memory file system, until removed or collected."""

    def __init__(self, store: Store, ref: ModelRef, proto: Any) -> None:
        import tensorflow as tf

        # Writing to a name that exists appends there, so each load has a folder of its own.
        self.uri, self._ref = f"ram://headrace-{os.getpid()}-{next(_folders)}", ref
        self.remove = weakref.finalize(self, _remove, self.uri)
        try:
            tf.io.gfile.makedirs(self.uri)
            self._write("saved_model.pb", proto.SerializeToString())
            for asset in ref.objects:
                relative = asset.uri.removeprefix(f"{ref.uri}/")
                if relative.startswith("assets/"):
                    self._write(relative, store.read(asset))
        except BaseException:
            self.remove()
            raise

    def _write(self, relative: str, data: bytes) -> None:
        import tensorflow as tf

        path = f"{self.uri}/{relative}"
        tf.io.gfile.makedirs(path.rpartition("/")[0])
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(data)

    def load(self, tags: list[str]) -> Any:
        import tensorflow as tf

        options = tf.saved_model.LoadOptions(experimental_skip_checkpoint=True)
        try:
            return tf.saved_model.load(self.uri, tags, options)
        except Exception as error:
            raise UnsupportedModel(
                f"TensorFlow {tf.__version__} cannot load the graph of {self._ref.uri}",
                found=str(error).partition("\n")[0],
                cure="Import the package that registers its operations, or export it again with this TensorFlow.",
            ) from error


def _remove(uri: str) -> None:
    import tensorflow as tf

    if tf.io.gfile.exists(uri):
        tf.io.gfile.rmtree(uri)


def _variables(function: Any, captures: list[int], weights: Mapping[int, Entry], ref: ModelRef) -> dict[int, Any]:
    """The loaded variable of each node: the function lists its captured inputs in the order of `captures`."""
    handles = {id(variable.handle): variable for variable in function.variables}
    captured = function.captured_inputs
    found = {
        node: handles[id(handle)]
        for node, handle in zip(captures, captured, strict=False)
        if node in weights and id(handle) in handles
    }
    if len(captured) != len(captures) or len({id(variable) for variable in found.values()}) != len(weights):
        raise UnsupportedModel(
            f"The loaded function of {ref.uri} captures other objects than its graph says",
            expected=f"{len(captures)} captured inputs",
            found=f"{len(captured)}, {len(handles)} of them variables",
        )
    return found


def _fill(variable: Any, entry: Entry, tensors: TensorStream, bundle: Bundle) -> None:
    if entry.dtype == "string":
        raw = tensors.take(entry.pieces[0].slot.name).tobytes()
        values = np.array(bundle.strings(entry, raw), object).reshape(entry.shape)
        variable.assign(to_tensor(values), read_value=False)
        return
    if len(entry.pieces) == 1:
        array = tensors.take(entry.pieces[0].slot.name)
    else:
        slot: TensorSlot = entry.pieces[0].slot
        array = aligned_empty(entry.nbytes).view(numpy_dtype(slot.dtype)).reshape(entry.shape)
        for piece in entry.pieces:
            array[tuple(slice(start, start + length) for start, length in piece.region)] = tensors.take(piece.slot.name)
    variable.assign(to_tensor(array, entry.dtype), read_value=False)


def _read_proto(store: Store, ref: ModelRef) -> Any:
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    binary = ref.object("saved_model.pb")
    source = binary or ref.object("saved_model.pbtxt")
    if source is None:
        raise CorruptModel(f"{ref.uri} holds neither saved_model.pb nor saved_model.pbtxt", cure=_COPY_AGAIN)
    data = store.read(source)
    try:
        if binary is not None:
            return saved_model_pb2.SavedModel.FromString(data)
        return text_format.Parse(data.decode(), saved_model_pb2.SavedModel())
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise CorruptModel(
            f"{source.uri} cannot be parsed", expected="a SavedModel", found=str(error), cure=_COPY_AGAIN
        ) from error


def _specs(infos: Any, ref: ModelRef) -> dict[str, TensorSpec]:
    import tensorflow as tf

    specs = {}
    for name, info in sorted(infos.items()):
        if info.WhichOneof("encoding") not in ("name", None):
            raise UnsupportedModel(f"{name!r} of {ref.uri} is a {info.WhichOneof('encoding')}, not a dense tensor")
        shape = info.tensor_shape
        sizes = None if shape.unknown_rank else tuple(d.size if d.size >= 0 else None for d in shape.dim)
        specs[name] = TensorSpec(name, tf.dtypes.as_dtype(info.dtype).name, sizes)
    return specs


def _place(entry: Entry) -> tuple[str, int]:
    return entry.pieces[0].slot.source.uri, entry.pieces[0].slot.offset


def _parameters(entries: Iterable[Entry]) -> int:
    return sum(math.prod(entry.shape) for entry in entries)


def _nbytes(entries: Iterable[Entry]) -> int:
    return sum(entry.nbytes for entry in entries)
