"""The nodes of a graph or of one of its functions, by name, and the constants among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any


class Computed(Exception):
    """A value is not a constant."""


class Scope:
    """The nodes of the graph or of one function, by their names and by what they take."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        self.nodes: dict[str, Any] = {}
        self.takers: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for node in nodes:
            self.nodes[node.name] = node
            for at, name in enumerate(data_inputs(node)):
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
            name = data_inputs(node)[0]
        return None

    def texts(self, name: str) -> list[str]:
        """Raises `Computed`."""
        tensor = self.constant(name)
        if tensor is None:
            raise Computed
        # Not by way of `tf.make_ndarray`, which makes as many as a damaged shape claims.
        return [value.decode(errors="backslashreplace") for value in tensor.string_val]

    def is_empty(self, name: str) -> bool:
        """Whether the default is a constant without elements, which makes a feature required."""
        tensor = self.constant(name)
        return tensor is not None and any(dim.size == 0 for dim in tensor.tensor_shape.dim)

    def flags(self, name: str, count: int) -> list[bool]:
        """So many values of a constant of bools. Raises `Computed`."""
        tensor = self.constant(name)
        if tensor is None:
            raise Computed
        values = [bool(byte) for byte in tensor.tensor_content] or list(tensor.bool_val) or [False]
        # The last value stands for all that follow (tensorflow/core/framework/tensor.proto).
        return [values[min(at, len(values) - 1)] for at in range(count)]


def attribute(node: Any, name: str) -> Any:
    """Reads a key of a protobuf's map. Brackets would insert a missing one: an attribute without a value, in the graph that is
    loaded. Raises `KeyError`.
    """
    if name not in node.attr:
        raise KeyError(f"{node.op} {node.name!r} has no attribute {name!r}")
    return node.attr[name]


def data_inputs(node: Any) -> list[str]:
    return [node_of(name) for name in node.input if not name.startswith("^")]


def node_of(name: str) -> str:
    return name.partition(":")[0]
