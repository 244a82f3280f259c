"""argv to exit code: 0 done, 2 the request is wrong and nothing was submitted or written, 1 the job failed, or a store did not
answer, or verify found a fault.
"""

from __future__ import annotations

import importlib
import io
import logging
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace

from headrace.transforms.errors import ClaimLost, ColumnError, HeadraceError, JobError, NotParquet, StoreUnavailable
from headrace.transforms.models.gc_pause import modules_are_loaded

from .flags.answers_at_once import answer_at_once
from .flags.beam_options import PredictOptions, parse_flags, runner_of
from .flags.flags import COMMANDS
from .flags.request import Request, parse_request
from .packages.user_package import open_user_packages
from .runners.dask_runner import check_dask
from .runners.dataflow import check_dataflow, detached, memory_nbytes, tell_dataflow
from .runners.dataflow_workers import is_dataflow, set_up_workers
from .runners.portable import check_portable, timeout_note
from .terminal.answer import Answer
from .terminal.log import is_json, own_process, set_up_logs, tell, tell_error, tell_interrupted, wants_json
from .terminal.native_stderr import quiet_stderr
from .terminal.signals import STOPPED, stop_on_signals, stopped_text


def entry() -> None:
    stop_on_signals()
    own_process()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that a terminal has no letters for is no reason to end.
        sys.stdout.reconfigure(errors="replace")
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if (code := answer_at_once(argv)) is not None:
        return code
    command = argv.pop(0) if argv[0] in COMMANDS else "run"
    verbose = "--verbose" in argv
    set_up_logs(as_json=wants_json(argv), verbose=verbose)
    try:
        options = parse_flags(argv)
        if command in ("run", "plan"):
            options = set_up_workers(options)
        elif options.device == "gpu":  # of the job's workers; here it is as it can be
            options.device = "auto"
        request = parse_request(options, command)
        if command in ("run", "plan"):
            check_dataflow(options, request)
            check_portable(options)
            check_dask(options, request.user_packages)
            if told := timeout_note(options):
                tell("note", f"{told}.", logging.WARNING)
        if command != "verify" or request.sample is not None:
            with nullcontext() if verbose else quiet_stderr():
                here = command != "inspect" and runner_of(options) is None
                _start_tensorflow(request.loading.device, check=here)
                if command == "run" and here:
                    importlib.import_module("apache_beam.runners.portability.fn_api_runner")
        modules_are_loaded()
        with open_user_packages(request.user_packages, request.named_modules) as packages:
            request = replace(request, packages=packages)
            as_json = options.json or is_json()
            if command == "inspect":
                return _inspect(request, as_json)
            if command == "verify":
                return _verify(request, as_json)
            return _plan(request, options, as_json) if command == "plan" else _run(request, options, as_json)
    except HeadraceError as error:
        # The same command may be right later, or must be run again: something is half done.
        return _tell("Cannot start", error, verbose, 1 if type(error) in (ClaimLost, StoreUnavailable, JobError) else 2)
    except KeyboardInterrupt as stopped:
        text = str(stopped) or stopped_text(overwrites="--overwrite" in argv)
        tell_interrupted("stopped", text, exit_code=STOPPED)
        return STOPPED


def _tell(what: str, error: HeadraceError, verbose: bool, code: int) -> int:
    tell_error(what, error, code, "".join(traceback.format_exception(error)) if verbose else None)
    return code


def _start_tensorflow(device: str, *, check: bool) -> None:
    """Before anything else uses it, since it takes its number of threads only then. `check`: it is to predict here."""
    from headrace.transforms.predicting.devices import choose_devices, set_up_tensorflow

    set_up_tensorflow(device, whole_process=True)
    if check:
        choose_devices(device)


def _run(request: Request, options: PredictOptions, as_json: bool) -> int:
    from headrace.transforms.columns.wording import counted
    from headrace.transforms.storage import open_store

    from .checks.output_folder import check_overwritten, claim_output, examine_output
    from .checks.preflight import prepare
    from .checks.report_place import report_written
    from .commands.summary import little_memory, passed_over, report_nothing_to_do, report_summary, travelling_secrets
    from .packages.own_wheel import own_package
    from .runners.launch import detach, launch, open_pipeline

    started = time.monotonic()
    prepared = prepare(request)
    standing = examine_output(prepared, overwrite=request.overwrite)
    output = prepared.job.output
    for told in passed_over(prepared.inputs.passed):
        tell("note", f"{told}.", logging.WARNING)
    for told in travelling_secrets(prepared.job, runner_of(options)):
        tell("note", told, logging.WARNING)
    for why in prepared.job.differs_from_run_to_run:
        tell("note", f"{why}.", logging.WARNING)
    if request.clean:
        left = open_store(output, request.storage).clean(f"{output}/")
        tell("note", f"{counted(left, 'interrupted upload')} removed from {output}.")
    if standing.complete:
        if prepared.job.report is not None and options.report is not None and not report_written(prepared.job):
            tell(
                "note",
                f"No report is written of a run that computes nothing: none of it stands at {prepared.job.report}.",
            )
        return _show_end(report_nothing_to_do(prepared, standing), as_json)
    if standing.done:
        tell(
            "note",
            f"Going on: {counted(standing.done, 'shard')} {'is' if standing.done == 1 else 'are'} in {output} already.",
        )
    if standing.superseded:
        tell("note", f"{counted(standing.superseded, 'output')} of inputs that changed or vanished will be removed.")
    if runner_of(options) is None and (told := little_memory(prepared)):
        tell("note", f"{told}.", logging.WARNING)
    if is_dataflow(options):
        options = tell_dataflow(options, memory_nbytes(prepared.specs))
    with own_package(options, elsewhere=is_dataflow(options), gpu=request.loading.device == "gpu") as wheels:
        pipeline = open_pipeline(options, request.packages, own=wheels)
        check_overwritten(prepared, standing, overwrite=request.overwrite)
        job = claim_output(prepared, standing, overwrite=request.overwrite)
        try:
            if detached(options):
                submitted = detach(job, pipeline)
                return _show_end(Answer([submitted], {"output": output, "submitted": submitted}), as_json)
            done = launch(job, pipeline, standing.done)
        except HeadraceError as error:
            return _tell("The job failed", error, options.verbose, 1)
    return _show_end(report_summary(prepared, done, time.monotonic() - started), as_json)


def _show_end(answer: Answer, as_json: bool) -> int:
    """On standard output; with --log_format=json, also as the last line of the log."""
    if is_json():
        tell("summary", answer.text, **answer.document)
    return _show(answer, as_json)


def _show(answer: Answer, as_json: bool) -> int:
    print(answer.shown(as_json=as_json, one_line=is_json()), flush=True)
    return 0


def _plan(request: Request, options: PredictOptions, as_json: bool) -> int:
    from headrace.transforms.steps.plan_shards import input_files, plan_shards

    from .checks.inspection import look
    from .checks.output_folder import examine_output
    from .checks.preflight import prepare
    from .commands.summary import report_look, report_plan

    try:
        prepared = prepare(request)
    except ColumnError:
        # Beside the error, what fits and what does not.
        _show(report_look(look(request)), as_json)
        raise
    standing = examine_output(prepared, overwrite=request.overwrite)
    shards = plan_shards(prepared.job, input_files(prepared.job))
    return _show(report_plan(prepared, standing, shards, runner_of(options)), as_json)


def _inspect(request: Request, as_json: bool) -> int:
    from .checks.inspection import look
    from .commands.summary import report_look

    return _show(report_look(look(request)), as_json)


def _verify(request: Request, as_json: bool) -> int:
    from headrace.transforms.jobs.job import check_same_job

    from .checks.preflight import prepare
    from .checks.recomputed_sample import verify_sample
    from .checks.soundness import verdict_document, verdict_lines, verify

    job = prepare(request).job if request.sample is not None else None
    try:
        verdict, record, manifest = verify(request.output, request.storage)
    except NotParquet as error:  # a part of the manifest
        return _tell("NOT sound", error, verbose=False, code=1)
    if job is not None and request.sample is not None:
        check_same_job(request.output, record, job.record())
        if job.differs_from_run_to_run:
            verdict.notes += [f"{why}, so that no sample can be compared." for why in job.differs_from_run_to_run]
        else:
            verify_sample(verdict, job, manifest, request.sample)
    _show(Answer(verdict_lines(verdict), verdict_document(verdict)), as_json)
    return 1 if verdict.problems else 0
