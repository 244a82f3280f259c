"""What a model takes and gives, as plain values that cross to workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GRAPH_FACTOR = 18
"""Times its bytes that a graph of constants takes in memory while it is loaded and called for the first time: 17.0 were
measured of 80 MB, with TensorFlow 2.21.
"""
LARGE_GRAPH = 8 << 20
"""Bytes of a graph from which on that counts: smaller ones fit into what is set aside for TensorFlow."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """`dtype` is TensorFlow's name ("float32", "bfloat16", "string", …). `shape` includes the batch dimension.

    `None` for a dimension means that it varies, in a ragged output from row to row; `None` for the whole shape, that even
    the rank is not known.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Signature:
    """One callable of a model. Names are what a person says in `--feature` and `--prediction`."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class Operations:
    """What a signature does beside computing, by the names of TensorFlow's operations, or of Keras' layers; all sorted.

    `random` draw random numbers, `writes` change what later calls find, `outside` can reach files, the network or other
    processes, `python` call Python functions, `unrunnable` have no code for any device.
    """

    random: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    unrunnable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What can be told of a model without fetching its weights.

    `parameters` counts the numbers, `nbytes` the bytes, that loading `signatures` would stream; `graph_nbytes` are those of
    the graph and its constants, which are read whole. `operations` are by signature, where they are known. `functions` are
    names beside the signatures by which the model can be called. `parts` says what a KerasHub preset is made of.
    """

    format: str
    signatures: Mapping[str, Signature]
    parameters: int
    nbytes: int
    graph_nbytes: int = 0
    operations: Mapping[str, Operations] = field(default_factory=dict)
    functions: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def graph_memory(self) -> int:
        """Bytes of memory that the graph takes besides the weights."""
        return GRAPH_FACTOR * self.graph_nbytes if self.graph_nbytes >= LARGE_GRAPH else 0
