"""RecordBatch to tensors and back. Everything that depends only on schema and signature is checked when a plan is made.

A column fits where each row has the tensor's shape beyond the batch. In addition, a flat list of as many values as the
tensor's known dimensions multiply to is taken row-major, dimensions of 1 may be missing or extra, and several scalar
columns are packed side by side. A column may be the member of a struct, by its path (`payload.pixels`); a column with that
very name wins. Casts happen only where no value can change, bool becomes 0 and 1; `ColumnRules` allows more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import ColumnError, DataError, NullFeature, UnsupportedModel
from ..models.spec import ExampleFeature, TensorSpec
from ..models.streaming.dlpack import to_tensor
from ..nested_arrow import numbers_in
from .casts import NUMERIC, UncastableError, can_cast, cast, casts_exactly, is_float, numpy_dtype
from .column import Column, column_of
from .composite_inputs import CompositeInput, composite_columns, composite_input
from .example_inputs import (
    ExampleInput,
    check_feature_column,
    check_held_examples,
    encoded_features,
    example_cure,
    feature_rule,
    row_inputs,
)
from .fitting import match, misfit, misfit_type, with_lengths
from .nesting import RaggedLists
from .outputs import Output, OutputPlan, output_plan
from .rules import ColumnRules, TensorRule, tensor_rules
from .struct_paths import member_type, path_names, path_of
from .wording import described, listed, nearest, within

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["ColumnRules", "Input", "InputPlan", "Output", "OutputPlan", "plan_inputs", "plan_outputs"]


@dataclass(frozen=True, slots=True)
class Input:
    """How one tensor is read. `inner` is its shape beyond the batch; None where the rows decide. `alike` names the columns
    where they are all plain numbers of one type.
    """

    spec: TensorSpec
    columns: tuple[Column, ...]
    inner: tuple[int, ...] | None
    alike: list[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kind = self.columns[0].type
        alike = all(column.is_plain_number and column.type == kind for column in self.columns)
        object.__setattr__(self, "alike", [column.name for column in self.columns] if alike else [])

    @property
    def mapping(self) -> dict[str, tuple[str, ...]]:
        return {self.spec.name: tuple(column.name for column in self.columns)}

    @property
    def row_nbytes(self) -> int | None:
        inner = self.inner if self.inner is not None else self.columns[0].dims
        if self.spec.dtype == "string" or None in inner:
            return None
        itemsize = 2 if self.spec.dtype == "bfloat16" else np.dtype(self.spec.dtype).itemsize
        return itemsize * math.prod(dim or 0 for dim in inner)

    def tensors(self, batch: pa.RecordBatch, where: str, first_row: int) -> dict[str, tf.Tensor]:
        if len(self.columns) > 1:
            return {self.spec.name: self._packed(batch, where, first_row)}
        return {self.spec.name: self.columns[0].tensor(batch, self.inner, where, first_row)}

    def _packed(self, batch: pa.RecordBatch, where: str, first_row: int) -> tf.Tensor:
        rows, shape = batch.num_rows, (batch.num_rows, *(self.inner or (len(self.columns),)))
        if self.spec.dtype == "string":
            import tensorflow as tf

            return tf.reshape(
                tf.stack([column.tensor(batch, (), where, first_row) for column in self.columns], axis=1), shape
            )
        if (side_by_side := self._side_by_side(batch)) is not None:
            return to_tensor(side_by_side.reshape(shape), self.spec.dtype)
        dtype = numpy_dtype(self.spec.dtype)
        buffer = pa.allocate_buffer(rows * len(self.columns) * dtype.itemsize)
        packed = numbers_in(buffer, dtype).reshape(rows, len(self.columns))
        for place, column in enumerate(self.columns):
            packed[:, place] = column.numbers(batch, where, first_row)
        return to_tensor(packed.reshape(shape), self.spec.dtype)

    def _side_by_side(self, batch: pa.RecordBatch) -> np.ndarray[Any, Any] | None:
        """The values where Arrow can pack them at once: of hundreds of columns, each takes Python longer than its values do.
        None where a column has nulls or another type than planned, and where a value cannot be cast.
        """
        if not self.alike:
            return None
        chosen, kind = batch.select(self.alike), self.columns[0].type
        try:
            packed = chosen.to_tensor()
        except pa.ArrowTypeError:  # nulls
            return None
        if not all(one.type == kind for one in chosen.schema):
            return None
        with suppress(UncastableError):
            return cast(packed.to_numpy().reshape(-1), self.spec.dtype)
        return None


AnyInput = Input | ExampleInput | CompositeInput


@dataclass(frozen=True, slots=True)
class InputPlan:
    """Which columns become which tensors, and how; survives pickling."""

    inputs: tuple[AnyInput, ...]

    @property
    def mapping(self) -> Mapping[str, tuple[str, ...]]:
        """Name of a tensor, or of a feature that is encoded, to its column or columns, members of structs by their path."""
        return {name: columns for feed in self.inputs for name, columns in feed.mapping.items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """The top-level columns to read, each once, in the order of their first use."""
        return tuple(dict.fromkeys(column.path[0] for feed in self.inputs for column in feed.columns))

    @property
    def whole_columns(self) -> tuple[str, ...]:
        """The `columns` that are features as a whole. A struct with one member read is not: it is kept by default."""
        return tuple(
            dict.fromkeys(column.path[0] for feed in self.inputs for column in feed.columns if len(column.path) == 1)
        )

    @property
    def row_nbytes(self) -> int | None:
        """Bytes that one row takes in the tensors; None where strings or lists vary."""
        sizes = [feed.row_nbytes for feed in self.inputs]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def unasked_examples(self, named: Collection[str]) -> list[Input]:
        """Inputs of serialized messages that a column feeds as it is, though they are not `named`."""
        return [
            feed
            for feed in self.inputs
            if isinstance(feed, Input) and feed.spec.example and feed.spec.name not in named
        ]

    def check_held_examples(self, named: Collection[str], batch: pa.RecordBatch, where: str) -> None:
        """Raises `ColumnError` where such a column holds something else in the batch's first rows."""
        for feed in self.unasked_examples(named):
            check_held_examples(feed.spec, feed.columns[0], batch, where)

    def tensors(self, batch: pa.RecordBatch, *, where: str = "", first_row: int = 0) -> dict[str, tf.Tensor]:
        """One tensor per input, its first dimension the rows of the batch, in Arrow's own memory where that is aligned; of a
        ragged or sparse input its parts, by their names.

        `where` (the file) and `first_row` (the file's row at which the batch begins, from 0) are for messages.
        Raises `NullFeature` for a null that nothing fills, and `ColumnError` for a list of another length, a value that
        cannot be cast and an image that cannot be decoded; all name the first such row.
        """
        made = [feed.tensors(batch, where, first_row) for feed in self.inputs]
        return {name: tensor for tensors in made for name, tensor in tensors.items()}

    def unfit(self, batch: pa.RecordBatch, where: str, first_row: int) -> dict[int, str]:
        """Rows of the batch, from 0, that no tensor can hold, each with its own error; not those that fail only together."""
        found: dict[int, str] = {}
        left = np.arange(batch.num_rows)
        for feed in self.inputs:
            while len(left):
                alike = _unfit(feed, batch, left, where, first_row)
                if not alike:
                    break
                found |= alike
                keep = ~np.isin(left, list(alike))
                left, batch = left[keep], batch.filter(pa.array(keep))
        return found


def _unfit(
    feed: AnyInput, batch: pa.RecordBatch, rows: np.ndarray[Any, Any], where: str, first_row: int
) -> dict[int, str]:
    """Some of the rows that fail, all of them in the same way, if any does; `rows` are the batch's by their numbers."""
    try:
        feed.tensors(batch, where, first_row)
    except (ColumnError, NullFeature) as error:
        alike = error.alike
    else:
        return {}
    if not alike:  # as for images: check each row
        errors = ((int(row), _error_of(feed, batch, i, where, first_row + int(row))) for i, row in enumerate(rows))
        return {row: str(error) for row, error in errors if error is not None}
    first, found = alike[0]
    row = first_row + int(rows[first])
    error_of_first = _error_of(feed, batch, first, where, row)
    if error_of_first is None:
        return {}
    what, rest = error_of_first.what, str(error_of_first)[len(error_of_first.what) :]
    return {
        int(rows[i]): what.replace(f"in row {row}", f"in row {first_row + int(rows[i])}")
        + rest.replace(f"Found: {found}", f"Found: {other}", 1)
        for i, other in alike
    }


def _error_of(feed: AnyInput, batch: pa.RecordBatch, index: int, where: str, row: int) -> DataError | None:
    try:
        feed.tensors(batch.slice(index, 1), where, row)
    except (ColumnError, NullFeature) as error:
        return error
    return None


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
    the only column that fits it, times and structs aside. Raises `ColumnError`.
    """
    ruled = check_inputs(inputs, features, rules)
    encoded = encoded_features(inputs, rules)
    names = {tensor: tuple(features.get(tensor) or (tensor,)) for tensor in ruled}
    if len(inputs) == 1 and not features and not encoded and path_of(schema, next(iter(inputs))) is None:
        ((tensor, spec),) = inputs.items()
        names = {tensor: (_only_match(schema, spec, ruled[tensor], where),)}

    def plan(tensor: str, spec: TensorSpec) -> AnyInput:
        if tensor not in encoded:
            return _input(schema, spec, names[tensor], ruled[tensor], where)
        found = encoded[tensor]
        columns = tuple(
            _of_feature(schema, tensor, feature, names[name], ruled[name], where) for name, feature in found.items()
        )
        return ExampleInput(spec, tuple(found.values()), tuple(found), columns)

    return InputPlan(tuple(plan(tensor, spec) for tensor, spec in inputs.items()))


def check_inputs(
    inputs: Mapping[str, TensorSpec], features: Iterable[str], rules: ColumnRules
) -> dict[str, TensorRule]:
    """The rule for each tensor's values. Raises `ColumnError` for a name or value that does not suit the model."""
    rows, encoded = row_inputs(inputs, rules), encoded_features(inputs, rules)
    for tensor in features:
        if tensor in encoded:
            raise ColumnError(
                f"--feature and --tf_example both name '{tensor}'",
                expected=f"a column for a feature of its examples: {', '.join(encoded[tensor])}",
                found=f"a column for '{tensor}' itself",
                cure="Leave --tf_example out if that column holds serialized examples.",
            )
        if tensor not in rows:
            raise ColumnError(
                f"The model has no input '{tensor}'",
                expected="the name of one of its inputs",
                found=listed("inputs", rows),
                cure=nearest(tensor, rows) or "Name one of these instead.",
            )
    ruled = tensor_rules(rules, rows)
    return ruled | {
        name: feature_rule(ruled[name], feature) for some in encoded.values() for name, feature in some.items()
    }


def plan_outputs(
    outputs: Mapping[str, TensorSpec], predictions: Mapping[str, str], *, rules: ColumnRules = ColumnRules()
) -> OutputPlan:
    """The columns that the outputs become, named as `predictions` says, else after the output.

    One value a row is a primitive column. By `rules.prediction_type`, a vector is a fixed-size list ("auto", "list") or an
    `arrow.fixed_shape_tensor` ("tensor"); more dimensions are such a tensor ("auto", "tensor") or lists of lists ("list").
    Strings, bools, ragged outputs and dimensions that vary are always lists. bfloat16 becomes float32. Strings become `binary`:
    TensorFlow's are any bytes, and whether all are UTF-8 is not known before the last.
    Raises `ColumnError` for names, `UnsupportedModel` for an output that has no row for each row of the input.
    """
    return output_plan(outputs, predictions, rules.prediction_type)


def _input(
    schema: pa.Schema, spec: TensorSpec, names: tuple[str, ...], rule: TensorRule, where: str
) -> Input | CompositeInput:
    if spec.shape is not None and (not spec.shape or spec.shape[0] is not None):
        raise UnsupportedModel(
            f"The model's input '{spec.name}' has no batch dimension",
            expected="a first dimension that varies (None): a row of data for each",
            found=described(spec),
            cure=f"Give its value, as --constant {spec.name}=VALUE (constants={{{spec.name!r}: …}}), or export the model "
            "with a batch dimension of None.",
        )
    if spec.composite is not None:
        read = composite_columns(schema, spec, names, rule)
        return composite_input(spec, tuple(_column(schema, one, name, own, where) for one, name, own in read), where)
    columns = [_column(schema, spec, name, rule, where) for name in names]
    target = None if spec.shape is None else spec.shape[1:]
    if len(columns) == 1:
        (column,) = columns
        fit = match(column.dims, target)
        if fit is None:
            raise misfit(spec, column, where, "Reshape the column, or name another with --feature.")
        lengths, inner = fit
        return Input(spec, (with_lengths(column, lengths),), inner)
    for column in columns:
        if column.dims:
            raise misfit(spec, column, where, "Only scalar columns can be packed side by side.")
    fit = match((len(columns),), target)
    if fit is None:
        raise ColumnError(
            f"{len(columns)} columns do not fit tensor '{spec.name}'{within(where)}",
            expected=described(spec),
            found=", ".join(names),
            cure=f"Give --feature {spec.name}=… as many columns as the tensor has values in a row.",
        )
    return Input(spec, tuple(columns), fit[1])


def _of_feature(
    schema: pa.Schema, tensor: str, feature: ExampleFeature, names: tuple[str, ...], rule: TensorRule, where: str
) -> Column:
    """The column of one feature of the examples that feed `tensor`; one value is as good as a list of it."""
    spec = TensorSpec(rule.tensor, feature.dtype, (None, *feature.shape))
    check_feature_column(schema, tensor, feature, spec, names, where)
    column = _input(schema, spec, names, rule, where).columns[0]
    if feature.steps and not any(isinstance(level, RaggedLists) for level in column.levels):
        raise misfit(spec, column, where, "Write it as lists, one item for each feature of the feature list.")
    return column


def _column(schema: pa.Schema, spec: TensorSpec, name: str, rule: TensorRule, where: str) -> Column:
    """The handlers for a column whose values can become the tensor's; shapes are not checked."""
    path = path_of(schema, name)
    if path is None and (path := path_of(schema, name.strip())) is not None:
        name = name.strip()
    if path is None or len(schema.get_all_field_indices(path[0])) != 1:
        found = path is not None
        amount = "There are several columns" if found else "There is no column"
        raise ColumnError(
            f"{amount} '{name}'{within(where)} for tensor '{spec.name}'",
            expected=described(spec),
            found=listed("columns", schema.names),
            cure="Rename all but one."
            if found
            else nearest(name, path_names(schema)) + f" Say --feature {spec.name}=COLUMN." + example_cure(spec),
        )
    kind = schema.field(path[0]).type
    column = column_of(name, path, kind, rule)
    if column is None:
        found_kind = member_type(kind, path)
        raise misfit_type(spec, name, str(found_kind), where, _cure(found_kind, spec, name, rule))
    own = column.leaf.dtype
    if own == spec.dtype and column.leaf.exact:
        return column
    if casts_exactly(own, spec.dtype) and column.leaf.exact:
        return column
    possible = can_cast(own, spec.dtype) and (column.leaf.exact or is_float(spec.dtype))
    if possible and rule.cast:
        return column
    cure = f"Write the column as {spec.dtype}, or name another with --feature."
    if possible:
        cure = f"Values could change, so nothing is cast: write the column as {spec.dtype}, or say --cast {spec.name}."
    elif own in NUMERIC and spec.dtype in NUMERIC:
        cure = f"A decimal becomes a fraction only: write the column as {spec.dtype}."
    raise misfit(spec, column, where, cure)


def _cure(kind: pa.DataType, spec: TensorSpec, name: str, rule: TensorRule) -> str:
    """The fix for a column that no handler reads."""
    if pa.types.is_struct(kind) and kind.num_fields:
        members = ", ".join(f"{name}.{kind.field(i).name}" for i in range(kind.num_fields))
        return f"Name one of its members: --feature {spec.name}=MEMBER, of {members}."
    if rule.image is not None:
        return f"--decode_image {spec.name}=… takes a column of binary or strings that hold JPEG or PNG files."
    return "Cast the column to a number, bool, string or list of these."


def _only_match(schema: pa.Schema, spec: TensorSpec, rule: TensorRule, where: str) -> str:
    fitting = [name for name in dict.fromkeys(schema.names) if _fits(schema, spec, name, rule)]
    if rule.image is not None:  # text next to images is their names
        fitting = [name for name in fitting if _holds_bytes(schema.field(name).type)] or fitting
    if len(fitting) == 1:
        return fitting[0]
    raise ColumnError(
        f"{'Several columns fit' if fitting else 'No column fits'} the model's only input '{spec.name}'{within(where)}",
        expected=f"one column for {described(spec)}",
        found=", ".join(fitting) or ", ".join(f"{field.name}: {field.type}" for field in schema),
        cure=f"Name the column: --feature {spec.name}=COLUMN." + example_cure(spec),
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _fits(schema: pa.Schema, spec: TensorSpec, name: str, rule: TensorRule) -> bool:
    """Whether the column may be chosen where none is named; a time that is read as a number is never chosen."""
    try:
        plan = _input(schema, spec, (name,), rule, "")
    except ColumnError:
        return False
    return not plan.columns[0].leaf.meaning
