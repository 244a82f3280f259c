"""RecordBatch to tensors and back. Everything that schema and signature can tell is checked when a plan is made.

What fits: each row of the column has the tensor's shape beyond the batch. Besides, a flat list of as many values as the
tensor's known dimensions multiply to is taken row-major, dimensions of 1 may be missing or extra, and several scalar
columns are packed side by side. Casts happen only where no value can change; bool becomes 0 and 1.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from transforms.columns import Column, EqualLists, Level, Numbers, arrow_type, column_of, leaf_array, nested
from transforms.errors import ColumnError, UnsupportedModel
from transforms.models.dlpack import to_tensor
from transforms.models.spec import TensorSpec

if TYPE_CHECKING:
    import tensorflow as tf

_SIGNIFICAND_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
_NUMERIC = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", *_SIGNIFICAND_BITS)


@dataclass(frozen=True, slots=True)
class ColumnRules:
    """What a person allows beyond what never changes a value. Keys are tensor names; survives pickling; hashable."""

    pad: tuple[tuple[str, str], ...] = ()
    fill: tuple[tuple[str, str], ...] = ()
    cast: tuple[str, ...] = ()
    decode_image: tuple[tuple[str, tuple[int, int]], ...] = ()
    prediction_type: str = "auto"


@dataclass(frozen=True, slots=True)
class Input:
    """How one tensor is read. `inner` is its shape beyond the batch; None where the rows decide."""

    spec: TensorSpec
    columns: tuple[Column, ...]
    inner: tuple[int, ...] | None

    def tensor(self, batch: pa.RecordBatch, where: str, first_row: int) -> tf.Tensor:
        if len(self.columns) > 1:
            tensor = self._packed(batch, where, first_row)
        else:
            (column,) = self.columns
            array, dims = column.open(batch, where, first_row)
            tensor = column.leaf.tensor(array, (batch.num_rows, *(dims if self.inner is None else self.inner)))
        if tensor.dtype.name == self.spec.dtype:
            return tensor
        import tensorflow as tf

        return tf.cast(tensor, self.spec.dtype)

    def _packed(self, batch: pa.RecordBatch, where: str, first_row: int) -> tf.Tensor:
        import tensorflow as tf

        rows, shape = batch.num_rows, (batch.num_rows, *(self.inner or (len(self.columns),)))
        arrays = [column.open(batch, where, first_row)[0] for column in self.columns]
        if self.spec.dtype == "string":
            values = [column.leaf.tensor(array, (rows,)) for column, array in zip(self.columns, arrays, strict=True)]
            return tf.reshape(tf.stack(values, axis=1), shape)
        # float32 holds exactly what bfloat16 holds, and numpy knows it.
        dtype = np.dtype("float32" if self.spec.dtype == "bfloat16" else self.spec.dtype)
        buffer = pa.allocate_buffer(rows * len(arrays) * dtype.itemsize)
        packed = np.frombuffer(buffer, dtype).reshape(rows, len(arrays))
        for place, (column, array) in enumerate(zip(self.columns, arrays, strict=True)):
            assert isinstance(column.leaf, Numbers)
            packed[:, place] = column.leaf.numpy(array)
        return to_tensor(packed.reshape(shape))


@dataclass(frozen=True, slots=True)
class InputPlan:
    """Which columns become which tensors, and how; survives pickling."""

    inputs: tuple[Input, ...]

    @property
    def mapping(self) -> Mapping[str, tuple[str, ...]]:
        """Tensor name to its column or columns."""
        return {one.spec.name: tuple(column.name for column in one.columns) for one in self.inputs}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read, each once, in the order of their first use."""
        return tuple(dict.fromkeys(name for names in self.mapping.values() for name in names))

    @property
    def row_nbytes(self) -> int | None:
        """Bytes that one row takes in the tensors; None where strings or lists vary."""
        total = 0
        for one in self.inputs:
            inner = one.inner if one.inner is not None else one.columns[0].dims
            if one.spec.dtype == "string" or None in inner:
                return None
            itemsize = 2 if one.spec.dtype == "bfloat16" else np.dtype(one.spec.dtype).itemsize
            total += itemsize * math.prod(dim or 0 for dim in inner)
        return total

    def tensors(self, batch: pa.RecordBatch, *, where: str = "", first_row: int = 0) -> dict[str, tf.Tensor]:
        """One tensor per input, its first dimension the rows of the batch, in Arrow's own memory where that is aligned.

        `where` (the file) and `first_row` (the file's row at which the batch begins, from 0) are for messages.
        Raises `NullFeature` for a null at any level, and `ColumnError` for a list of another length.
        """
        return {one.spec.name: one.tensor(batch, where, first_row) for one in self.inputs}


def plan_inputs(
    schema: pa.Schema,
    inputs: Mapping[str, TensorSpec],
    features: Mapping[str, tuple[str, ...]],
    *,
    rules: ColumnRules = ColumnRules(),
    where: str = "",
) -> InputPlan:
    """Finds each tensor's columns and how to read them; `where` (the file) is for messages.

    A tensor that `features` does not name takes the column of its own name; a single tensor without such a column takes
    the only column that fits it. Raises `ColumnError`.
    """
    for tensor in features:
        if tensor not in inputs:
            raise ColumnError(
                f"The model has no input '{tensor}'", found=_listed("inputs", inputs), cure=_nearest(tensor, inputs)
            )
    names = {tensor: tuple(features.get(tensor) or (tensor,)) for tensor in inputs}
    if len(inputs) == 1 and not features and next(iter(inputs)) not in schema.names:
        ((tensor, spec),) = inputs.items()
        names = {tensor: (_only_fit(schema, spec, where),)}
    return InputPlan(tuple(_input(schema, inputs[tensor], columns, where) for tensor, columns in names.items()))


@dataclass(frozen=True, slots=True)
class Output:
    """How one output becomes a column of type `field.type`."""

    spec: TensorSpec
    field: pa.Field

    def __reduce__(self) -> tuple[Any, ...]:
        # pyarrow 25 pickles a fixed-size list's type without its item's nullability, even inside a field or schema.
        return _output, (self.spec, self.field.name)

    def array(self, tensor: tf.Tensor, rows: int) -> pa.Array:
        expected = (rows, *(self.spec.shape or ())[1:])
        shape = tuple(tensor.shape)
        if len(shape) != len(expected) or any(e not in (None, s) for e, s in zip(expected, shape, strict=True)):
            raise UnsupportedModel(
                f"The model's output '{self.spec.name}' has another shape than its rows and its signature say",
                expected=_shown(expected),
                found=_shown(shape),
                cure="Export the model so that each row of the input gives one row of this output.",
            )
        return nested(self.field.type, leaf_array(tensor, math.prod(shape)), shape)


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Which outputs become which columns; survives pickling."""

    outputs: tuple[Output, ...]

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns, in the order of the model's outputs; none of them, and no value in them, is null."""
        return tuple(output.field for output in self.outputs)

    def columns(self, results: Mapping[str, tf.Tensor], rows: int) -> list[pa.Array]:
        """One array of length `rows` per field, in TensorFlow's own memory wherever Arrow has the same layout.

        Raises `UnsupportedModel` where a result does not have one row for each of the input's.
        """
        return [output.array(results[output.spec.name], rows) for output in self.outputs]


def plan_outputs(
    outputs: Mapping[str, TensorSpec], predictions: Mapping[str, str], *, rules: ColumnRules = ColumnRules()
) -> OutputPlan:
    """The columns that the outputs become, named as `predictions` says, else after the output.

    One value a row is a primitive column; a vector is a fixed-size list; more dimensions are an
    `arrow.fixed_shape_tensor`, or lists of lists for strings. A dimension that varies is a list. bfloat16 becomes
    float32. Strings become `binary`: TensorFlow's are any bytes, and whether all are UTF-8 is not known before the last.
    Raises `ColumnError` for names, `UnsupportedModel` for an output that has no row for each row of the input.
    """
    for output in predictions:
        if output not in outputs:
            raise ColumnError(
                f"The model has no output '{output}'", found=_listed("outputs", outputs), cure=_nearest(output, outputs)
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
    return OutputPlan(tuple(_output(outputs[output], column) for column, output in owners.items()))


def _output(spec: TensorSpec, column: str) -> Output:
    kind = arrow_type(spec.dtype, spec.shape[1:]) if spec.shape else None
    if spec.shape is None or not spec.shape or spec.shape[0] is not None or kind is None:
        if spec.shape is not None and kind is None and spec.shape:
            reason = "has a dtype that Arrow cannot hold"
        elif spec.shape is None:
            reason = "has no known rank, so that its column's type cannot be told before the first row"
        else:
            reason = "does not depend on the batch: it has no row for each row of the input"
        raise UnsupportedModel(
            f"The model's output '{spec.name}' {reason}",
            expected="a number, bool or string dtype and a first dimension that varies (None)",
            found=_told(spec),
            cure="Choose another --signature, or export one without this output.",
        )
    return Output(spec, pa.field(column, kind, nullable=False))


def _input(schema: pa.Schema, spec: TensorSpec, names: tuple[str, ...], where: str) -> Input:
    if spec.shape is not None and (not spec.shape or spec.shape[0] is not None):
        raise UnsupportedModel(
            f"The model's input '{spec.name}' has no batch dimension",
            expected="a first dimension that varies (None): a row of data for each",
            found=_told(spec),
            cure="Export the model with a batch dimension of None.",
        )
    columns = [_column(schema, spec, name, where) for name in names]
    target = None if spec.shape is None else spec.shape[1:]
    if len(columns) == 1:
        (column,) = columns
        fit = _match(column.dims, target)
        if fit is None:
            raise _misfit(spec, column.name, column.type, where, "Reshape the column, or name another with --feature.")
        lengths, inner = fit
        return Input(spec, (_with_lengths(column, lengths),), inner)
    for column in columns:
        if column.levels:
            raise _misfit(spec, column.name, column.type, where, "Only scalar columns can be packed side by side.")
    fit = _match((len(columns),), target)
    if fit is None:
        raise ColumnError(
            f"{len(columns)} columns do not fit tensor '{spec.name}'{_in(where)}",
            expected=_told(spec),
            found=", ".join(names),
            cure=f"Give --feature {spec.name}=… as many columns as the tensor has values in a row.",
        )
    return Input(spec, tuple(columns), fit[1])


def _column(schema: pa.Schema, spec: TensorSpec, name: str, where: str) -> Column:
    """The handlers for a column whose values can become the tensor's; shapes are not looked at."""
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        raise ColumnError(
            f"There {'are several columns' if found else 'is no column'} '{name}'{_in(where)} for tensor '{spec.name}'",
            expected=_told(spec),
            found=_listed("columns", schema.names),
            cure="Rename all but one."
            if found
            else _nearest(name, schema.names) + f" Say --feature {spec.name}=COLUMN.",
        )
    kind = schema.field(found[0]).type
    column = column_of(name, kind)
    if column is None:
        raise _misfit(spec, name, kind, where, "Cast the column to a number, bool, string or list of these.")
    if column.leaf.dtype != spec.dtype and not casts_exactly(column.leaf.dtype, spec.dtype):
        cure = f"Write the column as {spec.dtype}, or name another with --feature."
        if column.leaf.dtype in _NUMERIC and spec.dtype in _NUMERIC:
            cure = f"Values could change, so nothing is cast: write the column as {spec.dtype}."
        raise _misfit(spec, name, kind, where, cure)
    return column


def _only_fit(schema: pa.Schema, spec: TensorSpec, where: str) -> str:
    fitting = [name for name in dict.fromkeys(schema.names) if _fits(schema, spec, name)]
    if len(fitting) == 1:
        return fitting[0]
    raise ColumnError(
        f"{'Several columns fit' if fitting else 'No column fits'} the model's only input '{spec.name}'{_in(where)}",
        expected=f"one column for {_told(spec)}",
        found=", ".join(fitting) or ", ".join(f"{field.name}: {field.type}" for field in schema),
        cure=f"Name the column: --feature {spec.name}=COLUMN.",
    )


def _fits(schema: pa.Schema, spec: TensorSpec, name: str) -> bool:
    try:
        _input(schema, spec, (name,), "")
    except ColumnError:
        return False
    return True


def casts_exactly(source: str, target: str) -> bool:
    """Whether every value of the one dtype is a value of the other; bool counts as 0 and 1."""
    if source not in _NUMERIC or target not in _NUMERIC or source == "bfloat16":
        return False
    significand = _SIGNIFICAND_BITS.get(target)
    if significand and np.dtype(source).kind in "iu":
        return int(np.iinfo(source).max).bit_length() <= significand
    if target == "bfloat16":
        return source == "bool"
    return np.can_cast(source, target, "safe")


def _match(
    dims: tuple[int | None, ...], target: tuple[int | None, ...] | None
) -> tuple[tuple[int | None, ...], tuple[int, ...] | None] | None:
    """Holds the shape of a column's row against the tensor's: the lengths that the column's levels must have and the
    tensor's shape beyond the batch (None where the rows decide), or None where they do not fit.
    """
    if target is None:
        return dims, _known(dims)
    if len(dims) == len(target) and all(d is None or t is None or d == t for d, t in zip(dims, target, strict=True)):
        lengths = tuple(t if d is None else d for d, t in zip(dims, target, strict=True))
        return lengths, _known(lengths)
    if not dims and target == (None,):
        return (), (1,)
    inner = _known(target)
    if inner is None:
        return None
    if len(dims) == 1 and dims[0] in (None, math.prod(inner)):
        return (math.prod(inner),), inner
    if None not in dims and [d for d in dims if d != 1] == [t for t in inner if t != 1]:
        return dims, inner
    return None


def _known(dims: tuple[int | None, ...]) -> tuple[int, ...] | None:
    known = tuple(dim for dim in dims if dim is not None)
    return known if len(known) == len(dims) else None


def _with_lengths(column: Column, lengths: tuple[int | None, ...]) -> Column:
    """The column, its lists held to these lengths from the outermost in."""
    levels: list[Level] = []
    at = 0
    for level in column.levels:
        levels.append(EqualLists((lengths[at],)) if isinstance(level, EqualLists) else level)
        at += len(level.dims)
    return replace(column, levels=tuple(levels))


def _misfit(spec: TensorSpec, name: str, kind: pa.DataType, where: str, cure: str) -> ColumnError:
    return ColumnError(
        f"Column '{name}'{_in(where)} does not fit tensor '{spec.name}'",
        expected=_told(spec),
        found=str(kind),
        cure=cure,
    )


def _told(spec: TensorSpec) -> str:
    if spec.shape is None:
        return f"{spec.dtype} of any shape"
    return f"{spec.dtype} {_shown(spec.shape)}"


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join(str(dim) for dim in shape)}]"


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 3, 0.5)
    return f"Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""


def _listed(what: str, names: Iterable[str]) -> str:
    every = list(names)
    rest = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return f"{what} {', '.join(every[:20])}{rest}" if every else f"no {what}"


def _in(where: str) -> str:
    return f" in {where}" if where else ""
