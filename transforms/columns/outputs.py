"""Tensors to columns. Everything that the signature can tell is checked when a plan is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import ColumnError, DataError, UnsupportedModel
from ..models.spec import TensorSpec
from ..nested_arrow import buffer_of, value_type
from .rules import PREDICTION_TYPES
from .wording import described, listed, nearest, shown

if TYPE_CHECKING:
    import tensorflow as tf

_ARROW: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "bfloat16": pa.float32(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.binary(),
}


@dataclass(frozen=True, slots=True)
class Output:
    """How one output becomes a column of type `field.type`."""

    spec: TensorSpec
    field: pa.Field[Any]
    prediction_type: str

    def __reduce__(self) -> tuple[Any, ...]:
        # pyarrow 25 pickles a fixed-size list's type without its item's nullability, even inside a field or schema.
        return _output, (self.spec, self.field.name, self.prediction_type)

    def array(self, tensor: tf.Tensor, rows: int) -> pa.Array[Any]:
        expected = (rows, *(self.spec.shape or ())[1:])
        shape = tuple(tensor.shape.as_list())
        if len(shape) != len(expected) or any(e not in (None, s) for e, s in zip(expected, shape, strict=True)):
            raise UnsupportedModel(
                f"The model's output '{self.spec.name}' has another shape than its rows and its signature say",
                expected=shown(expected),
                found=shown(shape),
                cure="Export the model so that each row of the input gives one row of this output.",
            )
        if hasattr(tensor, "nested_row_splits"):
            return self._ragged(tensor)
        return _nested(self.field.type, _leaf_array(tensor, math.prod(shape)), shape)

    def _ragged(self, tensor: tf.Tensor) -> pa.Array[Any]:
        """A `tf.RaggedTensor`: row splits, outermost first, around dense values. Its dimensions vary, so they are lists."""
        kinds = [self.field.type]
        for _ in tensor.nested_row_splits:
            kinds.append(value_type(kinds[-1]))
        shape = tuple(tensor.flat_values.shape)
        array = _nested(kinds.pop(), _leaf_array(tensor.flat_values, math.prod(shape)), shape)
        for kind, splits in zip(reversed(kinds), reversed(tensor.nested_row_splits), strict=True):
            edges = np.asarray(memoryview(splits))
            _refuse_large(int(edges[-1]), "values in lists")
            offsets = buffer_of(edges.astype(np.int32))
            array = pa.Array.from_buffers(kind, len(edges) - 1, [None, offsets], children=[array])
        return array


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Which outputs become which columns; survives pickling."""

    outputs: tuple[Output, ...]

    @property
    def fields(self) -> tuple[pa.Field[Any], ...]:
        """The columns, in the order of the model's outputs; none of them, and no value in them, is null."""
        return tuple(output.field for output in self.outputs)

    def columns(self, results: Mapping[str, tf.Tensor], rows: int) -> list[pa.Array[Any]]:
        """One array of length `rows` per field, in TensorFlow's own memory wherever Arrow has the same layout.

        Raises `UnsupportedModel` where a result does not have one row for each of the input's.
        """
        return [output.array(results[output.spec.name], rows) for output in self.outputs]


def output_plan(outputs: Mapping[str, TensorSpec], predictions: Mapping[str, str], prediction_type: str) -> OutputPlan:
    for output in predictions:
        if output not in outputs:
            raise ColumnError(
                f"The model has no output '{output}'",
                expected="the name of one of its outputs",
                found=listed("outputs", outputs),
                cure=nearest(output, outputs) or "Name one of these instead.",
            )
    if prediction_type not in PREDICTION_TYPES:
        raise ColumnError(
            f"There is no prediction type '{prediction_type}'",
            expected=f"one of {', '.join(PREDICTION_TYPES)}",
            cure=nearest(prediction_type, PREDICTION_TYPES) or "Leave --prediction_type out for auto.",
        )
    owners: dict[str, str] = {}
    for output in outputs:
        column = predictions.get(output, output)
        if column in owners:
            raise ColumnError(
                f"The outputs '{owners[column]}' and '{output}' would both become the column '{column}'",
                expected="a column of its own for each output",
                cure=f"Name another one: --prediction {output}=COLUMN.",
            )
        owners[column] = output
    return OutputPlan(tuple(_output(outputs[output], column, prediction_type) for column, output in owners.items()))


def _output(spec: TensorSpec, column: str, prediction_type: str) -> Output:
    reason = ""
    if spec.shape is None:
        reason = "has no known rank, so that its column's type cannot be told before the first row"
    elif not spec.shape or spec.shape[0] is not None:
        reason = "does not depend on the batch: it has no row for each row of the input"
    elif spec.dtype not in _ARROW:
        reason = "has a dtype that Arrow cannot hold"
    if reason:
        raise UnsupportedModel(
            f"The model's output '{spec.name}' {reason}",
            expected="a number, bool or string dtype and a first dimension that varies (None)",
            found=described(spec),
            cure="Choose other outputs, as --outputs A,B (outputs=[…]), or another --signature.",
        )
    return Output(spec, pa.field(column, _column_type(spec, prediction_type), nullable=False), prediction_type)


def _column_type(spec: TensorSpec, prediction_type: str) -> pa.DataType:
    """Arrow's tensors are of numbers (of bool it cannot read them) and of known dimensions; whatever else is lists."""
    kind, inner = _ARROW[spec.dtype], (spec.shape or ())[1:]
    least_dims = {"auto": 2, "tensor": 1, "list": math.inf}[prediction_type]
    if len(inner) >= least_dims and None not in inner and spec.dtype not in ("bool", "string"):
        known: Any = inner
        return pa.fixed_shape_tensor(kind, known)
    for dim in reversed(inner):
        kind = pa.list_(pa.field("element", kind, nullable=False), -1 if dim is None else dim)
    return kind


def _leaf_array(tensor: tf.Tensor, count: int) -> pa.Array[Any]:
    """All `count` values of the tensor, row-major, in its own memory (kept alive) except for bool and string."""
    import tensorflow as tf

    dtype = tensor.dtype.name
    if dtype == "string":
        flat = tensor if tensor.shape.rank == 1 else tf.reshape(tensor, [-1])
        joined = tf.raw_ops.ReduceJoin(inputs=flat, reduction_indices=[0])
        data = tf.raw_ops.DecodeRaw(bytes=joined, out_type=tf.uint8)
        _refuse_large(data.shape[0], "bytes of strings")
        offsets = np.zeros(count + 1, np.int32)
        np.cumsum(memoryview(tf.raw_ops.StringLength(input=flat, unit="BYTE")), out=offsets[1:])
        return pa.Array.from_buffers(_ARROW[dtype], count, [None, buffer_of(offsets), buffer_of(data)])
    if dtype == "bool":
        bits = np.packbits(np.asarray(memoryview(tensor)).reshape(-1), bitorder="little")
        return pa.Array.from_buffers(_ARROW[dtype], count, [None, buffer_of(bits)])
    if dtype == "bfloat16":
        # Its bits are a float32's upper half; TensorFlow's own cast would make zeros of the numbers nearest to zero.
        wide = tensor.numpy().view(np.uint16).astype(np.uint32) << np.uint32(16)
        return pa.Array.from_buffers(_ARROW[dtype], count, [None, buffer_of(wide)])
    # The tensor's buffer protocol lends its memory; numpy() would copy it.
    return pa.Array.from_buffers(_ARROW[dtype], count, [None, buffer_of(tensor)])


def _nested(kind: pa.DataType, values: pa.Array[Any], shape: tuple[int, ...]) -> pa.Array[Any]:
    """The values as an array of `shape[0]` rows of type `kind`, which is `_column_type`'s for `shape[1:]`."""
    if isinstance(kind, pa.FixedShapeTensorType):
        storage = pa.Array.from_buffers(kind.storage_type, shape[0], [None], children=[values])
        return pa.ExtensionArray.from_storage(kind, storage)
    if len(shape) == 1:
        return values
    child = _nested(value_type(kind), values, (shape[0] * shape[1], *shape[2:]))
    if pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, shape[0], [None], children=[child])
    _refuse_large(shape[0] * shape[1], "values in lists")
    offsets = np.arange(shape[0] + 1, dtype=np.int32) * np.int32(shape[1])
    return pa.Array.from_buffers(kind, shape[0], [None, buffer_of(offsets)], children=[child])


def _refuse_large(size: int, what: str) -> None:
    if size > np.iinfo(np.int32).max:
        raise DataError(
            "The predictions of one batch are too large for a column",
            expected=f"at most {np.iinfo(np.int32).max} {what}",
            found=str(size),
            cure="Choose a smaller --batch_size.",
        )
