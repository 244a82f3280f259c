"""The parts of a TensorFlow 1 graph that are never computed, such as the dropout of a model that only predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..operations import Label

# The walk remembers its way; a graph that is deeper counts as alive.
_DEEPEST = 100_000

Output = tuple[str, int]
"""An output of a node: the node's name, and which."""


class DeadBranches:
    """Outputs that are never computed: those behind a `Switch` whose condition is a constant.

    Models that were trained with Keras or slim in TensorFlow 1 hold dropout behind such a condition.
    """

    def __init__(self, nodes: Mapping[str, Any], label: Callable[[str], Label]) -> None:
        self._nodes, self._label = nodes, label
        self._known: dict[Output, bool] = {}

    def __call__(self, output: Output) -> bool:
        todo, on_the_way = [output], {output}
        while todo:
            current = todo[-1]
            if current in self._known:
                on_the_way.discard(todo.pop())
                continue
            node = self._nodes.get(current[0])
            inputs = [] if node is None else [output_named(name) for name in node.input]
            if node is not None and node.op in ("Switch", "RefSwitch") and len(inputs) > 1:
                condition = self._label(node.input[1])
                if isinstance(condition, bool) and current[1] != int(condition):
                    self._known[current] = True
                    continue
            # A loop leads back to its own `Merge`, which its entry keeps alive.
            loops = node is not None and node.op in ("Merge", "RefMerge")
            waiting = next((other for other in inputs if other not in self._known and other not in on_the_way), None)
            if waiting is not None and len(todo) < _DEEPEST:
                todo.append(waiting)
                on_the_way.add(waiting)
                continue
            dead = [self._known.get(other, False) for other in inputs]
            self._known[current] = bool(dead) and (all(dead) if loops else any(dead))
        return self._known[output]


def output_named(name: str) -> Output:
    node, _, i = name.removeprefix("^").partition(":")
    return node, int(i) if i.isdecimal() else 0
