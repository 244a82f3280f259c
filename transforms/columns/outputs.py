"""Tensors to columns. Everything that depends only on the signature is checked when a plan is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import ColumnError, UnsupportedModel
from ..models.spec import TensorSpec
from ..nested_arrow import buffer_of, value_type
from .output_arrays import ARROW_TYPES, check_shape, leaf_array, list_type, nested, pairs, pairs_type, refuse_large
from .rules import PREDICTION_TYPES
from .top_k import BestClasses
from .wording import described, nearest, unknown

if TYPE_CHECKING:
    import tensorflow as tf


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
        shape = check_shape(self.spec, tensor, rows)
        if self.spec.composite is not None:
            return pairs(self.field.type, tensor, rows)
        if hasattr(tensor, "nested_row_splits"):
            return self._ragged(tensor)
        return nested(self.field.type, leaf_array(tensor, math.prod(shape)), shape)

    def _ragged(self, tensor: tf.Tensor) -> pa.Array[Any]:
        """A `tf.RaggedTensor`: row splits, outermost first, around dense values. Its dimensions vary, so they are lists."""
        kinds = [self.field.type]
        for _ in tensor.nested_row_splits:
            kinds.append(value_type(kinds[-1]))
        shape = tuple(tensor.flat_values.shape)
        array = nested(kinds.pop(), leaf_array(tensor.flat_values, math.prod(shape)), shape)
        for kind, splits in zip(reversed(kinds), reversed(tensor.nested_row_splits), strict=True):
            edges = np.asarray(memoryview(splits))
            refuse_large(int(edges[-1]), "values in lists")
            offsets = buffer_of(edges.astype(np.int32))
            array = pa.Array.from_buffers(kind, len(edges) - 1, [None, offsets], children=[array])
        return array


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Which outputs become which columns, and which outputs' best classes do; survives pickling."""

    outputs: tuple[Output, ...]
    best: tuple[BestClasses, ...] = ()

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The outputs that the model must give."""
        specs = [*(best.spec for best in self.outputs), *(best.spec for best in self.best)]
        return tuple({spec.name: spec for spec in specs}.values())

    @property
    def fields(self) -> tuple[pa.Field[Any], ...]:
        """The columns, in the order of the model's outputs, then best classes; none of them, and no value in them, is null."""
        return (*(output.field for output in self.outputs), *(field for best in self.best for field in best.fields))

    def columns(self, results: Mapping[str, tf.Tensor], rows: int) -> list[pa.Array[Any]]:
        """One array of length `rows` per field, in TensorFlow's own memory wherever Arrow has the same layout.

        Raises `UnsupportedModel` where a result does not have one row for each of the input's.
        """
        columns = [output.array(results[output.spec.name], rows) for output in self.outputs]
        return columns + [array for best in self.best for array in best.arrays(results[best.spec.name], rows)]


def output_plan(outputs: Mapping[str, TensorSpec], predictions: Mapping[str, str], prediction_type: str) -> OutputPlan:
    for output in predictions:
        if output not in outputs:
            raise unknown("The model has no output", output, "outputs", outputs)
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
    elif spec.composite is not None and len(spec.shape) != 2:
        reason = "is sparse, and of other dimensions than rows and positions"
    elif spec.dtype not in ARROW_TYPES:
        reason = "has a dtype that Arrow cannot hold"
    if reason:
        alone = spec.shape is not None and spec.shape[:1] == (1,)
        raise UnsupportedModel(
            f"The model's output '{spec.name}' {reason}",
            expected="a number, bool or string dtype and a first dimension that varies (None)",
            found=described(spec),
            cure="Predict row by row, as --batch_size=1 (batch_size=1), if it is the only row's, or choose other outputs: "
            "--outputs=A,B (outputs=[…])."
            if alone
            else "Choose other outputs, as --outputs=A,B (outputs=[…]), or another --signature.",
        )
    return Output(spec, pa.field(column, _column_type(spec, prediction_type), nullable=False), prediction_type)


def _column_type(spec: TensorSpec, prediction_type: str) -> pa.DataType:
    """Arrow's tensors hold numbers (but it cannot read bool) of known dimensions; all others become lists."""
    kind, inner = ARROW_TYPES[spec.dtype], (spec.shape or ())[1:]
    if spec.composite is not None:
        return pairs_type(kind)
    least_dims = {"auto": 2, "tensor": 1, "list": math.inf}[prediction_type]
    if len(inner) >= least_dims and None not in inner and spec.dtype not in ("bool", "string"):
        known: Any = inner
        return pa.fixed_shape_tensor(kind, known)
    for dim in reversed(inner):
        kind = list_type(kind, -1 if dim is None else dim)
    return kind
