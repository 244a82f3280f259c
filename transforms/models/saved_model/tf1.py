"""SavedModels of TensorFlow 1: the graph's own restore operations, fed with tensors from the engine.

The graph holds one `RestoreV2`, whose outputs go to an assignment for each variable and to an import for each table
(tensorflow/python/training/saver.py). Here those outputs are fed with streamed tensors instead: the checkpoint does not need
to be in any file system. Only those assignments run that the signature and the initialisers need. A resource variable takes
the fed buffer over; a reference variable (`VariableV2`) copies it. TensorFlow keeps reference variables and the tables of such
graphs until the process ends.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ...storage import Store
from ...storage.store import public_uri
from ..direct_call import by_keywords
from ..model import Model
from ..operations import check_known, check_outside, check_runnable
from ..ref import ModelRef
from ..spec import ModelSpec
from ..streaming.dlpack import to_tensor
from ..streaming.shared_stream import say_once
from ..streaming.tensor_stream import StreamOptions, TensorStream, open_stream
from ..streaming.whole_reads import Readable
from .files import graph_in_memory, loading_graph, reading_graph
from .tensor_bundle import Entry
from .tf1_dead_branches import Output
from .tf1_graph import Graph, Step

# The copies that reference variables make are as many bytes as are fed at once; to cut out each function costs
# milliseconds.
_FED_AT_ONCE = 32 << 20


def describe(store: Readable, ref: ModelRef, proto: Any, signature: str | None) -> ModelSpec:
    """Counts `signature`'s weights; with none named, those of `serving_default`, else of all signatures."""
    with reading_graph(ref):
        graph = Graph(store, ref, proto)
        check_known(ref, graph.graph_def)
        counted = [signature] if signature is not None else list(graph.signatures)
        if signature is None and "serving_default" in counted:
            counted = ["serving_default"]
        values = graph.values({step for name in counted for step in graph.steps(name)})
        operations = {name: graph.operations(name) for name in graph.signatures}
    counts = _parameters(values.values()), _nbytes(values.values()), graph.nbytes
    return ModelSpec("saved_model", graph.signatures, *counts, operations)


def load(store: Store, ref: ModelRef, proto: Any, signature: str, stream: StreamOptions, front: Readable) -> Model:
    """`front` gives what was read ahead. Raises `SignatureNotFound`, `UnsupportedModel`, `CorruptModel`."""
    with reading_graph(ref):
        graph = Graph(front, ref, proto)
        check_known(ref, graph.graph_def)
        operations = graph.operations(signature)
        check_runnable(ref, operations)
        check_outside(ref, operations)
        steps = graph.steps(signature)
        values = graph.values(steps)
    spec, tags = graph.signatures[signature], graph.tags
    if stream.place is not None and graph.copies(steps):
        say_once(
            f"{public_uri(ref.uri)} has reference variables of TensorFlow 1, which hold a copy of each process's own"
        )
        # A shared segment would be a second copy that is never read again.
        stream = replace(stream, place=None)
    slots = {piece.slot.name: piece.slot for entry in values.values() for piece in entry.pieces}
    with open_stream(store, list(slots.values()), stream) as tensors:
        folder = graph_in_memory(store, ref, graph.cut(signature))
        try:
            fill = _Filler(graph, steps, values, tensors)
            loaded = _load(folder.uri, tags, fill, ref)
        finally:
            folder.remove()
    function = loaded.signatures[signature]
    return Model(
        ref,
        signature,
        spec.inputs,
        spec.outputs,
        by_keywords(function),
        parameters=_parameters(values.values()),
        nbytes=_nbytes(values.values()),
        keep=loaded,
        operations=operations,
    )


class _Filler:
    """Runs the steps, some at a time, as soon as their tensors are there."""

    def __init__(self, graph: Graph, steps: list[Step], values: dict[Output, Entry], tensors: TensorStream) -> None:
        self._graph, self._values, self._tensors = graph, values, tensors
        self._uses = Counter(piece.slot.name for step in steps for o in step.restored for piece in values[o].pieces)
        self._kept: dict[str, Any] = {}
        self._steps = sorted(steps, key=lambda step: min(values[output].place for output in step.restored))

    def __call__(self, wrapped: Any) -> None:
        import tensorflow as tf

        for group in self._groups():
            outputs = sorted({output for step in group for output in step.restored})
            graph = wrapped.graph
            feeds = [graph.get_operation_by_name(name).outputs[i] for name, i in outputs]
            run = wrapped.prune(
                feeds,
                [graph.get_operation_by_name(step.operation) for step in group],
                # Without it, TensorFlow first fails to bind the arguments, and writes all of them out into an error.
                input_signature=(tuple(tf.TensorSpec(feed.shape, feed.dtype) for feed in feeds), {}),
            )
            uses = Counter(output for step in group for output in step.restored)
            run(*[self._value(self._values[output], uses[output]) for output in outputs])

    def _groups(self) -> Iterator[list[Step]]:
        group: list[Step] = []
        nbytes = 0
        for step in self._steps:
            size = sum(self._values[output].nbytes for output in step.restored)
            if group and nbytes + size > _FED_AT_ONCE:
                yield group
                group, nbytes = [], 0
            group.append(step)
            nbytes += size
        if group:
            yield group

    def _value(self, entry: Entry, uses: int) -> Any:
        def take(slot: str) -> Any:
            array = self._kept.pop(slot) if slot in self._kept else self._tensors.take(slot)
            self._uses[slot] -= uses
            if self._uses[slot]:
                self._kept[slot] = array
            return array

        return to_tensor(self._graph.bundle.value(entry, take), entry.dtype)


def _load(folder: str, tags: list[str], fill: Callable[[Any], None], ref: ModelRef) -> Any:
    import tensorflow as tf

    # Private, since tf.saved_model.load either restores from a path or leaves initialisers to run over unset variables. Only
    # this method is between the two. tests/transforms/models/saved_model/test_saved_model_v1.py fails if it is gone.
    from tensorflow.python.saved_model.load_v1_in_v2 import _EagerSavedModelLoader

    class Loader(_EagerSavedModelLoader):
        def _extract_saver_restore(self, *_: Any) -> None:
            return None

        def restore_variables(self, wrapped: Any, *_: Any) -> None:
            fill(wrapped)

    with loading_graph(ref), tf.init_scope():
        return Loader(folder).load(tags)


def _parameters(entries: Iterable[Entry]) -> int:
    return sum(math.prod(entry.shape) for entry in entries)


def _nbytes(entries: Iterable[Entry]) -> int:
    return sum({piece.slot.name: piece.slot.nbytes for entry in entries for piece in entry.pieces}.values())
