"""The best classes of an output and their scores, as columns. Plans check everything that depends only on the signature."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..errors import ColumnError, InvalidRequest
from ..models.spec import TensorSpec
from ..storage import StoreOptions, open_store
from ..storage.store import public_uri
from .output_arrays import ARROW_TYPES, check_shape, leaf_array, list_type, nested
from .wording import described, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    import tensorflow as tf

MOST_LABEL_BYTES = 1 << 20
_NOT_RANKED = ("bool", "string")
_FORM = re.compile(r"(?P<k>[1-9]\d{0,8})(?::(?P<labels>.+))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Labels:
    """The names of the classes, in the order of their ids: `data` is a text file's, UTF-8, with a label on each line."""

    uri: str
    data: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        # A job is part of some thirty of Beam's steps.
        return _labels, (self.uri, len(self.data), pa.compress(self.data, codec="zstd", asbytes=True))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the file."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def names(self) -> list[str]:
        lines = self.data.decode("utf-8-sig").split("\n")
        if not lines[-1]:
            del lines[-1]
        return [line.removesuffix("\r") for line in lines]


def _labels(uri: str, size: int, data: bytes) -> Labels:
    return Labels(uri, bytes(pa.decompress(data, decompressed_size=size, codec="zstd", asbytes=True)))


@dataclass(frozen=True, slots=True)
class TopK:
    """The `k` best classes of `output`, by their labels where there are any. `column` begins their columns' names, "" for the
    output's own name. Hashable; survives pickling.
    """

    output: str
    k: int
    labels: Labels | None = None
    column: str = ""

    def record(self) -> dict[str, Any]:
        """The job's record of it. Labels are recorded by their digest, wherever they are."""
        labels = {"labels": self.labels.digest} if self.labels is not None else {}
        return {"k": self.k, "column": self.column, **labels}


def parse_top_k(output: str, value: int | str) -> tuple[int, str | None]:
    """`K` or `K:labels`, as a number and the labels' URI. Raises `InvalidRequest`."""
    match = _FORM.fullmatch(str(value))
    if match is None:
        raise InvalidRequest(
            f"--top_k={output}={value} is not a number of classes",
            expected="OUTPUT=K or OUTPUT=K:labels.txt, K being 1 or more",
            found=str(value),
            cure=f"Write it as in --top_k={output}=5",
        )
    return int(match["k"]), match["labels"]


def read_labels(uri: str, options: StoreOptions) -> Labels:
    """Raises `InvalidRequest` where the file is too large, or no text."""
    store = open_store(uri, options)
    ref = store.stat(uri)
    if ref.size > MOST_LABEL_BYTES:
        raise InvalidRequest(
            f"The labels in {public_uri(uri)} are too large",
            expected=f"{MOST_LABEL_BYTES:,} bytes at most",
            found=f"{ref.size:,} bytes",
            cure="Name a text file with one label on each line, in the order of the classes",
        )
    labels = Labels(uri, bytes(store.read(ref)))
    try:
        labels.data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The labels in {public_uri(uri)} are not text",
            expected="UTF-8, one label on each line",
            found=str(error),
            cure="Write the file again as UTF-8",
        ) from error
    return labels


@dataclass(frozen=True, slots=True)
class BestClasses:
    """How the best classes of one output become two columns. `asked.column` is not empty."""

    spec: TensorSpec
    asked: TopK

    @property
    def fields(self) -> tuple[pa.Field[Any], pa.Field[Any]]:
        """Classes, then their scores: a value a row for one class, else lists, the best first."""
        column, k = self.asked.column, self.asked.k
        name, kind = ("class", pa.int32()) if self.asked.labels is None else ("label", pa.string())
        kinds: tuple[pa.DataType, pa.DataType] = (kind, ARROW_TYPES[self.spec.dtype])
        classes, scores = kinds if k == 1 else (list_type(kind, k) for kind in kinds)
        return (
            pa.field(f"{column}_{name}", classes, nullable=False),
            pa.field(f"{column}_score", scores, nullable=False),
        )

    def arrays(self, tensor: tf.Tensor, rows: int) -> list[pa.Array[Any]]:
        """Sorted by score, the largest first; of equal ones the smaller id. NaN counts as the smallest number of all.

        Raises `UnsupportedModel` where the tensor does not have one row for each of the input's.
        """
        import tensorflow as tf

        check_shape(self.spec, tensor, rows)
        ranked = tensor
        if tensor.dtype.is_floating:
            ranked = tf.where(tf.math.is_nan(tensor), tf.constant(-math.inf, tensor.dtype), tensor)
        _, ids = tf.math.top_k(ranked, self.asked.k)
        scores = leaf_array(tf.gather(tensor, ids, batch_dims=1), rows * self.asked.k)
        classes = leaf_array(ids, rows * self.asked.k)
        if self.asked.labels is not None:
            classes = pa.array(self.asked.labels.names, pa.string()).take(classes)
        shape = (rows,) if self.asked.k == 1 else (rows, self.asked.k)
        return [nested(field.type, values, shape) for field, values in zip(self.fields, (classes, scores), strict=True)]


def plan_best_classes(outputs: Mapping[str, TensorSpec], asked: TopK) -> BestClasses:
    """Raises `ColumnError` for a name that is not an output, an output without scores of classes or with too few of them, and
    for labels of other classes.
    """
    if asked.output not in outputs:
        raise unknown("--top_k (top_k) names no output of the model:", asked.output, "outputs", outputs)
    spec = outputs[asked.output]
    inner = () if spec.shape is None else spec.shape[1:]
    classes = inner[0] if len(inner) == 1 and spec.composite is None else None
    if spec.shape is None or spec.shape[0] is not None or classes is None or spec.dtype in _NOT_RANKED:
        raise ColumnError(
            f"--top_k (top_k) names the output '{spec.name}', which has no scores of classes",
            expected="numbers of shape [batch, CLASSES], how many classes being known",
            found=described(spec),
            cure=f"Leave --top_k out for '{spec.name}', or choose by a function: --postprocess.",
        )
    if asked.k > classes:
        raise ColumnError(
            f"--top_k (top_k) asks for {asked.k} classes of the output '{spec.name}'",
            expected=f"{classes} at most",
            found=described(spec),
            cure=f"Write --top_k={spec.name}={classes} or less.",
        )
    if asked.labels is not None and len(asked.labels.names) != classes:
        raise ColumnError(
            f"The labels in {public_uri(asked.labels.uri)} are not those of the output '{spec.name}'",
            expected=f"{classes} lines: a label for each class, in the order of {described(spec)}",
            found=f"{len(asked.labels.names)} lines",
            cure="Name the labels that the model was trained with; a class without one needs a line of its own too.",
        )
    return BestClasses(spec, asked if asked.column else replace(asked, column=asked.output))
