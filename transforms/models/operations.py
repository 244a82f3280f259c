"""What a graph does in addition to computing: found in its nodes and functions, before TensorFlow runs any of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from ..errors import UnsupportedModel
from .operation_names import HARMLESS, PACKAGES, PYTHON, RANDOM, READS_FILES, WRITES
from .ref import ModelRef
from .spec import Operations

ASSET = "asset"
"""The label of a text that names one of the model's own assets."""
SEED = "seed"
"""The label of a variable that keeps the state of a random generator of Keras."""
Label = str | bool | None
"""What is known of a tensor: `ASSET`, `SEED`, or the value of a constant condition."""

_SAME = frozenset({"Identity", "StopGradient", "PreventGradient", "PlaceholderWithDefault", "Snapshot"})
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_IFS = frozenset({"If", "StatelessIf", "_If"})
_PROTOS = frozenset({"DecodeProtoV2", "EncodeProto"})
_HIDDEN = re.compile("_|Rpc|DTensor|Relayout|CopyToMesh|Xla|TPU|Tpu|Sleep|Dump|Risc")
_MOST_SHOWN = 6


class Found:
    """Collects what operations do, each once and in the order of their names."""

    def __init__(self) -> None:
        self.random: set[str] = set()
        self.writes: set[str] = set()
        self.outside: set[str] = set()
        self.python: set[str] = set()
        self.used: set[str] = set()

    def add(self, node: Any, labels: Sequence[Label]) -> None:
        """`labels` are those of the node's inputs."""
        op = node.op
        self.used.add(op)
        if op in PYTHON:
            self.python.add(op)
        elif op in RANDOM:
            if not _is_deterministic(node):
                self.random.add(op)
        elif op in WRITES:
            # The state of a generator that only draws: the prediction is random, and no row leaves a trace in another.
            if labels and labels[0] == SEED:
                self.random.add("seed_generator_state")
            else:
                self.writes.add(op)
        elif op in READS_FILES:
            at = READS_FILES[op]
            if len(labels) <= at or labels[at] != ASSET:
                self.outside.add(op)
        elif op in _PROTOS:
            source = node.attr["descriptor_source"].s if "descriptor_source" in node.attr else b""
            if source not in (b"", b"local://") and not source.startswith(b"bytes://"):
                self.outside.add(op)
        elif op not in HARMLESS and _is_tensorflows_own(op):
            self.outside.add(op)

    @property
    def operations(self) -> Operations:
        rewritten = ("AccumulateNV2", "Xla")  # before TensorFlow looks for a kernel
        registered = {op for op in self.used if not op.startswith(rewritten) and _is_registered(op)}
        unrunnable = {op for op in registered if not _has_kernel(op)}
        found = (self.random, self.writes, self.outside, self.python, unrunnable)
        return Operations(*(tuple(sorted(some)) for some in found))


class Library:
    """The functions that a graph's nodes call, by their names."""

    def __init__(self, graph_def: Any) -> None:
        self.functions = {function.signature.name: function for function in graph_def.library.function}

    def walk(self, calls: Iterable[tuple[str, tuple[Label, ...]]], found: Found) -> None:
        """Adds what the functions called, and those that they call, do. A call is a name and its arguments' labels."""
        todo = list(calls)
        seen: set[tuple[str, tuple[Label, ...]]] = set()
        while todo:
            call = todo.pop()
            if call in seen or call[0] not in self.functions:
                continue
            seen.add(call)
            function = self.functions[call[0]]
            names = [argument.name for argument in function.signature.input_arg]
            # If a caller binds only some of the arguments, they are the last ones.
            given = dict(zip(reversed(names), reversed(call[1]), strict=False))
            nodes = {node.name: node for node in function.node_def}
            label = labels_of(nodes.get, given)
            for node in function.node_def:
                labels = tuple(label(name) for name in node.input if not name.startswith("^"))
                found.add(node, labels)
                todo += self.calls(node, labels)

    def calls(self, node: Any, labels: tuple[Label, ...]) -> Iterator[tuple[str, tuple[Label, ...]]]:
        """The functions that a node may call."""
        if node.op in self.functions:
            yield node.op, labels
        branch = None
        if node.op in _IFS and labels and isinstance(labels[0], bool):
            branch = "then_branch" if labels[0] else "else_branch"
        if node.op in _CALLS:
            given = labels
        elif node.op in _IFS or node.op in ("Case", "StatelessCase"):
            given = labels[1:]
        else:
            # Other operations call them with what they make, or over and over again: only a handle stays itself.
            given = tuple(label if label == SEED else None for label in labels)
        for key, value in node.attr.items():
            if branch in (None, key):
                yield from ((name, given) for name in functions_in(value))


def functions_in(value: Any) -> Iterator[str]:
    """The functions that a node's attribute names."""
    kind = value.WhichOneof("value")
    if kind == "func":
        yield value.func.name
    elif kind == "list":
        yield from (function.name for function in value.list.func)


def labels_of(node_of: Callable[[str], Any], given: Mapping[str, Label]) -> Callable[[str], Label]:
    """The label of a tensor by its name ("node:0", "node:out:0" or an argument's); `given` are those that are known."""

    def label(name: str) -> Label:
        # Chains of identities may go round in a loop of a damaged graph.
        for _ in range(1000):
            name = name.partition(":")[0]
            if name in given:
                return given[name]
            node = node_of(name)
            if node is None:
                return None
            if node.op == "Const":
                return _constant_bool(node)
            if node.op not in _SAME or not node.input or node.input[0].startswith("^"):
                return None
            name = node.input[0]
        return None

    return label


def _constant_bool(node: Any) -> bool | None:
    from tensorflow.core.framework import types_pb2

    if "value" not in node.attr or node.attr["value"].tensor.dtype != types_pb2.DT_BOOL:
        return None
    tensor = node.attr["value"].tensor
    if len(tensor.bool_val) == 1:
        return bool(tensor.bool_val[0])
    return bool(tensor.tensor_content[0]) if len(tensor.tensor_content) == 1 else None


def _is_deterministic(node: Any) -> bool:
    """Pooling in regions that are drawn once, from a seed."""
    attr = node.attr
    drawn_once = "deterministic" in attr and attr["deterministic"].b
    return bool(drawn_once and any(key in attr and attr[key].i for key in ("seed", "seed2")))


@cache
def _is_tensorflows_own(op: str) -> bool:
    """As opposed to an operation of a library, which somebody has imported.

    TensorFlow registers some without a place in `tf.raw_ops`, among which some send and receive.
    """
    import tensorflow as tf

    return bool(_HIDDEN.match(op)) or hasattr(tf.raw_ops, op)


def _is_registered(op: str) -> bool:
    # Private, and the only way to ask for one name: tests/transforms/models/test_operations.py breaks where
    # it is gone.
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(op) is not None


@cache
def _has_kernel(op: str) -> bool:
    """Whether any device that headrace runs on has code for it. Compiled operations have theirs in XLA."""
    from tensorflow.python.framework import kernels

    devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel}
    return any(device in ("CPU", "GPU", "DEFAULT") or device.startswith("XLA") for device in devices)


def check_known(ref: ModelRef, graph_def: Any) -> None:
    """Raises `UnsupportedModel` for operations of the graph or its functions that TensorFlow does not know."""
    functions = {function.signature.name for function in graph_def.library.function}
    used = {node.op for node in graph_def.node}
    used.update(node.op for function in graph_def.library.function for node in function.node_def)
    used -= functions
    unknown = sorted(op for op in used if not _is_registered(op))
    if unknown:
        module = next((module for op in unknown for like, module in PACKAGES.items() if re.match(like, op)), None)
        distribution = (module or "").partition(".")[0].replace("_", "-")
        raise UnsupportedModel(
            f"{ref.uri} uses operations that TensorFlow does not know: {_some(unknown)}",
            expected="operations of TensorFlow, or of a library that is imported before the model is loaded",
            found=_some(unknown) + (f", of {module}" if module else ""),
            cure=(
                f"Install {distribution} where the job starts and on the workers, and add --import_module={module} "
                f"(import_modules=[{module!r}])"
                if module
                else "Add --import_module=MODULE (import_modules=[…]) with the module whose import registers them"
            ),
        )


def check_runnable(ref: ModelRef, found: Operations) -> None:
    """Raises `UnsupportedModel` for a graph that cannot predict any row."""
    if found.python:
        raise UnsupportedModel(
            f"{ref.uri} calls a Python function ({_some(found.python)}), which ended with the process that exported it",
            expected="operations of TensorFlow alone",
            found="tf.py_function or tf.numpy_function in the graph",
            cure="Write that step with operations of TensorFlow and export again, or move it to --preprocess=MODULE:FUNCTION",
        )
    if found.unrunnable:
        raise UnsupportedModel(
            f"{ref.uri} uses operations that no CPU or GPU can run: {_some(found.unrunnable)}",
            expected="operations with a kernel in this build of TensorFlow",
            found=_some(found.unrunnable),
            cure="Export the model for serving on a CPU or a GPU",
        )


def check_outside(ref: ModelRef, found: Operations) -> None:
    """Raises `UnsupportedModel` for a graph that can reach beyond itself, unless the reference allows that."""
    if found.outside and not ref.unsafe:
        raise UnsupportedModel(
            f"{ref.uri} holds operations that can reach files, the network or other processes: {_some(found.outside)}",
            expected="a graph that only computes, and reads no file but the model's own assets",
            found=_some(found.outside),
            cure="Export the model without them; if you trust its author, --unsafe_model (unsafe=True) runs them",
        )


def check_stateless(ref: ModelRef, found: Operations) -> None:
    """Raises `UnsupportedModel` where predictions depend on the rows before, unless the reference allows that."""
    if found.writes and not ref.allow_stateful:
        raise UnsupportedModel(
            f"{ref.uri} changes its own state when it predicts ({_some(found.writes)}), and a row's prediction depends "
            "on the rows before it",
            expected="a signature that leaves variables, tables and queues as they are",
            found=_some(found.writes),
            cure="Export it without them; --allow_stateful_model (allow_stateful=True) runs it nevertheless: predictions then "
            "depend on how rows are split among workers, and a repeated run gives others",
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more
