"""The command line read by headrace's flags and by Beam's own. Importing this imports Beam."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import NoReturn, TypeVar, cast

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions, _BeamArgumentParser

from headrace.transforms.errors import InvalidRequest

from .flags import COMMANDS, add_flags

_Options = TypeVar("_Options", bound=PipelineOptions)
_VIEWS = "_views"


class PredictOptions(PipelineOptions):
    """headrace's flags next to Beam's; a template or another program may view any options as these.

    Each view is made once. Beam asks for one some 300 times while it builds a job's graph, and parses the command line for
    each: a millisecond that a job of a few rows notices.
    """

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        add_flags(parser)

    def view_as(self, cls: type[_Options]) -> _Options:
        views = self.__dict__.setdefault(_VIEWS, {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return cast(_Options, views[cls])

    def __getstate__(self) -> dict[str, object]:
        """A copy makes views of its own: those of the original would go on writing to the original."""
        return {name: value for name, value in super().__getstate__().items() if name != _VIEWS}


class DaskClientOptions(PipelineOptions):
    """Beam declares the same flag, in a module that imports Dask."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--dask_client_address",
            default=None,
            help="of the scheduler of a Dask cluster, for --runner=DaskRunner: tcp://HOST:8786",
        )


def parse_flags(argv: Sequence[str]) -> PredictOptions:
    """Raises `InvalidRequest` for a flag that neither headrace nor Beam knows, naming the nearest known one."""
    parser = _every_flag()
    try:
        _, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise InvalidRequest(
            f"The command line cannot be read: {error}", cure="headrace --help lists the flags"
        ) from error
    if unknown:
        known = sorted({flag for action in parser._actions for flag in action.option_strings})
        flag = unknown[0].split("=")[0]
        near = get_close_matches(flag, known, 1, 0.6)
        if not flag.startswith("-"):
            first = argv[0] == flag
            near = get_close_matches(flag, COMMANDS, 1, 0.6) if first else []
            raise InvalidRequest(
                f"{flag!r} is {'a second command' if flag in COMMANDS else 'no command' if first else 'no flag'}",
                expected=f"one of {', '.join(COMMANDS)}, or --flag=value",
                found=flag,
                cure="Give one command"
                if flag in COMMANDS
                else f"Did you mean {near[0]}?"
                if near
                else "Quote a glob to keep the shell from expanding it",
            )
        raise InvalidRequest(
            f"There is no flag {flag}",
            expected="a flag of headrace or of Apache Beam",
            found=unknown[0],
            cure=f"Did you mean {near[0]}?" if near else "headrace --help lists the flags",
        )
    return PredictOptions(list(argv))


def runner_of(options: PipelineOptions) -> str | None:
    """The runner as given; None where the job is to run in this process."""
    runner = options.view_as(StandardOptions).runner
    return None if runner is None or runner.lower() in ("direct", "directrunner", "fnapirunner") else str(runner)


def processes_of(options: PipelineOptions) -> int:
    """How many worker processes the launcher starts here; 0 where it predicts in threads of its own, or a runner elsewhere.

    Raises `InvalidRequest` where --processes contradicts other flags.
    """
    count: int | None = options.view_as(PredictOptions).processes
    if count is None:
        return 0
    if (runner := runner_of(options)) is not None:
        raise InvalidRequest(
            f"--processes={count} is for jobs on this machine alone",
            expected="no --runner",
            found=f"--runner={runner}",
            cure="Leave --processes out: that runner starts workers of its own",
        )
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "in_memory":
        raise InvalidRequest(
            f"--processes={count} and Beam's own flags for local workers contradict each other",
            expected="--processes alone",
            found=f"--direct_running_mode={direct.direct_running_mode}",
            cure="Leave --direct_running_mode and --direct_num_workers out",
        )
    return count if count > 1 else 0


def _every_flag() -> argparse.ArgumentParser:
    """Beam collects options the same way, from all subclasses of PipelineOptions, when it parses a command line."""

    def subclasses(kind: type[PipelineOptions]) -> Iterator[type[PipelineOptions]]:
        child: type[PipelineOptions]
        for child in kind.__subclasses__():
            yield child
            yield from subclasses(child)

    parser = _Parser(allow_abbrev=False, add_help=False, conflict_handler="resolve", exit_on_error=False)
    for kind in subclasses(PipelineOptions):
        if "_add_argparse_args" in vars(kind):
            kind._add_argparse_args(parser)
    return parser


class _Parser(_BeamArgumentParser):  # Beam's own options call its `add_value_provider_argument`
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)
