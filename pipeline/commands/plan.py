"""`headrace plan`: every check of a run, and what it would compute. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.transforms.steps.plan_shards import input_files, plan_shards

from ..checks.output_folder import OutputState, examine_output
from ..checks.preflight import Prepared, prepare
from ..flags.beam_options import PredictOptions, runner_of
from ..flags.request import Request
from ..terminal.answer import Answer
from .summary import report_plan


@dataclass(frozen=True)
class Planned:
    """`standing` is what the output folder holds of the job already."""

    prepared: Prepared
    standing: OutputState
    answer: Answer


def plan(request: Request, options: PredictOptions) -> Planned:
    """Raises a `HeadraceError` for all that a run would refuse before it writes; for columns that do not fit, a
    `ColumnError`, beside which `inspect` shows what does.
    """
    prepared = prepare(request)
    standing = examine_output(prepared, overwrite=request.overwrite)
    shards = plan_shards(prepared.job, input_files(prepared.job))
    return Planned(prepared, standing, report_plan(prepared, standing, shards, runner_of(options)))
