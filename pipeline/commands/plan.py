"""`headrace plan`: every check of a run, and what it would compute. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.transforms.errors import ColumnError, DataError
from headrace.transforms.parquet.reader import read_footer
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from headrace.transforms.storage import open_store

from ..checks.column_needs import Need, Ready, column_needs, command_of_needs, inspected_needs, refusal
from ..checks.forecast import Forecast, forecast
from ..checks.input_sample import InputSample
from ..checks.inspection import inspect_request
from ..checks.output_folder import examine_output
from ..checks.preflight import Prepared, prepare
from ..checks.trial import EvenSample, run_trial
from ..flags.beam_options import PredictOptions, runner_of
from ..flags.request import Request
from ..terminal.answer import Answer
from ..terminal.log import log_event
from .forecast_report import with_forecast
from .needs_report import with_needs
from .summary import report_inspection, report_plan


@dataclass(frozen=True)
class Planned:
    """Where columns do not fit, `refused` says why, and `answer` shows what fits and what does not. `ready` is the command or
    call that would be accepted, None where flags alone do not help or none are missing. `forecast` comes from --trial.
    """

    answer: Answer
    refused: DataError | None = None
    ready: str | None = None
    forecast: Forecast | None = None


def plan(request: Request, options: PredictOptions, ready: Ready) -> Planned:
    """Raises a `HeadraceError` for all that a run would refuse before it writes, except for columns that do not fit."""
    try:
        prepared = prepare(request)
    except ColumnError as error:
        return _refused(request, ready, error)
    state = examine_output(prepared, overwrite=request.overwrite)
    needs = () if state.complete else _needs(request, prepared)
    # Rows that go to dead letters fail no job, and with a limit it is not known whether any is read.
    if needs and request.limit is None and request.on_error.dead_letters is None:
        return _refused(request, ready, None, needs)
    shards, sample = plan_shards(prepared.job, input_files(prepared.job)), EvenSample()
    answer = report_plan(prepared, state, sample.watch(shards), runner_of(options))
    command, made = command_of_needs(needs, None, ready), None
    answer = with_needs(answer, needs, command)
    if request.trial is not None:
        made = _forecast(request, request.trial, prepared, sample, answer)
        answer = with_forecast(answer, made)
    return Planned(answer, None, command, made)


def _forecast(request: Request, rows: int, prepared: Prepared, sample: EvenSample, answer: Answer) -> Forecast:
    """Raises what a run raises at a row that cannot be predicted."""
    planned = answer.document["input"]
    log_event("note", f"Running about {rows:,} rows here, for a minute at most, to measure what the plan will take.")
    return forecast(
        run_trial(prepared.job, sample.shards, rows),
        rows=planned["rows"],
        shards=planned["shards"],
        input_bytes=planned["bytes"],
        min_memory=answer.document["memory_bytes_per_worker"],
        within=request.within,
        price_per_core_hour=request.price_per_core_hour,
    )


def _needs(request: Request, prepared: Prepared) -> tuple[Need, ...]:
    job, inputs = prepared.job, prepared.inputs
    signatures = [spec.signatures[model.signature] for spec, model in zip(prepared.specs, job.models, strict=True)]
    if inputs.table is not None:
        stored = inputs.table.columns()
    else:
        stored = read_footer(open_store(inputs.first.uri, job.storage), inputs.first).schema
    return column_needs(request, signatures, InputSample(request, inputs, stored))


def _refused(request: Request, ready: Ready, error: ColumnError | None, needs: tuple[Need, ...] = ()) -> Planned:
    inspection = inspect_request(request)
    if error is not None:
        needs = inspected_needs(request, inspection)
    command = command_of_needs(needs, error, ready)
    answer = with_needs(report_inspection(inspection), needs, command)
    return Planned(answer, refusal(needs, error), command)
