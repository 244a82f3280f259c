"""The job on a Dask cluster: `--runner=DaskRunner --dask_client_address=tcp://HOST:8786`.

Beam 2.77 has a DaskRunner, which cannot run this job. tests/pipeline/runners/test_dask_runner.py has two tests of each fault:
this runner is free of it, and Beam's own still has it. When Beam has fixed all of them, this file and dask_worker.py can go:

  impulse         `Impulse` emits nothing, and every pipeline of ours begins with one
  finish_bundle   elements that a DoFn emits in `finish_bundle` are lost: all shards of a bundle
  tags            tagged outputs reach the consumers of every tag
  reshuffle       `Reshuffle` moves nothing: one worker predicts everything
  side_inputs     each task that reads a side input computes it again
  metrics         `metrics()` raises NotImplementedError

Each step's bundle is a Dask task, run by Beam's own `DoFnRunner`. After a Reshuffle there is a task for each element, up to a
bound, and Dask moves tasks to idle workers. Dask computes again what a lost worker held, and then finds committed shards done.
This process keeps the input of each Reshuffle, because a step that is computed again may emit other elements: it lists the
output again, which holds more by then.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import getitem
from typing import Any

import apache_beam as beam
from apache_beam.internal import pickler
from apache_beam.metrics.cells import DistributionData, DistributionResult
from apache_beam.metrics.execution import MetricKey, MetricResult
from apache_beam.metrics.metric import MetricResults
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.transforms.util import Reshuffle, ReshufflePerKey
from apache_beam.version import __version__ as beam_version

from headrace.transforms.errors import InvalidRequest, JobError

from ..flags.beam_options import DaskClientOptions, runner_of
from .dask_worker import COUNTED, Step, by_key, grouped, impulse, joined, kept, run_bundle

TRIED = ("2.77",)
# So many tasks for each of the cluster's threads after a Reshuffle: enough that a slow worker holds up little.
_TASKS_PER_THREAD = 32
_ANSWER_S, _LOST_S, _POLL_EVERY_S = 10.0, 20.0, 0.1


def is_dask(options: PipelineOptions) -> bool:
    return (runner_of(options) or "").rpartition(".")[2].lower() in ("dask", "daskrunner")


def check_dask(options: PipelineOptions, packages: Sequence[object] = ()) -> None:
    """Raises `InvalidRequest` for an untested version of Beam, a missing Dask or address, a scheduler that does not answer, and
    for user packages, which Dask would not install on the workers.
    """
    if not is_dask(options):
        return
    if not beam_version.startswith(tuple(f"{version}." for version in TRIED)):
        raise InvalidRequest(
            f"--runner=DaskRunner was not tried with Apache Beam {beam_version}",
            expected=f"Apache Beam {' or '.join(TRIED)}",
            found=beam_version,
            cure=f"pip install 'apache-beam[gcp]=={TRIED[-1]}.*', or choose another runner",
        )
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        cure = "pip install 'headrace[dask]'"
        raise InvalidRequest("--runner=DaskRunner needs Dask", found=str(error), cure=cure) from error
    if packages:
        raise InvalidRequest(
            "--user_package is not supplied to Dask's workers",
            expected="your modules installed where the workers are",
            cure="Install them there, and leave --user_package out",
        )
    address = options.view_as(DaskClientOptions).dask_client_address
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidRequest(
            "--dask_client_address is missing" if not address else f"--dask_client_address={address} is not an address",
            expected="tcp://HOST:PORT of a Dask scheduler",
            found=address or "none",
            cure="Start a cluster with `dask scheduler` and `dask worker tcp://HOST:8786`, and name it",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise InvalidRequest(
            f"No Dask scheduler answers at --dask_client_address={address}",
            found=str(error),
            cure="Start it, or fix the address",
        ) from error


class _Leaves(PipelineVisitor):
    """The steps to run, in the pipeline's order. A Reshuffle is one step, whatever Beam expands it to."""

    def __init__(self) -> None:
        self.found: list[AppliedPTransform] = []
        self._within: AppliedPTransform | None = None

    def enter_composite_transform(self, transform_node: AppliedPTransform) -> None:
        if self._within is None and isinstance(transform_node.transform, Reshuffle | ReshufflePerKey):
            self._within = transform_node
            self.found.append(transform_node)

    def leave_composite_transform(self, transform_node: AppliedPTransform) -> None:
        if self._within is transform_node:
            self._within = None

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        if self._within is None:
            self.found.append(transform_node)


class DaskRunner(PipelineRunner):
    """Takes `--dask_client_address`. A pipeline of global windows, without state, timers or splittable DoFns."""

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> DaskResult:
        from distributed import Client

        leaves = _Leaves()
        pipeline.visit(leaves)
        address = options.view_as(DaskClientOptions).dask_client_address
        client = Client(address, timeout=_ANSWER_S, set_as_default=False)  # type: ignore[no-untyped-call, unused-ignore]
        return DaskResult(client, leaves.found)


class DaskResult(PipelineResult):
    """`metrics()` are of the bundles that are done, each counted once however often it was run."""

    def __init__(self, client: Any, steps: Sequence[AppliedPTransform]) -> None:
        super().__init__(PipelineState.RUNNING)
        self._client, self._steps = client, steps
        self._threads = max(1, sum(client.nthreads().values()))
        self._collections: dict[PCollection, list[Any]] = {}
        self._spread: set[PCollection] = set()
        self._uncounted: list[Any] = []
        self._counters: Counter[MetricKey] = Counter()
        self._distributions: dict[MetricKey, DistributionData] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._lost_since: float | None = None
        self._driver = threading.Thread(target=self._drive, name="headrace-dask", daemon=True)
        self._driver.start()

    def wait_until_finish(self, duration: int | None = None) -> str:
        deadline = None if duration is None else time.monotonic() + duration / 1000
        while self._driver.is_alive() and (deadline is None or time.monotonic() < deadline):
            self._driver.join(_POLL_EVERY_S)  # in short turns: signals interrupt only between them
        if not self._driver.is_alive():
            self._client.close(timeout=_ANSWER_S)
            if self._error is not None:
                raise self._error
        return self.state

    def cancel(self) -> str:
        """Tasks that wait are dropped; shards that run go on to their end, and count as done for the next run."""
        self._stop.set()
        self._driver.join(_ANSWER_S)
        self._client.cancel([*chain.from_iterable(self._collections.values()), *self._uncounted], force=True)
        self._client.close(timeout=_ANSWER_S)
        self._state = PipelineState.CANCELLED
        return self.state

    def metrics(self) -> MetricResults:
        with self._lock:
            return _Metrics(dict(self._counters), dict(self._distributions))

    def _drive(self) -> None:
        try:
            for step in self._steps:
                self._submit_step(step)
                if self._stop.is_set():
                    return
            self._await(self._uncounted)
            self._state = PipelineState.DONE
        except BaseException as error:
            self._state, self._error = PipelineState.FAILED, error

    def _submit_step(self, step: AppliedPTransform) -> None:
        transform = step.transform
        sources = [source for source in step.main_inputs.values() if not isinstance(source, PBegin)]
        parts = [part for source in sources for part in self._collections[source]]
        if isinstance(transform, beam.ParDo):
            self._pardo(step, transform, parts)
            return
        (output,) = step.outputs.values()
        if isinstance(transform, beam.Impulse):
            self._collections[output] = [self._submit(impulse)]
        elif isinstance(transform, beam.Flatten):
            self._collections[output] = parts
        elif isinstance(transform, beam.GroupByKey):
            self._collections[output] = self._group(parts)
        elif isinstance(transform, Reshuffle | ReshufflePerKey):
            (given,) = step.main_inputs.values()
            self._collections[output] = self._deal(given)
            self._spread.add(output)
        else:
            raise JobError(
                f"The step {step.full_label} cannot run on Dask",
                expected="ParDo, Impulse, Flatten, GroupByKey or Reshuffle",
                found=type(transform).__name__,
                cure="Choose another runner",
            )

    def _pardo(self, step: AppliedPTransform, transform: beam.ParDo, parts: list[Any]) -> None:
        (main,) = step.main_inputs.values()
        views = [(type(side), side._view_options()) for side in step.side_inputs]
        pickled = pickler.dumps((transform.fn, transform.args, transform.kwargs, views))
        # As a task's result: the scheduler keeps it once, and can make it again.
        shipped = self._submit(Step, step.full_label, pickled, tuple(tag for tag in step.outputs if tag is not None))
        sides = [self._gathered(side.pvalue) for side in step.side_inputs]
        count = len(parts) if main in self._spread else min(len(parts), self._threads)
        groups = [parts[i::count] for i in range(count)]
        bundles = [self._submit(run_bundle, shipped, group, sides) for group in groups]
        self._uncounted += [self._submit(getitem, bundle, COUNTED) for bundle in bundles]
        for tag, output in step.outputs.items():
            self._collections[output] = [self._submit(getitem, bundle, tag) for bundle in bundles]
        self._collect()

    def _gathered(self, collection: PCollection) -> Any:
        """Computed once, for all bundles that read it."""
        parts = self._collections[collection]
        if len(parts) > 1:
            self._collections[collection] = parts = [self._submit(joined, *parts)]
        return parts[0] if parts else self._submit(joined)

    def _group(self, parts: list[Any]) -> list[Any]:
        count = min(len(parts), self._threads)
        split = [self._submit(by_key, part, count) for part in parts]
        return [self._submit(grouped, *[self._submit(getitem, part, i) for part in split]) for i in range(count)]

    def _deal(self, given: PCollection) -> list[Any]:
        """Deals the elements out in turn: neighbours, which mostly have similar sizes, go to different tasks.

        What the same step emitted to other outputs is kept too: the two belong together.
        """
        for other in given.producer.outputs.values():
            if other is not given:
                parts = self._kept(self._collections[other])
                self._collections[other] = [self._submit(kept, part) for part in parts]
        elements = [*chain.from_iterable(self._kept(self._collections[given]))]
        count = min(len(elements), _TASKS_PER_THREAD * self._threads)
        return [self._submit(kept, elements[i::count]) for i in range(count)]

    def _kept(self, parts: list[Any]) -> list[list[Any]]:
        self._await([*parts, *self._uncounted])
        with _scheduler_answers():
            return list(self._client.gather(parts))

    def _submit(self, work: Any, *given: Any) -> Any:
        # Not pure: equal arguments do not justify reusing an earlier job's result.
        with _scheduler_answers():
            return self._client.submit(work, *given, pure=False)

    def _await(self, futures: Sequence[Any]) -> None:
        """Raises what a task raised, and `JobError` where the scheduler is lost."""
        while not self._stop.is_set():
            self._collect()
            if all(future.status == "finished" for future in futures):
                return
            for future in futures:
                if future.status == "error":
                    future.result()
            self._check_scheduler([future.status for future in futures])
            time.sleep(_POLL_EVERY_S)

    def _check_scheduler(self, states: Iterable[str]) -> None:
        gone = self._client.status != "running" or any(state in ("cancelled", "lost") for state in states)
        if not gone:
            self._lost_since = None
            return
        self._lost_since = self._lost_since or time.monotonic()
        if time.monotonic() - self._lost_since > _LOST_S or self._client.status == "closed":
            raise _lost(f"the client is {self._client.status}")

    def _collect(self) -> None:
        """Takes the counters of the bundles that are done, and raises what one of them raised."""
        left = []
        for future in self._uncounted:
            if future.status == "error":
                future.result()
            if future.status != "finished":
                left.append(future)
                continue
            with _scheduler_answers():
                counters, distributions = future.result(timeout=_LOST_S)
            with self._lock:
                self._counters.update(counters)
                for key, data in distributions.items():
                    before = self._distributions.get(key)
                    self._distributions[key] = data if before is None else before.combine(data)
        self._uncounted[:] = left


def _lost(found: str) -> JobError:
    return JobError(
        "The Dask scheduler was lost",
        found=found,
        cure="Start the cluster again; the same command then goes on from what is done",
    )


@contextmanager
def _scheduler_answers() -> Iterator[None]:
    """Around what the client asks of the scheduler: the end of their connection is a `JobError`; what a task raised stays."""
    from distributed.client import ClosedClientError, FutureCancelledError
    from distributed.comm.core import CommClosedError

    try:
        yield
    except (ClosedClientError, CommClosedError, FutureCancelledError, TimeoutError) as error:
        raise _lost(f"{type(error).__name__}: {error}") from error


class _Metrics(MetricResults):
    def __init__(self, counters: dict[MetricKey, int], distributions: dict[MetricKey, DistributionData]) -> None:
        self._counters, self._distributions = counters, distributions

    def query(self, filter: Any = None) -> dict[str, list[MetricResult]]:  # noqa: A002 - Beam's name
        def results(found: dict[MetricKey, Any]) -> Iterator[MetricResult]:
            return (MetricResult(key, value, value) for key, value in found.items() if self.matches(filter, key))

        spread = {key: DistributionResult(data) for key, data in self._distributions.items()}
        return {
            self.COUNTERS: list(results(self._counters)),
            self.DISTRIBUTIONS: list(results(spread)),
            self.GAUGES: [],
            self.STRINGSETS: [],
            self.BOUNDED_TRIES: [],
        }
