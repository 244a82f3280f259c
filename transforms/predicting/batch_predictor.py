"""Record batches of any schema through one model, on the least busy device. No Beam, no files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..columns.constant_inputs import plan_constants
from ..columns.plan import ColumnChoice, choose_batch_rows, outputs_of_one_row, plan_columns, selected, varying_batch
from ..columns.rules import ColumnRules
from ..columns.top_k import TopK, parse_top_k, read_labels
from ..errors import InvalidRequest
from ..jobs.input_files import absolute_uri
from ..models.model import Model
from ..models.spec import Signature, TensorSpec
from ..output.bad_rows import BadRow
from ..storage import StoreOptions
from .bisection import Bisection
from .devices import Device, least_busy
from .predictor import Predictor, with_output_ranks


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Options for batches whose schema is not known yet. `keep=None` and `rows=None` leave the choice to headrace."""

    signature: str
    columns: ColumnChoice
    keep: tuple[str, ...] | None
    rows: int | None


def request_batches(
    signature: str,
    features: Mapping[str, str | Sequence[str]] | None,
    predictions: Mapping[str, str] | None,
    keep: Sequence[str] | None,
    batch_rows: int | str,
    rules: ColumnRules,
    outputs: Sequence[str] | None = None,
    constants: Mapping[str, Any] | None = None,
    top_k: Mapping[str, int | str] | None = None,
    storage: StoreOptions = StoreOptions(),
) -> BatchRequest:
    """The arguments of `Predict` as values; `storage` is for the labels that `top_k` names.

    Raises `InvalidRequest` where one is not a value of its kind.
    """
    if batch_rows != "auto" and (not isinstance(batch_rows, int) or isinstance(batch_rows, bool) or batch_rows < 1):
        raise InvalidRequest("batch_rows is out of range", expected="1 or more, or 'auto'", found=repr(batch_rows))
    for option, given, what in (("keep", keep, "columns"), ("outputs", outputs, "outputs")):
        if isinstance(given, str):
            raise InvalidRequest(
                f"{option} is one text", expected=f"a list of {what}", found=repr(given), cure=f"{option}=[{given!r}]"
            )
    columns = ColumnChoice(
        features=tuple(
            (tensor, (columns,) if isinstance(columns, str) else tuple(columns))
            for tensor, columns in (features or {}).items()
        ),
        predictions=tuple((predictions or {}).items()),
        rules=rules,
        outputs=None if outputs is None else tuple(outputs),
        constants=tuple((name, _typed(name, value)) for name, value in (constants or {}).items()),
        top_k=tuple(_top_k(output, value, storage) for output, value in (top_k or {}).items()),
        row_by_row=batch_rows == 1,
    )
    rows = batch_rows if isinstance(batch_rows, int) else None
    return BatchRequest(signature, columns, None if keep is None else tuple(keep), rows)


def _top_k(output: str, value: int | str, storage: StoreOptions) -> TopK:
    k, labels = parse_top_k(output, value)
    return TopK(output, k, None if labels is None else read_labels(absolute_uri(labels), storage))


def _typed(name: str, value: Any) -> str:
    """A constant as the command line has it. Raises `InvalidRequest`."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"constants[{name!r}] is not a value",
            expected="a number, bool, text, array or list of these",
            found=str(error),
        ) from error


def texts(values: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """Values of --fill and --pad as the command line has them: Python and YAML read `0` and `true` as what they are."""
    return tuple(
        (name, value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value))
        for name, value in (values or {}).items()
    )


class BatchPredictor:
    """`models` are replicas, one on each of `devices`. Safe for many threads at once."""

    def __init__(self, request: BatchRequest, devices: Sequence[Device], models: Sequence[Model]) -> None:
        self.devices, self.models = tuple(devices), tuple(models)
        self._request = request
        self._predictors: dict[bytes, tuple[list[Predictor], int]] = {}
        self._sampled: set[int] = set()

    def rows_per_batch(self, batch: pa.RecordBatch) -> int:
        """Rows per call of the model for batches like this one. Raises `ColumnError` where it does not fit."""
        return self._planned(batch)[1]

    def output_schema(self, batch: pa.RecordBatch) -> pa.Schema:
        """The schema of the predictions of batches like this one."""
        return self._planned(batch)[0][0].output_schema

    def __call__(
        self,
        batch: pa.RecordBatch,
        on_bad: Callable[[BadRow], None] | None = None,
        *,
        where: str = "a record batch",
        first_row: int = 0,
    ) -> Iterator[tuple[list[pa.RecordBatch], Bisection]]:
        """The predictions of so many rows at a time as asked for, and what became of these; once for a batch without rows.

        `on_bad` takes each row that cannot be predicted; without it, the first one raises. Errors name `where` the rows are
        and count rows from `first_row`. Raises
        `ColumnError` where the schema does not fit, and what a `Predictor` raises.
        """
        predictors, rows = self._planned(batch)
        if batch.num_rows and id(predictors) not in self._sampled:
            predictors[0].check_held_examples(dict(self._request.columns.features), batch, where)
            self._sampled.add(id(predictors))
        for start in range(0, batch.num_rows, rows) or [0]:
            with least_busy(self.devices) as i:
                bisection = Bisection(predictors[i], where, rows, on_bad)
                results = list(bisection(batch.slice(start, rows), first_row + start))
            yield results, bisection

    def _planned(self, batch: pa.RecordBatch) -> tuple[list[Predictor], int]:
        key = batch.schema.remove_metadata().serialize().to_pybytes()
        if key not in self._predictors:
            self._predictors[key] = self._plan(batch)
        return self._predictors[key]

    def constants(self, rows: int) -> dict[str, np.ndarray[Any, Any]]:
        """The inputs that no row has, for so many rows."""
        planned = plan_constants(self.models[0].inputs, dict(self._request.columns.constants))
        return {constant.spec.name: constant.tensor(rows).numpy() for constant in planned}

    @property
    def row_inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs that each row has a value for: all but the constants."""
        return self._request.columns.fed(self._signature).inputs

    @property
    def row_outputs(self) -> tuple[str, ...]:
        """The outputs that have a value for each row. Raises `ColumnError` for a name that is not an output."""
        columns = self._request.columns
        return tuple(selected(varying_batch(columns.fed(self._signature), columns)[1], columns))

    @property
    def of_one_row(self) -> frozenset[str]:
        """The outputs without a batch dimension, which belong to the one row of a call."""
        columns = self._request.columns
        return outputs_of_one_row(columns.fed(self._signature), columns.rules)

    @property
    def _signature(self) -> Signature:
        return Signature(self._request.signature, self.models[0].inputs, self.models[0].outputs)

    def _plan(self, batch: pa.RecordBatch) -> tuple[list[Predictor], int]:
        request = self._request
        columns = with_output_ranks(self.models[0], request.columns, batch, "the data")
        plan = plan_columns(batch.schema, [(self._signature, columns)], request.keep)
        rows, _ = choose_batch_rows(plan, request.rows)
        replicas = zip(self.models, self.devices, strict=True)
        return [Predictor(plan, [model], device=device.kind) for model, device in replicas], rows
