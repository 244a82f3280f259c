"""The inputs and outputs of a model, as plain values that cross to workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GRAPH_FACTOR = 18
"""Times its bytes that a graph of constants takes in memory while it is loaded and called for the first time: 17.0 were
measured of 80 MB, with TensorFlow 2.21.
"""
LARGE_GRAPH = 8 << 20
"""Bytes of a graph above which that counts: smaller ones fit into the memory that is reserved for TensorFlow."""


@dataclass(frozen=True, slots=True)
class ExampleFeature:
    """What a model's own parser takes under one key of a serialized message.

    `shape` is that of one row's values; its first dimension is None where rows may differ in it. Parsing fails for rows
    that lack a `required` feature. With `steps`, it is a feature list of a tf.train.SequenceExample: the first dimension are
    its features, and the second is None where these may differ in their number of values.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    required: bool
    steps: bool = False

    @property
    def varies(self) -> bool:
        return self.shape[:1] == (None,)

    @property
    def lists(self) -> int:
        """How many of the outermost levels of lists stay as long as they are."""
        return (1 + (self.shape[1:2] == (None,))) if self.steps else 0

    def __str__(self) -> str:
        dims = ["?" if dim is None else str(dim) for dim in self.shape]
        dims = ["steps", *dims[1:]] if self.steps else dims
        return f"{self.name} {self.dtype}" + (f" [{', '.join(dims)}]" if dims else "")


@dataclass(frozen=True, slots=True)
class ExampleFormat:
    """The serialized messages that an input of strings takes, as its graph parses them; features in the order of their keys.

    `problem` says why columns cannot be encoded as such; "" where they can.
    """

    features: tuple[ExampleFeature, ...]
    message: str = "tf.train.Example"
    problem: str = ""

    def __str__(self) -> str:
        return self.shown(len(self.features))

    def shown(self, most: int) -> str:
        names = ", ".join(map(str, self.features[:most])) or "features that the graph does not name"
        more = f" and {len(self.features) - most} more" if len(self.features) > most else ""
        return f"serialized {self.message} of {names}{more}"


@dataclass(frozen=True, slots=True)
class Composite:
    """What TensorFlow keeps as several dense tensors. `parts` are their names as a function's arguments, () of an output.

    "ragged": the values, then the row splits from the outermost in, of dtype `splits`. "sparse": indices, values, dense shape
    (tensorflow/python/ops/ragged/ragged_tensor.py and framework/sparse_tensor.py).
    """

    kind: str
    parts: tuple[str, ...] = ()
    splits: str = "int64"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """`dtype` is TensorFlow's name ("float32", "bfloat16", "string", …). `shape` includes the batch dimension.

    `None` for a dimension means that it varies, in a ragged tensor from row to row; `None` for the whole shape, that even
    the rank is not known. `example` is what the strings of an input are parsed as, None where they are not. `composite` is
    set of ragged and sparse inputs, and of sparse outputs.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    example: ExampleFormat | None = None
    composite: Composite | None = None

    @property
    def lists(self) -> int:
        """The outermost dimensions within a row that may have another size in each: those that lists of any length feed."""
        if self.composite is None:
            return 0
        return len(self.composite.parts) - 1 if self.composite.kind == "ragged" else len(self.shape or ()) - 1


@dataclass(frozen=True, slots=True)
class Signature:
    """One callable of a model. Names are what a person says in `--feature` and `--prediction`."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class Operations:
    """What a signature does in addition to computing, by the names of TensorFlow's operations, or of Keras' layers; all sorted.

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
    """What is known about a model without fetching its weights.

    `parameters` counts the numbers, `nbytes` the bytes, that loading `signatures` would stream; `graph_nbytes` are those of
    the graph and its constants, which are read whole. `operations` are by signature, where they are known. `functions` are
    other names by which the model can be called. `parts` describes the parts of a KerasHub preset, or
    names the step of an Orbax checkpoint.
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
        """Bytes of memory that the graph takes in addition to the weights."""
        return GRAPH_FACTOR * self.graph_nbytes if self.graph_nbytes >= LARGE_GRAPH else 0
