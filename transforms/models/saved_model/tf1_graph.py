"""The graph of a SavedModel of TensorFlow 1, read as nodes and edges: what a signature needs, and what fills that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...errors import UnsupportedModel
from ..operations import ASSET, Found, Label, Library, labels_of
from ..ref import ModelRef
from ..spec import Operations, Signature
from ..streaming.whole_reads import Readable
from .example_parsers import ExampleParsers
from .files import INIT_OP, check_fit, no_such_signature, open_bundle, signature_of, tensor_names
from .graph_scope import attribute
from .tensor_bundle import Bundle, Entry, Region, damaged, within
from .tf1_dead_branches import DeadBranches, Output, output_named

_TRAIN_OP = "__saved_model_train_op"
_ASSETS = "saved_model_assets"
_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")


@dataclass(frozen=True, slots=True)
class Step:
    """An operation that fills variables or tables, and what it is fed: outputs of `RestoreV2`, or of an initial value."""

    operation: str
    restored: tuple[Output, ...] = field(hash=False)
    key: str | None = None
    """The tensor of the checkpoint, where the graph has no operation that restores it."""
    region: Region | None = field(default=None, hash=False)
    """Which part of that tensor; None is all of it."""


class Graph:
    """One meta graph of a SavedModel, read as nodes and edges; TensorFlow runs none of it here."""

    def __init__(self, store: Readable, ref: ModelRef, proto: Any) -> None:
        self._store, self._ref, self._proto = store, ref, proto
        self._meta = _choose(proto, ref)
        self.tags = sorted(self._meta.meta_info_def.tags)
        self.graph_def = self._meta.graph_def
        self.nbytes = proto.ByteSize()
        self._nodes = {node.name: node for node in self._meta.graph_def.node}
        self._definitions = {
            name: definition
            for name, definition in sorted(self._meta.signature_def.items())
            if name not in (INIT_OP, _TRAIN_OP)
        }
        self.signatures: dict[str, Signature] = {}
        self._refused: dict[str, UnsupportedModel] = {}
        parsers = ExampleParsers(self.graph_def)
        for name, definition in self._definitions.items():
            try:
                signature = signature_of(name, definition, ref)
                self.signatures[name] = parsers.with_examples(signature, definition)
            except UnsupportedModel as error:
                self._refused[name] = error

    @cached_property
    def bundle(self) -> Bundle:
        return open_bundle(self._store, self._ref)

    def cut(self, signature: str) -> Any:
        """The SavedModel with no other meta graph and no other signature: the loader would cut a function for each."""
        from tensorflow.core.protobuf import saved_model_pb2

        for name in [*self._definitions]:
            if name != signature:
                del self._meta.signature_def[name]
        schema = self._proto.saved_model_schema_version
        return saved_model_pb2.SavedModel(saved_model_schema_version=schema, meta_graphs=[self._meta])

    def operations(self, signature: str) -> Operations:
        """What the signature does in addition to computing; `outside` and `python` also cover the initialisers before it.

        Raises `SignatureNotFound`.
        """
        definition, found, before = self._definition(signature), Found(), Found()
        fed = set(self._tensors(definition.inputs))
        self._collect(self._tensors(definition.outputs), fed, found)
        self._collect(self._initialisers(), set(), before)
        found.outside |= before.outside
        found.python |= before.python
        return found.operations

    def _collect(self, outputs: Iterable[Output], fed: set[Output], found: Found) -> None:
        library = Library(self._meta.graph_def)
        assets: dict[str, Label] = dict.fromkeys(self._assets(), ASSET)
        label = labels_of(self._nodes.get, assets | {name: None for name, _ in fed})
        calls: list[tuple[str, tuple[Label, ...]]] = []
        dead = DeadBranches(self._nodes, label)
        for name in dict.fromkeys(name for name, _ in self._above(outputs, fed, dead=dead)):
            node = self._nodes[name]
            labels = tuple(label(name) for name in node.input if not name.startswith("^"))
            found.add(node, labels)
            calls += library.calls(node, labels)
        library.walk(calls, found)

    def _assets(self) -> Iterator[str]:
        """The nodes that the loader gives an asset's path (tensorflow/python/saved_model/loader_impl.py, get_asset_tensors)."""
        from tensorflow.core.protobuf import meta_graph_pb2

        kept = list(self._meta.asset_file_def)
        collections = self._meta.collection_def
        if not kept and _ASSETS in collections:
            for packed in collections[_ASSETS].any_list.value:
                kept.append(asset := meta_graph_pb2.AssetFileDef())
                packed.Unpack(asset)
        yield from (output_named(asset.tensor_info.name)[0] for asset in kept)

    def _definition(self, signature: str) -> Any:
        if signature in self._refused:
            raise self._refused[signature]
        if signature not in self.signatures:
            raise no_such_signature(self._ref, signature, list(self.signatures))
        return self._definitions[signature]

    def steps(self, signature: str) -> list[Step]:
        """The steps that fill everything that the signature and the initialisers reach.

        Raises `SignatureNotFound`, and `UnsupportedModel` where nothing fills something that is reached.
        """
        definition = self._definition(signature)
        fed = set(self._tensors(definition.inputs))
        initialised = {name for name, _ in self._above(self._initialisers())}
        used = {name for name, _ in self._above(self._tensors(definition.outputs), fed)}
        reached = {self._state(name) for name in used | initialised} | self._states_in_functions()
        steps, filled = [], set()
        for step, above in self._restoring():
            states = {self._state(name) for name in above if self._nodes[name].op not in ("Const", "NoOp")}
            if states & reached:
                steps.append(step)
                filled |= states
        filled |= {self._state(name) for name in initialised}
        for name in sorted(used):
            if self._nodes[name].op in _VARIABLES and self._state(name) not in filled:
                raise UnsupportedModel(
                    f"Nothing gives a value to the variable {name!r} of {self._ref.uri}",
                    expected="a saver or an initialiser that does",
                    found=f"signature {signature!r}, which reads it",
                    cure="Export the model again with a session in which it is initialised.",
                )
        return steps

    def copies(self, steps: Iterable[Step]) -> bool:
        """Whether any of the steps copies its input."""
        return any(self._nodes[step.operation].op == "Assign" for step in steps)

    def values(self, steps: Iterable[Step]) -> dict[Output, Entry]:
        """Where each restored tensor is. Raises `CorruptModel` where it is missing or of another dtype."""
        import tensorflow as tf

        found: dict[Output, Entry] = {}
        consts: dict[str, tuple[list[str], list[str]]] = {}
        for step in steps:
            if step.key is not None:
                found[step.restored[0]] = self._value_by_name(step)
                continue
            for name, i in step.restored:
                node = self._nodes[name]
                if name not in consts:
                    consts[name] = self._strings(node.input[1]), self._strings(node.input[2])
                (names, slices), dtypes = consts[name], attribute(node, "dtypes").list.type
                if not 0 <= i < len(names) == len(slices) == len(dtypes):
                    raise damaged(self._ref.uri, f"{name!r} restores {len(names)} tensors, but output {i} is used")
                entry = self.bundle.entry(names[i])
                if entry is None:
                    raise damaged(self._ref.uri, f"{names[i]!r} has no value in the checkpoint")
                if slices[i]:
                    entry = entry.part(self._region(names[i], slices[i], entry.shape))
                self._check_fit(entry, tf.dtypes.as_dtype(dtypes[i]).base_dtype.name, step, (name, i))
                found[name, i] = entry
        return found

    def _value_by_name(self, step: Step) -> Entry:
        import tensorflow as tf

        entry = self.bundle.entry(step.key or "")
        if entry is None:
            raise damaged(self._ref.uri, f"{step.key!r} has no value in the checkpoint")
        if step.region is not None:
            if not within(step.region, entry.shape):
                raise damaged(
                    self._ref.uri, f"it restores a slice of {step.key!r} that lies outside of {list(entry.shape)}"
                )
            entry = entry.part(step.region)
        node = self._nodes[step.operation]
        dtype = attribute(node, "T" if node.op == "Assign" else "dtype").type
        self._check_fit(entry, tf.dtypes.as_dtype(dtype).base_dtype.name, step, step.restored[0])
        return entry

    def _check_fit(self, entry: Entry, dtype: str, step: Step, restored: Output) -> None:
        import tensorflow as tf

        node, shape = self._nodes[step.operation], tf.TensorShape(None)
        if node.op in ("Assign", "AssignVariableOp"):
            above = output_named(node.input[1])
            while above != restored and self._nodes[above[0]].op == "Identity":
                above = output_named(self._nodes[above[0]].input[0])
            variable = self._nodes[output_named(node.input[0])[0]]
            if above == restored and "shape" in variable.attr:
                shape = tf.TensorShape(attribute(variable, "shape").shape)
        check_fit(self._ref, entry, dtype, shape)

    def _restoring(self) -> Iterator[tuple[Step, set[str]]]:
        """Every operation that the saver waits for, with the nodes above it."""
        if not self._meta.HasField("saver_def") or not self._meta.saver_def.restore_op_name:
            yield from self._restoring_by_name()
            return
        todo, seen = [output_named(self._meta.saver_def.restore_op_name)[0]], set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self._node(name)
            todo += [output_named(i)[0] for i in node.input if i.startswith("^")]
            if all(i.startswith("^") for i in node.input):
                continue
            above = list(self._above([(name, 0)], stop="RestoreV2"))
            restored = [output for output in above if self._nodes[output[0]].op == "RestoreV2"]
            if any(self._nodes[n].op in ("Restore", "RestoreSlice") for n, _ in above):
                raise UnsupportedModel(
                    f"{self._ref.uri} restores its weights from a checkpoint of version 1",
                    expected="the operation RestoreV2",
                    cure="Load it in TensorFlow and export it again.",
                )
            if restored:
                yield Step(name, tuple(sorted(set(restored)))), {n for n, _ in above}

    def _restoring_by_name(self) -> Iterator[tuple[Step, set[str]]]:
        """Without a saver, TensorFlow makes one of the collection of variables, which restores each by its name
        (tensorflow/python/saved_model/load_v1_in_v2.py). Here the value that its initialiser assigns is fed instead.
        """
        from tensorflow.core.framework import variable_pb2

        collections = self._meta.collection_def
        if self._ref.object("variables/variables.index") is None:
            return
        fed: dict[Output, str] = {}
        for key in ("variables", "saveable_objects"):
            for raw in collections[key].bytes_list.value if key in collections else ():
                variable = variable_pb2.VariableDef.FromString(raw)
                assign = self._node(output_named(variable.initializer_name)[0])
                if assign.op not in ("Assign", "AssignVariableOp"):
                    raise UnsupportedModel(
                        f"{self._ref.uri} has no saver, and no assignment to its variable {variable.variable_name!r}",
                        expected="Assign or AssignVariableOp",
                        found=assign.op,
                        cure="Export it with a saver.",
                    )
                value, region, name = output_named(assign.input[1]), None, variable.variable_name.partition(":")[0]
                if variable.HasField("save_slice_info_def"):
                    part = variable.save_slice_info_def
                    name, region = part.full_name, tuple(zip(part.var_offset, part.var_shape, strict=True))
                if fed.setdefault(value, name) != name:
                    raise UnsupportedModel(
                        f"{self._ref.uri} has no saver, and its variables {fed[value]!r} and {name!r} share an initial value",
                        cure="Export it with a saver.",
                    )
                yield Step(assign.name, (value,), name, region), {output_named(assign.input[0])[0]}

    def _initialisers(self) -> list[Output]:
        """What TensorFlow runs after restoring (tensorflow/python/saved_model/loader_impl.py, get_init_op)."""
        if INIT_OP in self._meta.signature_def:
            return [output_named(i.name) for i in self._meta.signature_def[INIT_OP].outputs.values()]
        collections = self._meta.collection_def
        for key in ("saved_model_main_op", "legacy_init_op"):
            if key in collections and collections[key].node_list.value:
                return [output_named(name) for name in collections[key].node_list.value]
        return [*self._default_initialisers(collections)]

    def _default_initialisers(self, collections: Any) -> Iterator[Output]:
        from tensorflow.core.framework import variable_pb2

        if "table_initializer" in collections:
            yield from (output_named(name) for name in collections["table_initializer"].node_list.value)
        if "local_variables" in collections:
            for raw in collections["local_variables"].bytes_list.value:
                yield output_named(variable_pb2.VariableDef.FromString(raw).initializer_name)

    def _above(
        self, outputs: Iterable[Output], fed: Iterable[Output] = (), stop: str = "", dead: DeadBranches | None = None
    ) -> Iterator[Output]:
        """The outputs themselves and all their ancestors, but nothing above what is fed, `dead`, or an operation `stop`."""
        todo, seen = list(outputs), set(fed)
        while todo:
            output = todo.pop()
            if output in seen or (dead is not None and dead(output)):
                continue
            seen.add(output)
            yield output
            node = self._node(output[0])
            if node.op != stop:
                todo += [output_named(name) for name in node.input]

    def _states_in_functions(self) -> set[str]:
        bodies = self._meta.graph_def.library.function
        return {name for body in bodies for node in body.node_def if (name := _shared_name(node))}

    def _state(self, name: str) -> str:
        """Two operations of one shared name are one variable or table."""
        return _shared_name(self._nodes[name]) or name

    def _node(self, name: str) -> Any:
        if name not in self._nodes:
            raise damaged(self._ref.uri, f"its graph names the operation {name!r}, which it does not hold")
        return self._nodes[name]

    def _tensors(self, infos: Any) -> list[Output]:
        return [output_named(name) for info in infos.values() for name in tensor_names(info)]

    def _strings(self, name: str) -> list[str]:
        import tensorflow as tf

        node = self._node(output_named(name)[0])
        if node.op != "Const":
            raise UnsupportedModel(f"{self._ref.uri} computes what it restores", found=f"{name!r}, a {node.op}")
        return [value.decode() for value in tf.make_ndarray(attribute(node, "value").tensor).ravel()]

    def _region(self, name: str, spec: str, shape: tuple[int, ...]) -> Region:
        """ "4 100 0,3:70,30": the whole shape, then start and length of each dimension, or a dash for all of it."""
        *full, spans = spec.split()
        try:
            pairs = [
                (0, size) if span == "-" else tuple(map(int, span.split(",")))
                for span, size in zip(spans.split(":"), shape, strict=True)
            ]
            region = tuple((start, length) for start, length in pairs)
            fits = tuple(map(int, full)) == shape and within(region, shape)
        except ValueError:
            fits = False
        if not fits:
            raise damaged(self._ref.uri, f"it restores the slice {spec!r} of {name!r}, whose shape is {list(shape)}")
        return region


def _shared_name(node: Any) -> str:
    return node.attr["shared_name"].s.decode(errors="replace") if "shared_name" in node.attr else ""


def _choose(proto: Any, ref: ModelRef) -> Any:
    """The meta graph tagged "serve" and nothing else, else the only one so tagged, else the only one."""
    metas = list(proto.meta_graphs)
    serving = [meta for meta in metas if "serve" in meta.meta_info_def.tags]
    for found in ([meta for meta in serving if len(meta.meta_info_def.tags) == 1], serving, metas):
        if len(found) == 1:
            return found[0]
    raise UnsupportedModel(
        f"It is not clear which graph of {ref.uri} serves",
        expected='one graph tagged "serve"',
        found=f"{len(metas)} graphs, tagged {[sorted(meta.meta_info_def.tags) for meta in metas]}",
        cure="Export the one for serving alone, with the tag tf.saved_model.SERVING.",
    )
