"""argv to exit code: 0 done, 2 the request is wrong and nothing was submitted or written, 1 the job failed, or verify found a
fault.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace

from pipeline.accelerator import is_dataflow, set_up_workers
from pipeline.dataflow import check_dataflow, detached, tell_dataflow
from pipeline.options import COMMANDS, PredictOptions, help_text, parse_flags, runner_of
from pipeline.portable import check_portable
from pipeline.quiet import quiet_stderr
from pipeline.request import Request, parse_request
from pipeline.start import loaded
from pipeline.stopping import STOPPED, stop_on_signals, stopped_text
from pipeline.user_package import open_user_packages
from transforms.errors import HeadraceError


def entry() -> None:
    stop_on_signals()
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv.pop(0) if argv and argv[0] in COMMANDS else "run"
    if not argv or "--help" in argv or "-h" in argv:
        print(help_text())
        return 0
    verbose = "--verbose" in argv
    set_up_logs(verbose)
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
        if command != "verify" or request.sample is not None:
            with nullcontext() if verbose else quiet_stderr():
                here = command != "inspect" and runner_of(options) is None
                _start_tensorflow(request.loading.device, check=here)
                if command == "run" and here:
                    importlib.import_module("apache_beam.runners.portability.fn_api_runner")
        loaded()
        with open_user_packages(request.user_packages, request.named_modules) as packages:
            request = replace(request, packages=packages)
            if command == "inspect":
                return _inspect(request)
            if command == "verify":
                return _verify(request)
            return _plan(request) if command == "plan" else _run(request, options)
    except HeadraceError as error:
        return _tell("Cannot start", error, verbose, 2)
    except KeyboardInterrupt as stopped:
        print(f"\n{str(stopped) or stopped_text(overwrites='--overwrite' in argv)}", file=sys.stderr)
        return STOPPED


def set_up_logs(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    if not verbose:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        # It logs each traceback before we tell what it means.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        # So do portable runners, by the root logger.
        logging.getLogger().addFilter(_not_of_a_portable_runner)
        # Beam has this one log all that Prism says, whatever the level.
        logging.getLogger("PrismJobServer").addFilter(lambda _: False)


def _not_of_a_portable_runner(record: logging.LogRecord) -> bool:
    return record.module != "portable_runner"


def _tell(what: str, error: HeadraceError, verbose: bool, code: int) -> int:
    if verbose:
        traceback.print_exception(error)
    print(f"{what}: {error}", file=sys.stderr)
    return code


def _start_tensorflow(device: str, *, check: bool) -> None:
    """Before anything else uses it, since it takes its number of threads only then. `check`: it is to predict here."""
    from transforms.devices import choose_devices, set_up_tensorflow

    set_up_tensorflow(device)
    if check:
        choose_devices(device)


def _run(request: Request, options: PredictOptions) -> int:
    from pipeline.launch import detach, launch, open_pipeline
    from pipeline.own_package import own_package
    from pipeline.preflight import prepare
    from pipeline.report import summary_text
    from pipeline.report_place import report_line
    from pipeline.standing import claim_output, examine_output
    from transforms.storage import open_store

    started = time.monotonic()
    prepared = prepare(request)
    standing = examine_output(prepared, overwrite=request.overwrite)
    output = prepared.job.output
    if request.clean:
        left = open_store(output, request.storage).clean(f"{output}/")
        print(f"{left:,} interrupted uploads removed from {output}.", file=sys.stderr)
    if standing.complete:
        print(f"Nothing to do: all {standing.done:,} shards stand in {output}, and none of their inputs changed.")
        return 0
    if standing.done:
        print(f"Going on: {standing.done:,} shards stand in {output} already.", file=sys.stderr)
    if standing.superseded:
        print(f"{standing.superseded:,} outputs are of inputs that changed or vanished, and will go.", file=sys.stderr)
    if is_dataflow(options):
        options = tell_dataflow(options, sum(spec.nbytes for spec in prepared.specs))
    with own_package(options, gpu=request.loading.device == "gpu") as wheels:
        pipeline = open_pipeline(options, request.packages, own=wheels)
        claim_output(prepared, standing, overwrite=request.overwrite)
        try:
            if detached(options):
                print(detach(prepared.job, pipeline))
                return 0
            done = launch(prepared.job, pipeline)
        except HeadraceError as error:
            return _tell("The job failed", error, options.verbose, 1)
    print(summary_text(prepared, done, time.monotonic() - started))
    if prepared.job.report is not None:
        print(report_line(prepared.job))
    return 0


def _plan(request: Request) -> int:
    from pipeline.preflight import prepare
    from pipeline.report import plan_text
    from pipeline.standing import examine_output
    from transforms.plan import input_files, plan_shards

    prepared = prepare(request)
    standing = examine_output(prepared, overwrite=request.overwrite)
    print(plan_text(prepared, standing, plan_shards(prepared.job, input_files(prepared.job))))
    return 0


def _inspect(request: Request) -> int:
    from pipeline.preflight import pin_requested
    from pipeline.report import inspect_text
    from transforms.models.load import describe_model

    for model in request.models:
        ref = pin_requested(request, model)
        print(inspect_text(ref, describe_model(ref)))
    return 0


def _verify(request: Request) -> int:
    from pipeline.preflight import prepare
    from pipeline.sample import verify_sample
    from pipeline.verify import verdict_text, verify
    from transforms.job import check_same_job

    job = prepare(request).job if request.sample is not None else None
    verdict, record, manifest = verify(request.output, request.storage)
    if job is not None and request.sample is not None:
        check_same_job(request.output, record, job.record())
        verify_sample(verdict, job, manifest, request.sample)
    print(verdict_text(verdict))
    return 1 if verdict.problems else 0
