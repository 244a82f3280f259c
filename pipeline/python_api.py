"""`headrace.run`, `plan`, `inspect` and `verify`: the commands as functions. Arguments are the flags, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.transforms.argument_names import argument_names
from headrace.transforms.jobs.job import SUCCESS, stored_object
from headrace.transforms.storage import open_store

from .python_arguments import as_flags, call_with
from .python_result import JobResult

if TYPE_CHECKING:
    from .checks.forecast import Forecast

Columns = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Report:
    """A command's result: `text` as it prints it, `document` as `--json` prints it. `forecast` belongs to `plan(trial=…)`: what
    was measured, and what the whole plan will take.
    """

    text: str = field(repr=False)
    document: dict[str, Any]
    forecast: Forecast | None = None

    def __str__(self) -> str:
        return self.text

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """The text, in IPython and notebooks."""
        printer.text(self.text)


@argument_names()
def run(
    *,
    model: str | Sequence[str],
    input: str | Sequence[str],  # noqa: A002
    output: str,
    features: Columns | None = None,
    predictions: Mapping[str, str] | None = None,
    keep: Sequence[str] | None = None,
    cast: Sequence[str] | None = None,
    fill: Mapping[str, Any] | None = None,
    pad: Mapping[str, Any] | None = None,
    batch_size: int | str | None = None,
    on_error: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    incremental: bool = False,
    runner: str | None = None,
    **flags: Any,
) -> JobResult:
    """Runs a job to its end, as the command `headrace` does, and returns its result.

        result = headrace.run(model="gs://bucket/model", input="gs://bucket/in/*.parquet", output="gs://bucket/out")
        result.head()

    `flags` are any further flags of headrace and of Apache Beam, by their names: `max_bad_rows="1%"`, `project="my-project"`. A
    switch is `True`; a flag that may be repeated takes a list, one that names something for each input or output a dict.
    `features` is the flag `--feature` and `predictions` is `--prediction`.

    The same call again computes only what is missing. Progress goes to standard error, in a notebook to the cell's output.
    Ctrl-C, or interrupting the kernel, ends the call with `KeyboardInterrupt`; what is finished stays.

    Raises `HeadraceError`: `InvalidRequest`, `ColumnError` and others before anything is written, `JobError` and others
    when the job failed. With `on_error="skip_shard"`, `ShardsFailed` has a summary in its `document`.
    """
    given = {name: value for name, value in locals().items() if name != "flags"}
    from .commands.checked_request import checked_request
    from .commands.run import run as run_command

    given = {name: value for name, value in given.items() if value is not False} | flags
    with checked_request(as_flags(given), "run") as (request, options):
        ran = run_command(request, options, lambda lacking: call_with("headrace.run", given, lacking))
    job = ran.prepared.job
    document, text = ran.answer.document, ran.answer.text
    if "submitted" in document:
        return JobResult(job.output, None, None, None, job.report, text, document, job.storage)
    store = open_store(job.output, job.storage)
    mark = stored_object(store, store.stat(f"{job.output}/{SUCCESS}"))
    computed = 0 if ran.done is None else ran.done.computed
    report = (job.report, text, document, job.storage)
    return JobResult(job.output, mark["rows"], mark["bad_rows"], computed, *report, mark.get("filtered_rows", 0))


@argument_names()
def plan(
    *,
    model: str | Sequence[str],
    input: str | Sequence[str],  # noqa: A002
    output: str,
    trial: int | None = None,
    within: str | None = None,
    price_per_core_hour: float | None = None,
    **flags: Any,
) -> Report:
    """Every check of `run`, and what it would compute; writes nothing. Arguments are those of `run`.

    Raises what `run` raises before it writes, and one error for all inputs of the models that columns cannot feed as they are:
    types, and nulls and unequal lists in a sample of the rows. Its last sentence is the call that would be let through.

    `trial=N` runs about N rows here for a minute at most, keeping nothing, and the result's `forecast` has what was measured
    (`forecast.trial`) and what the whole plan will take: core hours, memory, workers and machines to be done `within` such a
    time as "2h", and the cost where a price is given. Raises at a row that cannot be predicted, as `run` does.
    """
    from .commands.checked_request import checked_request
    from .commands.plan import plan as plan_command

    measure = {"trial": trial, "within": within, "price_per_core_hour": price_per_core_hour}
    arguments = {"model": model, "input": input, "output": output, **measure, **flags}
    with checked_request(as_flags(arguments), "plan") as (request, options):
        planned = plan_command(request, options, lambda lacking: call_with("headrace.plan", arguments, lacking))
    if (refused := planned.refused) is None:
        return Report(planned.answer.text, planned.answer.document, planned.forecast)
    cure = refused.cure if planned.ready is None else f"Call {planned.ready}"
    raise type(refused)(refused.what, expected=refused.expected, found=refused.found, cure=cure)


@argument_names()
def inspect(
    *,
    model: str | Sequence[str] | None = None,
    input: str | Sequence[str] | None = None,  # noqa: A002
    **flags: Any,
) -> Report:
    """Models with their signatures, an input with its columns, or both and how one feeds the other.

    Raises `ModelError`, `DataError` or `StorageError` for what cannot be read.
    """
    from .commands.checked_request import checked_request
    from .commands.inspect import inspect as inspect_command

    with checked_request(as_flags({"model": model, "input": input, **flags}), "inspect") as (request, _):
        answer = inspect_command(request)
    return Report(answer.text, answer.document)


@argument_names()
def verify(*, output: str, **flags: Any) -> Report:
    """Reads a finished output back. `document["sound"]` is whether every file is what the manifest says, and every row
    is there.

    `sample=N` computes N batches again; it needs the arguments of the job too. Raises `OutputIncomplete` where no
    finished job is.
    """
    from .commands.checked_request import checked_request
    from .commands.verify import sampled_job
    from .commands.verify import verify as verify_command

    with checked_request(as_flags({"output": output, **flags}), "verify") as (request, _):
        answer = verify_command(request, sampled_job(request))
    return Report(answer.text, answer.document)
