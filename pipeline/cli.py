"""argv to exit code: 0 done, 2 the request is wrong and nothing was submitted or written, 1 the job failed, or a store did not
answer, or verify found a fault. What a command does is in `commands`; here its answer is printed.
"""

from __future__ import annotations

import io
import sys

from headrace.transforms.errors import ClaimLost, HeadraceError, JobError, NotParquet, ShardsFailed, StoreUnavailable

from .commands.checked_request import checked_request
from .flags.answers_at_once import answer_at_once
from .flags.beam_options import PredictOptions
from .flags.flags import COMMANDS
from .flags.request import Request
from .terminal.answer import Answer
from .terminal.log import is_json, log_error, log_event, log_interrupted, own_process, set_up_logs, wants_json
from .terminal.signals import STOPPED, stop_on_signals, stopped_text


def entry() -> None:
    stop_on_signals()
    own_process()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name with letters that the terminal lacks is no reason to end.
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
        with checked_request(argv, command) as (request, options):
            return _answer(command, request, options, argv)
    except HeadraceError as error:
        if error.began:
            return _log_failure("The job failed", error, verbose, 1)
        # The same command may be right later, or must be run again: something is half done.
        code = 1 if type(error) in (ClaimLost, StoreUnavailable, JobError) else 2
        return _log_failure("Cannot start", error, verbose, code)
    except KeyboardInterrupt as stopped:
        text = str(stopped) or stopped_text(overwrites="--overwrite" in argv)
        log_interrupted("stopped", text, exit_code=STOPPED)
        return STOPPED


def _log_failure(what: str, error: HeadraceError, verbose: bool, code: int) -> int:
    log_error(what, error, code, verbose=verbose)
    return code


def _answer(command: str, request: Request, options: PredictOptions, argv: list[str]) -> int:
    as_json = options.json or is_json()
    if command == "inspect":
        from .commands.inspect import inspect

        return _show(inspect(request), as_json)
    if command == "verify":
        return _verify(request, as_json)
    return _plan(request, options, argv, as_json) if command == "plan" else _run(request, options, as_json)


def _run(request: Request, options: PredictOptions, as_json: bool) -> int:
    """On standard output; with --log_format=json, also as the last line of the log."""
    from .commands.run import run

    try:
        answer = run(request, options).answer
    except ShardsFailed as error:
        if error.document is not None:
            _summarize(Answer(error.text.splitlines(), error.document), as_json)
        raise
    return _summarize(answer, as_json)


def _summarize(answer: Answer, as_json: bool) -> int:
    if is_json():
        log_event("summary", answer.text, **answer.document)
    return _show(answer, as_json)


def _show(answer: Answer, as_json: bool) -> int:
    print(answer.shown(as_json=as_json, one_line=is_json()), flush=True)
    return 0


def _plan(request: Request, options: PredictOptions, argv: list[str], as_json: bool) -> int:
    from .commands.needs_report import command_line
    from .commands.plan import plan

    planned = plan(request, options, lambda lacking: command_line(argv, lacking))
    _show(planned.answer, as_json)
    if planned.refused is not None:
        raise planned.refused
    return 0


def _verify(request: Request, as_json: bool) -> int:
    from .commands.verify import sampled_job, verify

    job = sampled_job(request)
    try:
        answer = verify(request, job)
    except NotParquet as error:  # a part of the manifest
        return _log_failure("NOT sound", error, verbose=False, code=1)
    _show(answer, as_json)
    return 0 if answer.document["sound"] else 1
