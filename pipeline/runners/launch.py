"""Runner, progress, and what became of the job."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, SetupOptions

from headrace.transforms import errors, progress
from headrace.transforms.beam.metrics import NAMESPACE
from headrace.transforms.beam.signatures import remember_signatures
from headrace.transforms.columns.wording import counted as in_words
from headrace.transforms.errors import HeadraceError, InvalidRequest, JobError
from headrace.transforms.jobs.job import SUCCESS, Job, stored_object
from headrace.transforms.output.claims import check_claim
from headrace.transforms.storage import open_store
from headrace.transforms.storage.store import take_retries

from ..flags.beam_options import PredictOptions, processes_of, runner_of
from ..packages.user_package import UserPackage
from ..terminal.log import log_event
from ..terminal.progress_output import repeated, watched
from .dask_runner import DaskRunner, is_dask
from .dataflow import left_running_text, not_taken, submitted_text
from .dataflow_workers import is_dataflow
from .graph import build_graph
from .portable import cancelled_text, forget_counters, portable_error

_OURS = re.compile(r"^(?:headrace\.transforms\.errors\.)(\w+): (.*?)(?: \[while running .*)?$", re.MULTILINE)
REMOTE_LINE_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Done:
    """Rows that the output accounts for, rows that this run computed (None where the runner's counters do not account for all
    rows), and shards. `bad_rows` of the rows are in dead letters; --where leaves `filtered_rows` of them out. `retries` are
    requests to stores that were tried again. `by_earlier_attempts` are shards that were committed while this job ran, by an
    attempt that its runner then repeated, or by another run.
    """

    rows: int
    computed: int | None
    shards: int
    bad_rows: int
    filtered_rows: int
    retries: int
    by_earlier_attempts: int = 0


def open_pipeline(
    options: PipelineOptions, packages: Sequence[UserPackage] = (), own: Sequence[Path] = ()
) -> beam.Pipeline:
    """`packages`, and headrace's own wheel, are staged for workers elsewhere; processes of this machine have them on their
    path.

    Raises `InvalidRequest` where Beam knows no such runner, or it lacks an option."""
    try:
        if runner_of(options) is not None:
            setup = options.view_as(SetupOptions)
            if wheels := [*own, *(package.wheel for package in packages)]:
                setup.extra_packages = [*(setup.extra_packages or ()), *map(str, wheels)]
            return beam.Pipeline(runner=DaskRunner() if is_dask(options) else None, options=options)
        # Named, since Beam's default for local runs first tries to download another runner.
        from .local_processes import local_runner

        return beam.Pipeline(runner=local_runner(options), options=options)
    except (ValueError, ImportError) as error:
        raise InvalidRequest(
            "Beam refuses these options", found=str(error), cure="Correct --runner, or what that runner asks for"
        ) from error


def launch(job: Job, pipeline: beam.Pipeline, found_done: int = 0) -> Done:
    """Runs the job to its end; `found_done` shards of it were in the output before.

    Raises the worker's own `HeadraceError` where one ended it, else `JobError`.
    """
    progress.reset()
    remember_signatures()
    try:
        build_graph(pipeline, job)
        elsewhere = runner_of(pipeline.options) is not None  # asked now: Beam's portable runner takes its name away
        with watched() if _counts_here(pipeline.options) else nullcontext():
            result = _submit(pipeline)
        with _logged_run(pipeline.options, result, found_done) if elsewhere else nullcontext():
            result.wait_until_finish()
        counted = _counted(result)
        store = open_store(job.output, job.storage)
        try:
            mark = stored_object(store, store.stat(f"{job.output}/{SUCCESS}"))
        finally:  # a run that has since lost its output raises that, whatever it finds there
            check_claim(job, store)
        computed = counted["rows"] + counted["bad_rows"]
        # A runner may drop the counters of an attempt that it repeats, or count it twice, or have none at all.
        complete = computed + counted["rows_found_done"] == mark["rows"]
        return Done(
            mark["rows"],
            computed if complete else None,
            mark["shards"],
            mark["bad_rows"],
            mark.get("filtered_rows", 0),
            counted["storage_retries"] + take_retries(),
            max(0, counted["shards_found_done"] - found_done),
        )
    except HeadraceError as error:
        # Beam adds the step's name to the text.
        raise type(error)(str(error).partition(" [while running ")[0]) from error
    except Exception as error:
        if "KeyboardInterrupt" in str(error):  # raised in the middle of a bundle, handed on as text
            raise KeyboardInterrupt from error
        raise workers_error(error) from error


def _counted(result: Any) -> Counter[str]:
    """Nothing where the runner no longer answers: the job has ended well, as its mark shows."""
    try:
        return counters(result)
    except Exception as error:
        log_event("note", f"The job has ended, but its counters cannot be had: {type(error).__name__}: {error}")
        return Counter()


def detach(job: Job, pipeline: beam.Pipeline) -> str:
    """Submits the job to Dataflow and logs where to watch it. Raises `JobError` where Dataflow refuses it."""
    try:
        build_graph(pipeline, job)
        return submitted_text(pipeline.options, _submit(pipeline))
    except HeadraceError:
        raise
    except Exception as error:
        raise workers_error(error) from error


def _submit(pipeline: beam.Pipeline) -> Any:
    """Runs the job on this machine, to its end, or hands it to its runner."""
    try:
        if processes_of(pipeline.options):
            from .local_processes import run_in_processes

            return run_in_processes(pipeline.options.view_as(PredictOptions), pipeline.run)
        return pipeline.run()
    except Exception as error:
        if is_dataflow(pipeline.options):
            raise not_taken(error) from error
        raise


@contextmanager
def _logged_run(options: PipelineOptions, result: Any, found_done: int) -> Iterator[None]:
    """Says where a job that runs elsewhere is seen, and what it has counted, until the context ends."""
    if on_dataflow := is_dataflow(options):
        log_event("submitted", submitted_text(options, result))
    try:
        with _shown_counts(result, found_done):
            yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(left_running_text(options, result) if on_dataflow else cancelled_text(result)) from None


def _counts_here(options: PipelineOptions) -> bool:
    return runner_of(options) is None and options.view_as(DirectOptions).direct_running_mode != "multi_processing"


def workers_error(error: Exception) -> HeadraceError:
    """Runners hand a worker's exception over as the text of its traceback."""
    found = _OURS.findall(str(error))
    if found:
        kind, message = found[-1]
        return getattr(errors, kind, JobError)(message)
    if translated := portable_error(str(error)):
        return translated
    last = [line for line in str(error).strip().splitlines() if line.strip()][-1:] or [""]
    return JobError(
        "Beam could not run it to its end",
        found=f"{type(error).__name__}: {last[0].strip()}",
        cure="Run the same command again to go on from what is done; --verbose shows the traceback",
    )


@contextmanager
def _shown_counts(result: Any, found_done: int) -> Iterator[None]:
    """A line for the job's counters, where they changed, and one at its end."""
    started, shown = time.monotonic(), ""

    def show() -> None:
        nonlocal shown
        counted = Counter[str]()
        try:
            counted = counters(result)
            line = describe_counts(counted, found_done)
        except Exception as error:  # of a runner or its network: the job does not depend on it
            line = f"no counters at the moment: {type(error).__name__}"
        if line != shown:
            seconds = time.monotonic() - started
            log_event("progress", f"{line}, {seconds:,.0f} s", seconds=round(seconds, 3), **counted)
            shown = line

    with repeated(show, REMOTE_LINE_EVERY_SECONDS):
        yield
    show()


def counters(result: Any) -> Counter[str]:
    """headrace's counters by name, as the runner has them now."""
    forget_counters(result)
    counted = Counter[str]()
    for counter in result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]:
        counted[counter.key.metric.name] += counter.result or 0
    return counted


def describe_counts(counted: Counter[str], found_done: int) -> str:
    """One line of what workers elsewhere have counted; the plan's size is known to them alone. `found_done` shards were in the
    output before the job; a runner that starts a job again finds more.
    """
    if not counted["shards"] + counted["shards_found_done"] + counted["shards_failed"]:
        return "no shard is done yet"
    parts = [in_words(counted["shards"], "shard"), f"{in_words(counted['rows'], 'row')} predicted"]
    found = counted["shards_found_done"]
    if before := min(found, found_done):
        parts.append(f"{in_words(before, 'shard')} found done")
    if found > found_done:
        parts.append(f"{in_words(found - found_done, 'shard')} committed by an earlier attempt")
    if failed := counted["shards_failed"]:
        parts.append(f"{in_words(failed, 'shard')} failed")
    if bad := counted["bad_rows"]:
        parts.append(f"{in_words(bad, 'row')} to dead letters")
    return ", ".join(parts)
