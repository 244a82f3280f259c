"""`headrace`: checks a job, claims its output folder, and runs it to its end or hands it to a service."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from headrace.transforms.columns.wording import counted
from headrace.transforms.errors import ColumnError, HeadraceError, ShardsFailed
from headrace.transforms.storage import open_store

from ..checks.column_needs import Ready, whole_refusal
from ..checks.output_folder import OutputState, check_overwritten, claim_output, examine_output
from ..checks.preflight import Prepared, prepare
from ..checks.report_place import report_written
from ..flags.beam_options import PredictOptions, runner_of
from ..flags.request import Request
from ..packages.own_wheel import own_package
from ..runners.dataflow import dataflow_options, detached, memory_nbytes
from ..runners.dataflow_workers import is_dataflow
from ..runners.launch import Done, detach, launch, open_pipeline
from ..terminal.answer import Answer
from ..terminal.log import log_event
from .failed_summary import report_failed
from .summary import little_memory, passed_over, report_nothing_to_do, report_summary, travelling_secrets


@dataclass(frozen=True)
class Ran:
    """`done` is None where nothing was left to do, and where the command does not wait for the submitted job."""

    prepared: Prepared
    done: Done | None
    answer: Answer


def run(request: Request, options: PredictOptions, ready: Ready | None = None) -> Ran:
    """`ready` writes the call that would be accepted.

    Raises a `HeadraceError` for what was refused; its `began` is true where the job had begun and then failed. One of
    `ShardsFailed` has the summary.
    """
    started = time.monotonic()
    try:
        prepared = prepare(request)
    except ColumnError as error:
        raise whole_refusal(request, error, ready) from error
    state = examine_output(prepared, overwrite=request.overwrite)
    _log_notes(request, options, prepared)
    if state.complete:
        if prepared.job.report is not None and options.report is not None and not report_written(prepared.job):
            none = f"none of it stands at {prepared.job.report}"
            log_event("note", f"No report is written of a run that computes nothing: {none}.")
        return Ran(prepared, None, report_nothing_to_do(prepared, state))
    _log_state(state, prepared.job.output)
    if runner_of(options) is None and (note := little_memory(prepared)):
        log_event("note", f"{note}.", logging.WARNING)
    if is_dataflow(options):
        # Roughly: no footer has been read.
        shards = 1 if request.limit is not None else -(-prepared.inputs.nbytes // request.shard_bytes) - state.done
        options = dataflow_options(options, memory_nbytes(prepared.specs), max(0, shards))
    return _submit(request, options, prepared, state, started)


def _submit(request: Request, options: PredictOptions, prepared: Prepared, state: OutputState, started: float) -> Ran:
    with own_package(options, elsewhere=is_dataflow(options), gpu=request.loading.device == "gpu") as wheels:
        pipeline = open_pipeline(options, request.packages, own=wheels)
        check_overwritten(prepared, state, overwrite=request.overwrite)
        job = claim_output(prepared, state, overwrite=request.overwrite)
        try:
            if detached(options):
                submitted = detach(job, pipeline)
                return Ran(prepared, None, Answer([submitted], {"output": job.output, "submitted": submitted}))
            done = launch(job, pipeline, state.done)
        except ShardsFailed as error:
            error.began = True
            if (answer := report_failed(job, error, time.monotonic() - started)) is not None:
                error.text, error.document = answer.text, answer.document
            raise
        except HeadraceError as error:
            error.began = True
            raise
    return Ran(prepared, done, report_summary(prepared, done, time.monotonic() - started))


def _log_notes(request: Request, options: PredictOptions, prepared: Prepared) -> None:
    job = prepared.job
    for note in passed_over(prepared.inputs.passed):
        log_event("note", f"{note}.", logging.WARNING)
    for note in travelling_secrets(job, runner_of(options)):
        log_event("note", note, logging.WARNING)
    for why in job.differs_from_run_to_run:
        log_event("note", f"{why}.", logging.WARNING)
    if request.clean:
        left = open_store(job.output, request.storage).clean(f"{job.output}/")
        log_event("note", f"{counted(left, 'interrupted upload')} removed from {job.output}.")


def _log_state(state: OutputState, output: str) -> None:
    if state.done:
        are = "is" if state.done == 1 else "are"
        log_event("note", f"Going on: {counted(state.done, 'shard')} {are} in {output} already.")
    if state.superseded:
        log_event("note", f"{counted(state.superseded, 'output')} of inputs that changed or vanished will be removed.")
