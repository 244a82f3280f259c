"""Beam's rows to record batches and back: which Arrow type a field has, which Beam type a prediction.

The one place for what Beam calls internal in its schemas: `arrow_schema_from_beam_schema`, `named_fields_from_element_type` and
`RowTypeConstraint.from_fields` (Beam 2.77). tests/transforms/beam/test_rows.py fails when Beam changes them.
"""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.portability.api import schema_pb2
from apache_beam.typehints.arrow_type_compatibility import arrow_schema_from_beam_schema
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type, schema_from_element_type

from ..columns.plan import choose_batch_rows, plan_columns
from ..errors import ColumnError, DataError, InvalidRequest
from ..models.spec import Signature
from ..nested_arrow import flat, list_size, value_type
from ..predicting.batch_predictor import BatchRequest

# Beam's schemas have no unsigned and no half numbers: the next larger ones hold all their values.
_BEAM_TYPES: dict[pa.DataType, Any] = {
    pa.bool_(): bool,
    pa.int8(): np.int8,
    pa.int16(): np.int16,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint8(): np.int16,
    pa.uint16(): np.int32,
    pa.uint32(): np.int64,
    pa.float16(): np.float32,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
    pa.string(): str,
    pa.binary(): bytes,
}


@dataclass(frozen=True)
class RowPlan:
    """How rows of one schema are predicted. `fed` are the columns that become a record batch, `kept` the fields that pass
    through as they are, `predictions` the columns that come after them, `batch_rows` how many rows the model takes at once.
    """

    fed: pa.Schema
    kept: tuple[str, ...]
    predictions: pa.Schema
    batch_rows: int
    row_type: Any

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.kept, *self.predictions.names)

    def check(self, predictions: pa.Schema) -> None:
        """Raises `ColumnError` where a model that took the place of the first one predicts something else."""
        if _types(predictions) != _types(self.predictions):
            raise ColumnError(
                "The model that replaced the first one predicts other columns",
                expected=", ".join(map(str, self.predictions)),
                found=", ".join(map(str, predictions)),
                cure="Publish models with the same signature, or start the pipeline again",
            )


def plan_rows(element_type: Any, signature: Signature, request: BatchRequest) -> RowPlan:
    """`element_type` is that of the collection of rows. Raises `InvalidRequest` where it has no schema, `ColumnError` where the
    model does not fit it.
    """
    try:
        schema, fields = schema_from_element_type(element_type), dict(named_fields_from_element_type(element_type))
    except TypeError as error:
        raise InvalidRequest(
            "The elements to be predicted are not rows",
            expected="rows with a schema: beam.Row, a NamedTuple or a dataclass",
            found=str(element_type),
            cure="Map them to rows first, as with beam.Select or MapToFields",
        ) from error
    columns = pa.schema([_arrow_field(field, fields[field.name]) for field in schema.fields])
    plan = plan_columns(columns, [(signature, request.columns)], request.keep)
    if not plan.models[0].inputs.columns:
        raise ColumnError(
            "No field of the rows feeds the model", expected="an input that is not a constant", found="constants alone"
        )
    predictions = pa.schema(list(plan.output_schema)[len(plan.keep) :])
    kinds = [(name, fields[name]) for name in plan.keep]
    kinds += [(field.name, _beam_type(field.name, field.type)) for field in predictions]
    return RowPlan(
        pa.schema([columns.field(name) for name in plan.models[0].inputs.columns]),
        plan.keep,
        predictions,
        choose_batch_rows(plan, request.rows)[0],
        RowTypeConstraint.from_fields(kinds),
    )


def error_type(element_type: Any) -> Any:
    """Of a row that cannot be predicted, as Beam YAML's own transforms give it."""
    return RowTypeConstraint.from_fields([("element", element_type), ("msg", str), ("stack", str)])


def to_batch(rows: Sequence[Any], schema: pa.Schema) -> pa.RecordBatch:
    """Raises `DataError` for a value that is not of its column's type."""
    arrays = []
    for field in schema:
        try:
            arrays.append(pa.array([_plain(getattr(row, field.name), field.type) for row in rows], field.type))
        except (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"A row's {field.name!r} is not what the rows' schema says",
                expected=str(field.type),
                found=f"{type(error).__name__}: {error}",
                cure="Make the rows and their schema agree in the step before",
            ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def to_values(column: pa.Array[Any]) -> list[Any]:
    """Python's own values of a column of predictions; a list at a time, not a value at a time as `to_pylist`."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind) and not column.null_count:
        size, values = list_size(kind), to_values(flat(column))
        return [values[i * size : (i + 1) * size] for i in range(len(column))]
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not column.null_count:
        return column.to_numpy(zero_copy_only=False).tolist()
    return column.to_pylist()


def _arrow_field(field: schema_pb2.Field, kind: Any) -> pa.Field[Any]:
    """A type that Arrow has no counterpart for may be kept, and feeds no model."""
    try:
        (found,) = arrow_schema_from_beam_schema(schema_pb2.Schema(fields=[field]))
    except (NotImplementedError, ValueError):
        return pa.field(field.name, pa.opaque(pa.null(), str(kind), "beam"))
    return found.remove_metadata()


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Rows within rows as what Arrow takes for a struct."""
    if value is None:
        return None
    if isinstance(kind, pa.StructType):
        return {member.name: _plain(getattr(value, member.name), member.type) for member in kind}
    if pa.types.is_list(kind) and pa.types.is_nested(value_type(kind)):
        return [_plain(one, value_type(kind)) for one in value]
    return value


def _beam_type(name: str, kind: pa.DataType) -> Any:
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise ColumnError(
            f"The prediction {name!r} cannot be a field of a row",
            expected="a name of letters, digits and underscores",
            found=name,
            cure=f"Name it: --prediction {name}=score",
        )
    found = _value_type(kind)
    if found is None:
        raise ColumnError(
            f"Beam's rows have no type for the prediction {name!r}",
            expected=f"one of {', '.join(map(str, _BEAM_TYPES))}, or lists of these",
            found=str(kind),
            cure="Leave it out with --outputs, or export the model with another type",
        )
    return found


def _types(predictions: pa.Schema) -> list[tuple[str, Any]]:
    """What pickling a schema keeps of it: not whether a list's values may be null."""
    return [(field.name, _value_type(field.type)) for field in predictions]


def _value_type(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _value_type(value_type(kind))
        return None if inner is None else Sequence[inner]  # type: ignore[valid-type]
    return _BEAM_TYPES.get(kind)
