"""A SavedModel's message without the functions that one signature does not run.

TensorFlow's loader makes a graph in Python of every function that was saved. Keras' export saves the model three times: as
two signatures and as a function, so two thirds of the loader's work is for what is never called.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..operations import functions_in

_FUNCTIONS = ("function", "bare_concrete_function")
_EMPTY = "_generic_user_object"


def keep_only(meta: Any, wanted: Iterable[str]) -> None:
    """Removes from a meta graph the functions that the `wanted` ones, and what else the loader runs, do not call.

    Nodes keep their numbers: in the place of a removed function's node is an object without content, which nothing names.
    """
    objects, library = meta.object_graph_def, meta.graph_def.library
    called = {function.signature.name: set(_called(function)) for function in library.function}
    nodes = {i: set(held(node)) for i, node in enumerate(objects.nodes) if node.WhichOneof("kind") in _FUNCTIONS}
    kept = _reached([*wanted, *_named_by_the_loader(meta)], called, nodes)
    removed = {i for i, names in nodes.items() if names and not names & kept}
    for i, node in enumerate(objects.nodes):
        if i in removed:
            node.Clear()
            node.user_object.identifier = _EMPTY
            node.user_object.version.producer = node.user_object.version.min_consumer = 1
        elif any(child.node_id in removed for child in node.children):
            children = [child for child in node.children if child.node_id not in removed]
            del node.children[:]
            node.children.extend(children)
    for name in [name for name in objects.concrete_functions if name not in kept]:
        del objects.concrete_functions[name]
    functions = [function for function in library.function if function.signature.name in kept]
    del library.function[:]
    library.function.extend(functions)


def _reached(names: Iterable[str], called: Mapping[str, set[str]], nodes: Mapping[int, set[str]]) -> set[str]:
    """The functions by these names and those that they lead to. Visits every name, call and node once.

    A node that holds one of them restores all of its functions.
    """
    holding: dict[str, list[int]] = defaultdict(list)
    for i, held in nodes.items():
        for name in held:
            holding[name].append(i)
    reached: set[str] = set()
    opened: set[int] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in reached or name not in called:
            continue
        reached.add(name)
        todo += called[name]
        for i in holding[name]:
            if i not in opened:
                opened.add(i)
                todo += nodes[i]
    return reached


def _called(function: Any) -> Iterator[str]:
    """More than its calls: whatever names a function, in a branch that is never taken too, must be there."""
    for node in function.node_def:
        yield node.op
        for value in node.attr.values():
            yield from functions_in(value)


def _named_by_the_loader(meta: Any) -> Iterator[str]:
    """Functions of gradients, captured tensors and savers, and those that TensorFlow may run in another one's place."""
    library, nodes = meta.graph_def.library, meta.object_graph_def.nodes
    for function in library.function:
        # On a GPU, Keras 2's LSTM and GRU become another function that implements the same.
        if "api_implements" in function.attr:
            yield function.signature.name
    for gradient in library.gradient:
        yield from (gradient.function_name, gradient.gradient_func)
    for registered in library.registered_gradients:
        yield registered.gradient_func
    for node in nodes:
        if node.WhichOneof("kind") == "captured_tensor":
            yield node.captured_tensor.concrete_function
        for saveable in node.saveable_objects.values():
            for at in (saveable.save_function, saveable.restore_function):
                if 0 <= at < len(nodes):
                    yield from held(nodes[at])


def held(node: Any) -> Iterator[str]:
    """The concrete functions of an object, if it is a function."""
    if node.WhichOneof("kind") == "function":
        yield from node.function.concrete_functions
    elif node.WhichOneof("kind") == "bare_concrete_function":
        yield node.bare_concrete_function.concrete_function_name
