"""argv to exit code: 0 done, 2 the request is wrong and nothing was submitted or written, 1 the job failed."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback

from pipeline.options import COMMANDS, PredictOptions, help_text, parse_flags, parse_request, runner_of
from pipeline.quiet import import_tensorflow
from transforms import progress
from transforms.errors import HeadraceError


def entry() -> None:
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv.pop(0) if argv and argv[0] in COMMANDS else "run"
    if not argv or "--help" in argv or "-h" in argv:
        print(help_text())
        return 0
    verbose = "--verbose" in argv
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    if not verbose:
        logging.getLogger("apache_beam").setLevel(
            logging.CRITICAL
        )  # it logs each traceback before we tell what it means
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    submitted = False
    try:
        options = parse_flags(argv)
        parse_request(options, command)
        if not verbose:
            import_tensorflow()
        if command == "inspect":
            return _inspect(options)
        return _plan(options) if command == "plan" else _run(options)
    except _JobFailed as failed:
        submitted = True
        error: HeadraceError = failed.error
    except HeadraceError as failed:
        error = failed
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from what is done.", file=sys.stderr)
        return 130
    if verbose:
        traceback.print_exception(error)
    print(f"{'The job failed' if submitted else 'Cannot start'}: {error}", file=sys.stderr)
    return 1 if submitted else 2


class _JobFailed(Exception):
    def __init__(self, error: HeadraceError) -> None:
        super().__init__(str(error))
        self.error = error


def _run(options: PredictOptions) -> int:
    from pipeline.launch import launch
    from pipeline.preflight import prepare
    from pipeline.report import summary_text
    from pipeline.standing import claim_output, examine_output
    from transforms.predict import set_tensorflow_threads

    started = time.monotonic()
    request = parse_request(options, "run")
    if runner_of(options) is None:
        set_tensorflow_threads()
    prepared = prepare(request)
    standing = examine_output(prepared, overwrite=request.overwrite)
    if standing.complete:
        print(
            f"Nothing to do: all {standing.done:,} shards stand in {prepared.job.output}, and none of their inputs changed."
        )
        return 0
    if standing.done:
        print(f"Going on: {standing.done:,} shards stand in {prepared.job.output} already.", file=sys.stderr)
    claim_output(prepared, standing, overwrite=request.overwrite)
    try:
        launch(prepared.job, options)
    except HeadraceError as error:
        raise _JobFailed(error) from error
    print(summary_text(prepared, progress.snapshot(), time.monotonic() - started))
    return 0


def _plan(options: PredictOptions) -> int:
    from pipeline.preflight import prepare
    from pipeline.report import plan_text
    from pipeline.standing import examine_output
    from transforms.plan import plan_shards

    request = parse_request(options, "plan")
    prepared = prepare(request)
    standing = examine_output(prepared, overwrite=request.overwrite)
    print(plan_text(prepared, standing, plan_shards(prepared.job, prepared.listing.files)))
    return 0


def _inspect(options: PredictOptions) -> int:
    from pipeline.report import inspect_text
    from transforms.models.load import describe_model
    from transforms.models.ref import pin_model

    request = parse_request(options, "inspect")
    ref = pin_model(request.model, request.storage)
    print(inspect_text(ref, describe_model(ref)))
    return 0
