"""Plans from schema and signature, before any row: the columns that feed the model, the kept ones, and the output's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import ColumnError, InvalidRequest
from ..models.spec import Signature, TensorSpec
from .constant_inputs import Constant, plan_constants
from .inputs import InputPlan, OutputPlan, check_inputs, plan_inputs, plan_outputs
from .rules import ColumnRules
from .struct_paths import known_name
from .top_k import TopK, plan_best_classes
from .wording import listed, nearest, unknown

_BATCH_BYTES = 2 << 20
_MOST_BATCH_ROWS = 8192
# For rows as large as images: a few at once, because one pass over the model's weights then serves several.
_LARGE_ROWS, _LARGE_BATCH_BYTES = 8, 16 << 20
_VARIABLE_LENGTH_ROWS = 1024
# The bytes of a batch as it is read, kept columns included: some four batches are in flight for each core.
MOST_READ_BYTES = 32 << 20
_AUTO = "auto/3"


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The choices for one model's columns: tensor to column or columns, output to column, and what may be done to values.

    `name` distinguishes several models of one job. An output that `predictions` leaves out becomes the column `NAME_OUTPUT`, or
    `OUTPUT` where there is no name. `outputs` are those that become columns, None for all that have a row for each row.
    `constants` are inputs whose value, as typed, is the same for every row. `top_k` are outputs whose best classes become
    columns; the output's own column is then left out, unless `outputs` names it. `row_by_row`: each batch is one row, so that
    an output of one row for any batch has one for each, if it is named. `ranks` are those of outputs whose rank
    the signature lacks, as running the model has shown. Hashable; survives pickling.
    """

    name: str = ""
    features: tuple[tuple[str, tuple[str, ...]], ...] = ()
    predictions: tuple[tuple[str, str], ...] = ()
    rules: ColumnRules = ColumnRules()
    outputs: tuple[str, ...] | None = None
    constants: tuple[tuple[str, str], ...] = ()
    top_k: tuple[TopK, ...] = ()
    row_by_row: bool = False
    ranks: tuple[tuple[str, int], ...] = ()

    def fed(self, signature: Signature) -> Signature:
        """The signature without the inputs that are constants."""
        constant = dict(self.constants)
        return replace(
            signature, inputs={name: spec for name, spec in signature.inputs.items() if name not in constant}
        )


@dataclass(frozen=True)
class ModelPlan:
    """How one model is fed and what becomes of its outputs. `batch_rows` is its fixed batch; None where it varies.
    `one_row`: it is 1 because the model makes one row of any batch. `own_sizes`: a call takes one row, whose image has its own
    size. The outputs `of_one_row` then belong to that row as a whole: they have no batch dimension.
    """

    inputs: InputPlan
    outputs: OutputPlan
    batch_rows: int | None
    constants: tuple[Constant, ...] = ()
    one_row: bool = False
    own_sizes: bool = False
    of_one_row: frozenset[str] = frozenset()

    def tensors(self, batch: pa.RecordBatch, where: str, first_row: int) -> dict[str, Any]:
        """All that the model is called with. Raises as `InputPlan.tensors`."""
        fed = self.inputs.tensors(batch, where=where, first_row=first_row)
        return fed | {one.spec.name: one.tensor(batch.num_rows) for one in self.constants}

    def resolved(self, choice: ColumnChoice) -> ColumnChoice:
        """The choice with nothing left to a default."""
        columns = [(output.spec.name, output.field.name) for output in self.outputs.outputs]
        outputs = tuple(output for output, _ in columns)
        features = tuple(sorted(self.inputs.mapping.items()))
        best = tuple(best.asked for best in self.outputs.best)
        return replace(choice, features=features, predictions=tuple(columns), outputs=outputs, top_k=best)


@dataclass(frozen=True)
class ColumnPlan:
    """`columns` feed the models or are kept, in order; `output_schema` holds kept columns, then predictions."""

    models: tuple[ModelPlan, ...]
    keep: tuple[str, ...]
    columns: tuple[str, ...]
    output_schema: pa.Schema


def plan_columns(
    schema: pa.Schema,
    models: Sequence[tuple[Signature, ColumnChoice]],
    keep: Sequence[str] | None,
    *,
    partition_columns: Collection[str] = (),
    where: str = "",
) -> ColumnPlan:
    """`keep=None` keeps every column that neither feeds a model nor is one of the output's `partition_columns`; `where` (the
    file) is for messages.

    Raises `ColumnError` for columns that do not fit, `UnsupportedModel` for inputs and outputs without a batch.
    """
    names = schema.names  # a new list each time that it is asked for
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise ColumnError(
            f"{where or 'The input'} has several columns named {repeated[0]!r}",
            expected="a name for each column",
            found=listed("columns", names),
            cure="Rename all but one of them",
        )
    plans = tuple(_plan_model(schema, signature, choice, where) for signature, choice in models)
    features = {name for plan in plans for name in plan.inputs.columns}
    # A struct whose member feeds a model passes through like any other column.
    full_features = {name for plan in plans for name in plan.inputs.whole_columns}
    # Readers of Parquet take such a column from the folders, and most of them no file that has it as well.
    aside = full_features.union(partition_columns)
    kept = tuple(keep) if keep is not None else tuple(name for name in names if name not in aside)
    known = set(names)
    kept = tuple(dict.fromkeys(known_name(name, known) for name in kept))
    for name in kept:
        if name not in known:
            raise ColumnError(
                f"--keep names a column {name!r} that {where or 'the input'} lacks",
                expected=f"one of the {listed('columns', names)}",
                found=name,
                cure=nearest(name, names) or "Name columns of the input, or --keep= for none",
            )
    owners = dict.fromkeys(kept, "a kept column")
    for plan, (_, choice) in zip(plans, models, strict=True):
        named = [(output.field.name, output.spec.name) for output in plan.outputs.outputs]
        named += [(field.name, best.spec.name) for best in plan.outputs.best for field in best.fields]
        for column, output in named:
            title = f"{choice.name}.{output}".lstrip(".")
            if column in owners:
                raise ColumnError(
                    f"The model's output {title!r} and {owners[column]} would both be {column!r}",
                    expected="a name of its own for each column of the output",
                    found=f"{listed('kept columns', kept)}; "
                    + listed("predictions", (field.name for plan in plans for field in plan.outputs.fields)),
                    cure=f"Rename the prediction, as in --prediction {title}={column}_predicted"
                    + (", or leave it out of --keep" if column in kept else ""),
                )
            owners[column] = f"the output {title!r}"
    wanted = features.union(kept)
    columns = tuple(name for name in names if name in wanted)
    # Files may differ in whether a column can be null, and the first speaks for all of them.
    fields = [schema.field(name).with_nullable(True) for name in kept]
    return ColumnPlan(plans, kept, columns, pa.schema(fields + [f for plan in plans for f in plan.outputs.fields]))


def _plan_model(schema: pa.Schema, signature: Signature, choice: ColumnChoice, where: str) -> ModelPlan:
    constants = plan_constants(signature.inputs, dict(choice.constants))
    signature = choice.fed(signature)
    inputs, outputs = varying_batch(signature, choice)
    return ModelPlan(
        plan_inputs(schema, inputs, dict(choice.features), rules=choice.rules, where=where),
        _plan_outputs(outputs, choice),
        fixed_batch(signature),
        constants,
        makes_one_row(signature),
        choice.rules.own_sizes(inputs),
        outputs_of_one_row(signature, choice.rules),
    )


def _plan_outputs(outputs: Mapping[str, TensorSpec], choice: ColumnChoice) -> OutputPlan:
    some, predictions = selected(outputs, choice), dict(choice.predictions)
    if choice.name:
        predictions = {output: f"{choice.name}_{output}" for output in outputs} | predictions
    named = {output: column for output, column in predictions.items() if output in some or output not in outputs}
    best = [replace(asked, column=asked.column or predictions.get(asked.output, "")) for asked in choice.top_k]
    planned = plan_outputs(some, named, rules=choice.rules)
    return replace(planned, best=tuple(plan_best_classes(outputs, asked) for asked in best))


def selected(outputs: Mapping[str, TensorSpec], choice: ColumnChoice) -> dict[str, TensorSpec]:
    """The outputs that become columns: the requested ones, or all except those with one value for the whole batch and those
    whose best classes become columns.

    Raises `ColumnError` for a name that is not an output.
    """
    for name in choice.outputs or ():
        if name not in outputs:
            raise unknown("--outputs (outputs) names no output of the model:", name, "outputs", outputs)
    best = {asked.output for asked in choice.top_k}
    for name, _ in choice.predictions:
        if choice.outputs is not None and name in outputs and name not in (*choice.outputs, *best):
            raise ColumnError(
                f"--prediction names the output '{name}', which --outputs leaves out",
                expected=f"one of {', '.join(choice.outputs)}",
                found=name,
                cure=f"Add {name} to --outputs, or leave its --prediction out.",
            )
    if choice.outputs is not None:
        return {name: spec for name, spec in outputs.items() if name in choice.outputs}
    asked = dict(choice.predictions)
    with_rows = {name: spec for name, spec in outputs.items() if name in asked or not of_whole_batch(spec)}
    return {name: spec for name, spec in (with_rows or outputs).items() if name not in best}


def of_whole_batch(spec: TensorSpec) -> bool:
    """Whether an output lacks a row for each row: labels, a version, a loss."""
    return spec.shape is not None and (not spec.shape or spec.shape[0] is not None)


def check_choice(signature: Signature, choice: ColumnChoice) -> None:
    """Checks a choice against the signature. Raises `ColumnError` for names and values, `UnsupportedModel` for outputs."""
    plan_constants(signature.inputs, dict(choice.constants))
    signature = choice.fed(signature)
    check_inputs(signature.inputs, dict(choice.features), choice.rules)
    outputs = varying_batch(signature, choice)[1]
    if not unknown_ranks(outputs, choice):  # of those, a row is run first
        _plan_outputs(outputs, choice)


def unknown_ranks(outputs: Mapping[str, TensorSpec], choice: ColumnChoice) -> list[str]:
    """The outputs that become columns and whose rank is not known."""
    return [name for name, spec in selected(outputs, choice).items() if spec.shape is None]


def fixed_batch(signature: Signature) -> int | None:
    """The batch that a model asks for: every input's first dimension, where all have the same one; 1 where it makes one row of
    any batch.
    """
    first = {spec.shape[0] if spec.shape and not spec.composite else None for spec in signature.inputs.values()}
    found = first.pop() if len(first) == 1 else None
    return 1 if found is None and makes_one_row(signature) else found


def makes_one_row(signature: Signature) -> bool:
    """Whether batches of any size go in, and nothing comes out that has a row for each, but something that has one row."""
    open_batch = any(spec.shape is None or spec.shape[:1] == (None,) for spec in signature.inputs.values())
    first = [spec.shape[:1] if spec.shape is not None else (None,) for spec in signature.outputs.values()]
    return open_batch and (None,) not in first and (1,) in first


def varying_batch(
    signature: Signature, choice: ColumnChoice = ColumnChoice()
) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Inputs and outputs for comparison with columns: a batch of fixed size is filled up later, and varies here. Outputs of
    one row get a batch dimension.
    """
    rows, ranks = fixed_batch(signature), dict(choice.ranks)
    inputs, outputs = (
        {name: _varying(spec, rows) for name, spec in specs.items()} for specs in (signature.inputs, signature.outputs)
    )
    if choice.row_by_row or choice.rules.own_sizes(inputs):
        named = {*(choice.outputs or ()), *dict(choice.predictions), *(one.output for one in choice.top_k)}
        outputs |= {name: _varying(outputs[name], 1) for name in named if name in outputs}
    for name in outputs_of_one_row(signature, choice.rules):
        outputs[name] = replace(outputs[name], shape=(None, *(signature.outputs[name].shape or ())))
    for name, rank in ranks.items():
        if name in outputs and outputs[name].shape is None:
            outputs[name] = replace(outputs[name], shape=(None,) * rank)
    return inputs, outputs


def outputs_of_one_row(signature: Signature, rules: ColumnRules) -> frozenset[str]:
    """The outputs that belong to one row as a whole: those without a batch dimension, of a model that is fixed to one row
    whose image has its own size.
    """
    if fixed_batch(signature) != 1 or not rules.own_sizes(signature.inputs):
        return frozenset()
    return frozenset(
        name for name, spec in signature.outputs.items() if spec.shape is not None and spec.shape[:1] != (1,)
    )


def _varying(spec: TensorSpec, rows: int | None) -> TensorSpec:
    if rows is None or not spec.shape or spec.shape[0] != rows:
        return spec
    return replace(spec, shape=(None, *spec.shape[1:]))


def choose_batch_rows(plan: ColumnPlan, asked: int | None) -> tuple[int, str]:
    """Rows per batch and the rule that gave them; `asked=None` leaves them to `auto_batch_rows`.

    Raises `InvalidRequest` where a model is fixed to another batch.
    """
    fixed = sorted({model.batch_rows for model in plan.models if model.batch_rows is not None})
    if any(model.own_sizes for model in plan.models):
        if fixed not in ([], [1]) or asked not in (None, 1):
            raise InvalidRequest(
                f"--batch_size={asked or 'auto'} does not fit images of their own size",
                expected="1: a call of the model takes one such image",
                found=str(asked) if asked not in (None, 1) else f"a model that is fixed to {fixed[-1]} rows",
                cure="Leave --batch_size out, or resize the images: --decode_image TENSOR=HxW",
            )
        return 1, "images of their own size"
    if len(fixed) > 1 or (fixed and asked not in (None, *fixed)):
        raise InvalidRequest(
            f"--batch_size={asked or 'auto'} does not fit the models",
            expected=f"the batch that a model is fixed to: {' and '.join(map(str, fixed))}",
            found=str(asked) if len(fixed) == 1 else "models fixed to different batches",
            cure="Leave --batch_size out" if len(fixed) == 1 else "Run a job for each of these models",
        )
    return (asked, "given") if asked else auto_batch_rows(plan)


def auto_batch_rows(plan: ColumnPlan) -> tuple[int, str]:
    """Rows per batch and the rule that gave them: a pure function of schema and signature."""
    if fixed := [model.batch_rows for model in plan.models if model.batch_rows is not None]:
        one_row = any(model.one_row for model in plan.models)
        return max(fixed), "the model makes one row of any batch" if one_row else "the batch that the model is fixed to"
    sizes = [model.inputs.row_nbytes for model in plan.models]
    outputs = max(known_row_nbytes(model.outputs.specs) for model in plan.models)
    return rows_that_fit(None if None in sizes else max(size or 0 for size in sizes), outputs)


def rows_that_fit(inputs: int | None, outputs: int) -> tuple[int, str]:
    """As `auto_batch_rows`, for rows of so many bytes in a model's inputs, None where that varies, and in its outputs.

    The larger of both stays near 2 MiB: a small network took equal CPU per row in batches of 2,048 to 16,384 rows of 256
    bytes, more in larger ones, and each batch costs the interpreter's lock as much as another. The outputs count since
    a model may make of a number or a text many times their bytes.
    """
    row_bytes = max(1, inputs or 0, outputs)
    fits = max(1, _BATCH_BYTES // row_bytes, min(_LARGE_ROWS, _LARGE_BATCH_BYTES // row_bytes))
    most = _MOST_BATCH_ROWS if inputs is not None else _VARIABLE_LENGTH_ROWS
    rows = min(most, 1 << (fits.bit_length() - 1))
    size = f"{row_bytes} bytes a row" if inputs is not None else f"{outputs} bytes a row of outputs (its inputs vary)"
    rule = f"{_AUTO}: the power of two at or below 2 MiB / {size}, at most {most}, at least {_LARGE_ROWS} within 16 MiB"
    return rows, f"{rule}; fewer in files of which so many rows are read as more than 32 MiB"


def is_auto(rule: str) -> bool:
    """Whether the rule comes from `rows_that_fit`."""
    return rule.startswith(_AUTO)


def rows_within(row_bytes: int) -> int:
    """Rows that hold at most `MOST_READ_BYTES` when each has so many bytes: a power of two, or 1."""
    return 1 << max(1, MOST_READ_BYTES // max(1, row_bytes)).bit_length() - 1


def row_nbytes(spec: TensorSpec) -> int | None:
    """Bytes that one row takes in the tensor; None where that varies."""
    inner = None if spec.shape is None else spec.shape[1:]
    if inner is None or None in inner or spec.dtype == "string":
        return None
    itemsize = 2 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize
    return itemsize * math.prod(dim or 0 for dim in inner)


def known_row_nbytes(specs: Iterable[TensorSpec]) -> int:
    """Bytes that one row takes in those of the tensors whose rows are all of one size."""
    return sum(row_nbytes(spec) or 0 for spec in specs)
