"""Beam's rows in, Beam's rows out: what `headrace.beam.yaml` gives to YAML pipelines.

No `from __future__ import annotations` and no `X | None` here: Beam YAML makes the transform's config schema from the
annotations themselves, and knows `Optional` alone.
"""
# ruff: noqa: UP045

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import apache_beam as beam
from apache_beam.ml.inference.base import ModelMetadata
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue

from ..argument_names import argument_names
from ..columns.plan import check_choice
from ..columns.rules import ColumnRules
from ..errors import InvalidRequest
from ..models.load import describe_for_job
from ..models.loading import Loading
from ..models.pin import pin_model
from ..models.ref import ModelRef
from ..output.bad_rows import BadRow
from ..predicting.batch_predictor import BatchRequest, request_batches, texts
from .model_updates import check_update, update_input
from .notebooks import let_beam_build_pipelines
from .predict_batch import Predicting
from .rows import RowPlan, error_type, plan_rows, to_batch, to_values

let_beam_build_pipelines()

_GOOD = "good"
_WHERE = "a batch of rows"


class _PredictRows(Predicting):
    """Collects a bundle's rows, of whatever windows, and gives each its own timestamp, windows and pane again."""

    def __init__(
        self,
        request: BatchRequest,
        ref: ModelRef,
        loading: Loading,
        plan: RowPlan,
        errors: str | None,
        replaceable: bool,
    ) -> None:
        super().__init__(request, ref, loading, replaceable)
        self._plan, self._errors = plan, errors

    def start_bundle(self) -> None:
        super().start_bundle()
        self._held: list[WindowedValue] = []

    def process(
        self,
        row: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
        update: ModelMetadata | None = None,
    ) -> Iterator[Any]:
        if self.replaces(update):
            yield from self._predict_held()
            self.replace(update)
        self._held.append(WindowedValue(row, timestamp, (window,), pane))
        if len(self._held) >= self._plan.batch_rows:
            yield from self._predict_held()

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._predict_held()

    def _predict_held(self) -> Iterator[Any]:
        if not self._held:
            return
        held, self._held = self._held, []
        bad = dict[int, BadRow]()
        batch = to_batch([row.value for row in held], self._plan.fed)
        on_bad = None if self._errors is None else lambda bad_row: bad.__setitem__(bad_row.row, bad_row)
        results = [result for some in self.predicted(batch, on_bad, _WHERE) for result in some]
        good = (row for i, row in enumerate(held) if i not in bad)
        kept, names = self._plan.kept, self._plan.names
        for result in results:
            self._plan.check(result.schema)
            for values in zip(*map(to_values, result.columns), strict=True):
                row = next(good)
                fields = (*(getattr(row.value, name) for name in kept), *values)
                yield row.with_value(beam.Row(**dict(zip(names, fields, strict=True))))
        for i, why in sorted(bad.items()):
            error = beam.Row(element=held[i].value, msg=why.error, stack=why.stage)
            yield TaggedOutput(self._errors, held[i].with_value(error))


class PredictRows(beam.PTransform):
    """Predicts rows that have a schema; gives rows of the kept fields and the predictions.

    Rows are collected for a call of the model, and each keeps its timestamp, windows and pane. Kept fields have the types that
    they had, predictions those that the model's signature says; float16 becomes float32, and unsigned whole numbers the next
    larger signed ones.

    Raises `ModelError`, `StorageError`, `InvalidRequest` and `ColumnError` while the pipeline is built, `DataError` for a row
    that cannot be predicted where there is no `error_handling`.

    Args:
      model: URI of the model, which is pinned while the pipeline is built.
      signature: The signature that is called.
      features: Maps an input of the model to its field, or its fields; equal names by default.
      keep: Fields that go through; all that are no feature by default.
      predictions: Maps an output of the model to its field; equal names by default.
      outputs: Outputs that become fields; all that have a row for each row by default.
      constants: Values of inputs that are the same for every row.
      top_k: Asks for an output's best classes in place of it: 5, or "5:labels.txt" for their labels.
      cast: Inputs whose values may be cast.
      fill: Values in place of nulls, by input.
      pad: Values that fill up shorter lists, by input.
      batch_rows: Rows for a call of the model; chosen from schema and signature by default.
      device: Where the model computes: auto, cpu, gpu, GPU:0.
      update_model: A pattern of files. The newest one is the model that takes the place of the first while the pipeline
        runs; or, in Python, a collection of ModelMetadata.
      error_handling: Where rows go that cannot be predicted, {output: NAME}: the row is in `element`, the reason in `msg`,
        the stage that refused it in `stack`.
    """

    @argument_names()
    def __init__(
        self,
        model: str,
        signature: str = "serving_default",
        features: Optional[Mapping[str, Any]] = None,
        keep: Optional[Sequence[str]] = None,
        predictions: Optional[Mapping[str, str]] = None,
        outputs: Optional[Sequence[str]] = None,
        constants: Optional[Mapping[str, Any]] = None,
        top_k: Optional[Mapping[str, Any]] = None,
        cast: Sequence[str] = (),
        fill: Optional[Mapping[str, Any]] = None,
        pad: Optional[Mapping[str, Any]] = None,
        batch_rows: Optional[int] = None,
        device: str = "auto",
        update_model: Any = None,
        error_handling: Optional[Mapping[str, str]] = None,
    ) -> None:
        super().__init__()
        check_update(update_model)
        self._errors, self._update_model = _error_output(error_handling), update_model
        rules = ColumnRules(pad=texts(pad), fill=texts(fill), cast=_names("cast", cast), prediction_type="list")
        self._request = request_batches(
            signature, features, predictions, keep, batch_rows or "auto", rules, outputs, constants, top_k
        )
        self._ref, self._loading = pin_model(model), Loading(device=device)
        self._signature = describe_for_job(self._ref, signature).signatures[signature]
        check_choice(self._signature, self._request.columns)

    def expand(self, rows: Any) -> Any:
        with argument_names():
            plan = plan_rows(rows.element_type, self._signature, self._request)
        # What is kept stays in the row: only what feeds the model becomes a record batch.
        request = BatchRequest(self._request.signature, self._request.columns, (), plan.batch_rows)
        update = update_input(self._update_model, rows.pipeline)
        do_fn = _PredictRows(request, self._ref, self._loading, plan, self._errors, bool(update))
        predict = beam.ParDo(do_fn, *update)
        if self._errors is None:
            return rows | "Predict" >> predict | "Forward" >> _forward(plan.row_type)
        both = rows | "Predict" >> predict.with_outputs(self._errors, main=_GOOD)
        errors = both[self._errors] | "ForwardErrors" >> _forward(error_type(rows.element_type))
        return {_GOOD: both[_GOOD] | "Forward" >> _forward(plan.row_type), self._errors: errors}


def _forward(row_type: Any) -> Any:
    """Beam 2.77 loses what `finish_bundle` gives to a step that takes batches, as WriteToParquet of rows does: the buffer of
    elements for such a step is emptied before `finish_bundle` is called. A step between them has its own buffer.
    """
    return beam.Map(lambda row: row).with_output_types(row_type)


def _error_output(error_handling: Mapping[str, str] | None) -> str | None:
    if error_handling is None:
        return None
    name = error_handling.get("output")
    if set(error_handling) != {"output"} or not isinstance(name, str) or name in ("", _GOOD):
        raise InvalidRequest(
            "error_handling does not name an output for errors",
            expected=f"{{output: NAME}}, the name not being {_GOOD!r}",
            found=str(dict(error_handling)),
        )
    return name


def _names(option: str, given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise InvalidRequest(
            f"{option} is one text", expected="a list of inputs", found=repr(given), cure=f"{option}: [{given}]"
        )
    return tuple(given)
