"""Which columns feed the model, which stay, what the output holds: settled from schema and signature, before any row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import pyarrow as pa

from transforms.errors import ColumnError
from transforms.models.spec import Signature
from transforms.tensors import InputPlan, OutputPlan, plan_inputs, plan_outputs

_BATCH_BYTES = 1 << 20
_MOST_BATCH_ROWS = 4096
_VARIABLE_LENGTH_ROWS = 1024


@dataclass(frozen=True)
class ColumnPlan:
    """`columns` are read, in order; `output_schema` is that of every prediction file: kept columns, then predictions."""

    inputs: InputPlan
    outputs: OutputPlan
    keep: tuple[str, ...]
    columns: tuple[str, ...]
    output_schema: pa.Schema


def plan_columns(
    schema: pa.Schema,
    signature: Signature,
    features: Mapping[str, tuple[str, ...]],
    predictions: Mapping[str, str],
    keep: Sequence[str] | None,
    *,
    where: str = "",
) -> ColumnPlan:
    """`keep=None` keeps every column that is no feature; `where` (the file) is for messages.

    Raises `ColumnError` for columns that do not fit, `UnsupportedModel` for inputs and outputs without a batch.
    """
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise ColumnError(
            f"{where or 'The input'} has several columns named {repeated[0]!r}",
            expected="a name for each column",
            found=f"columns {', '.join(schema.names)}",
            cure="Rename all but one of them",
        )
    inputs = plan_inputs(schema, signature.inputs, features, where=where)
    outputs = plan_outputs(signature.outputs, predictions)
    kept = tuple(keep) if keep is not None else tuple(name for name in schema.names if name not in inputs.columns)
    for name in kept:
        if name not in schema.names:
            near = get_close_matches(name, schema.names, 1)
            raise ColumnError(
                f"--keep names a column {name!r} that {where or 'the input'} lacks",
                expected=f"one of {', '.join(schema.names)}",
                found=name,
                cure=f"Did you mean {near[0]!r}?" if near else "Name columns of the input, or --keep= for none",
            )
    taken = [field.name for field in outputs.fields]
    if clash := [name for name in kept if name in taken]:
        output = next(output for output in signature.outputs if predictions.get(output, output) == clash[0])
        raise ColumnError(
            f"The model's output {output!r} and a kept column would both be {clash[0]!r}",
            expected="a name of its own for each column of the output",
            found=f"kept columns {', '.join(kept)}; predictions {', '.join(taken)}",
            cure=f"Rename the prediction, as in --prediction {output}={clash[0]}_predicted, or leave it out of --keep",
        )
    columns = tuple(name for name in schema.names if name in inputs.columns or name in kept)
    # Files may differ in whether a column can be null, and the first speaks for all of them.
    fields = [*(schema.field(name).with_nullable(True) for name in kept), *outputs.fields]
    return ColumnPlan(inputs, outputs, kept, columns, pa.schema(fields))


def auto_batch_rows(plan: ColumnPlan) -> tuple[int, str]:
    """Rows per batch and the rule that gave them: a pure function of schema and signature.

    A batch whose inputs and outputs stay near 1 MiB keeps a dense network's activations in a core's cache, and 4,096
    rows are enough for the costs of a call to vanish.
    """
    row_bytes = plan.inputs.row_nbytes
    if row_bytes is None:
        return _VARIABLE_LENGTH_ROWS, f"auto/1: {_VARIABLE_LENGTH_ROWS} rows, since a row's length varies"
    fits = max(1, _BATCH_BYTES // max(1, row_bytes))
    rows = min(_MOST_BATCH_ROWS, 1 << (fits.bit_length() - 1))
    return rows, f"auto/1: the power of two at or below 1 MiB / {row_bytes} bytes a row, at most {_MOST_BATCH_ROWS}"
