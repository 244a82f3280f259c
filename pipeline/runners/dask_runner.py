"""The job on a Dask cluster: `--runner=DaskRunner --dask_client_address=tcp://HOST:8786`.

Beam 2.77 has a DaskRunner, which cannot run this job. Its faults, as its source has them;
tests/pipeline/runners/test_dask_runner.py has a test that this runner is free of each. When all are gone from Beam,
this file can go:

  impulse         `Impulse` gives nothing, and every pipeline of ours begins with one
  finish_bundle   what a DoFn gives in `finish_bundle` is dropped: all shards of a bundle
  tags            tagged outputs reach the consumers of every tag
  reshuffle       `Reshuffle` moves nothing, so that one worker predicts everything
  side_inputs     a side input is computed anew, within each task that reads it
  metrics         `metrics()` raises NotImplementedError

Each step's bundle is a Dask task, run by Beam's own `DoFnRunner`. After a Reshuffle there is a task for each element, up to a
bound, and Dask moves tasks to workers that are idle. What a lost worker held, Dask computes again; a shard that is committed is
found done then. Beam's private names are in this file alone.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

import apache_beam as beam
from apache_beam.internal import pickler
from apache_beam.metrics.cells import DistributionData, DistributionResult
from apache_beam.metrics.execution import MetricKey, MetricResult, MetricsContainer
from apache_beam.metrics.metric import MetricResults
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.runners.common import DoFnRunner, Receiver
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.runners.worker import statesampler
from apache_beam.transforms.sideinputs import SideInputMap
from apache_beam.transforms.util import Reshuffle, ReshufflePerKey
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.counters import CounterFactory
from apache_beam.utils.windowed_value import WindowedValue
from apache_beam.version import __version__ as beam_version

from headrace.transforms.errors import InvalidRequest, JobError

from ..flags.beam_options import DaskClientOptions, runner_of

TRIED = ("2.77",)
# So many tasks for each of the cluster's threads after a Reshuffle: enough that a slow worker holds up little.
_TASKS_PER_THREAD = 32
_ANSWER_S, _LOST_S, _LOOK_EVERY_S = 10.0, 20.0, 0.1


def is_dask(options: PipelineOptions) -> bool:
    return (runner_of(options) or "").rpartition(".")[2].lower() in ("dask", "daskrunner")


def check_dask(options: PipelineOptions, packages: Sequence[object] = ()) -> None:
    """Raises `InvalidRequest` for a Beam that was not tried, a missing Dask or address, a scheduler that does not answer, and
    for user packages, which nobody would install on the workers.
    """
    if not is_dask(options):
        return
    if not beam_version.startswith(tuple(f"{one}." for one in TRIED)):
        raise InvalidRequest(
            f"--runner=DaskRunner was not tried with Apache Beam {beam_version}",
            expected=f"Apache Beam {' or '.join(TRIED)}",
            found=beam_version,
            cure=f"pip install 'apache-beam[gcp]=={TRIED[-1]}.*', or choose another runner",
        )
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise InvalidRequest(
            "--runner=DaskRunner needs Dask", found=str(error), cure="pip install 'headrace[dask]'"
        ) from error
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
            "--dask_client_address is missing" if not address else f"--dask_client_address={address} is no address",
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


# What runs on the workers


@dataclass(frozen=True)
class _Step:
    """A ParDo as its workers get it. `pickled` is its DoFn, arguments, and the kinds of its side inputs with their options."""

    label: str
    pickled: bytes
    tags: tuple[str, ...]


@dataclass(frozen=True)
class _Bundle:
    outputs: dict[str | None, list[WindowedValue]]
    counters: dict[MetricKey, int] = field(default_factory=dict)
    distributions: dict[MetricKey, DistributionData] = field(default_factory=dict)


class _Output(Receiver):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        self.values: list[WindowedValue] = []

    def receive(self, windowed_value: WindowedValue) -> None:
        self.values.append(windowed_value)


class _Ready:
    """A DoFn after its setup; bundles of one step take turns on it, so that a process loads its model once."""

    def __init__(self, step: _Step, sides: Sequence[list[WindowedValue]]) -> None:
        fn, args, kwargs, views = pickler.loads(step.pickled)
        maps = [SideInputMap(kind, options, side) for (kind, options), side in zip(views, sides, strict=True)]
        self.outputs = {tag: _Output() for tag in (None, *step.tags)}
        self.runner = DoFnRunner(
            fn, args, kwargs, maps, beam.Windowing(GlobalWindows()), self.outputs, step_name=step.label
        )
        self.runner.setup()


_idle: dict[bytes, list[_Ready]] = defaultdict(list)
_idle_lock = threading.Lock()


def _run_bundle(step: _Step, parts: Sequence[list[WindowedValue]], sides: Sequence[list[WindowedValue]]) -> _Bundle:
    """Dask runs it again elsewhere where its worker is lost."""
    ready = None
    if not sides:
        with _idle_lock:
            if _idle[step.pickled]:
                ready = _idle[step.pickled].pop()
    container = MetricsContainer(step.label)
    sampler = statesampler.StateSampler("dask", CounterFactory())
    statesampler.set_current_tracker(sampler)
    try:
        with sampler.scoped_state(step.label, "process", metrics_container=container):
            ready = ready or _Ready(step, sides)
            for output in ready.outputs.values():
                output.values = []
            ready.runner.start()
            for element in chain.from_iterable(parts):
                ready.runner.process(element)
            ready.runner.finish()
    except BaseException:
        if ready is not None:
            ready.runner.teardown()
        raise
    finally:
        statesampler.set_current_tracker(None)
    outputs = {tag: output.values for tag, output in ready.outputs.items()}
    if sides:
        ready.runner.teardown()
    else:
        with _idle_lock:
            _idle[step.pickled].append(ready)
    updates = container.get_cumulative()
    return _Bundle(outputs, dict(updates.counters), dict(updates.distributions))


def _output(bundle: _Bundle, tag: str | None) -> list[WindowedValue]:
    return bundle.outputs[tag]


def _counted(bundle: _Bundle) -> tuple[dict[MetricKey, int], dict[MetricKey, DistributionData]]:
    return bundle.counters, bundle.distributions


def _impulse() -> list[WindowedValue]:
    return [GlobalWindows.windowed_value(b"")]


def _joined(*parts: list[WindowedValue]) -> list[WindowedValue]:
    return list(chain.from_iterable(parts))


def _dealt(parts: Sequence[list[WindowedValue]], count: int) -> list[list[WindowedValue]]:
    """In turn, so that neighbours, which are of one size more often than not, go to different tasks."""
    every = list(chain.from_iterable(parts))
    return [every[i::count] for i in range(count)]


def _by_key(part: list[WindowedValue], count: int) -> list[list[tuple[bytes, WindowedValue]]]:
    """Of `hash`, each process has its own."""
    found: list[list[tuple[bytes, WindowedValue]]] = [[] for _ in range(count)]
    for one in part:
        key = _key_coder().encode(one.value[0])
        found[zlib.crc32(key) % count].append((key, one))
    return found


@cache
def _key_coder() -> Any:
    return beam.coders.FastPrimitivesCoder()


def _grouped(*parts: list[tuple[bytes, WindowedValue]]) -> list[WindowedValue]:
    values: dict[bytes, tuple[Any, list[Any]]] = {}
    for encoded, one in chain.from_iterable(parts):
        values.setdefault(encoded, (one.value[0], []))[1].append(one.value[1])
    end = GlobalWindow().max_timestamp()
    return [WindowedValue(pair, end, (GlobalWindow(),)) for pair in values.values()]


def _item(items: Sequence[Any], i: int) -> Any:
    return items[i]


# What runs in the launcher


class _Leaves(PipelineVisitor):
    """The steps that are run, in the pipeline's order: a Reshuffle is one, whatever Beam makes it of."""

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
            self._driver.join(_LOOK_EVERY_S)  # in short turns, so that signals are heard
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
        parts = [
            part for one in step.main_inputs.values() if not isinstance(one, PBegin) for part in self._collections[one]
        ]
        if isinstance(transform, beam.ParDo):
            self._pardo(step, transform, parts)
            return
        (output,) = step.outputs.values()
        if isinstance(transform, beam.Impulse):
            self._collections[output] = [self._submit(_impulse)]
        elif isinstance(transform, beam.Flatten):
            self._collections[output] = parts
        elif isinstance(transform, beam.GroupByKey):
            self._collections[output] = self._group(parts)
        elif isinstance(transform, Reshuffle | ReshufflePerKey):
            self._collections[output] = self._deal(parts)
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
        views = [(type(one), one._view_options()) for one in step.side_inputs]
        pickled = pickler.dumps((transform.fn, transform.args, transform.kwargs, views))
        # As a task's result: the scheduler keeps it once, and can make it again.
        shipped = self._submit(_Step, step.full_label, pickled, tuple(tag for tag in step.outputs if tag is not None))
        sides = [self._whole(one.pvalue) for one in step.side_inputs]
        groups = [[part] for part in parts] if main in self._spread else _in_groups(parts, self._threads)
        bundles = [self._submit(_run_bundle, shipped, group, sides) for group in groups]
        self._uncounted += [self._submit(_counted, bundle) for bundle in bundles]
        for tag, output in step.outputs.items():
            self._collections[output] = [self._submit(_output, bundle, tag) for bundle in bundles]
        self._collect()

    def _whole(self, collection: PCollection) -> Any:
        """Computed once, for all bundles that read it."""
        parts = self._collections[collection]
        if len(parts) > 1:
            self._collections[collection] = parts = [self._submit(_joined, *parts)]
        return parts[0] if parts else self._submit(_joined)

    def _group(self, parts: list[Any]) -> list[Any]:
        count = min(len(parts), self._threads)
        split = [self._submit(_by_key, part, count) for part in parts]
        return [self._submit(_grouped, *[self._submit(_item, one, i) for one in split]) for i in range(count)]

    def _deal(self, parts: list[Any]) -> list[Any]:
        """Only what is there tells how many tasks there are to be."""
        lengths = [self._submit(len, part) for part in parts]
        self._await(lengths)
        elements = sum(self._client.gather(lengths))
        count = min(elements, _TASKS_PER_THREAD * self._threads)
        dealt = self._submit(_dealt, parts, count)
        return [self._submit(_item, dealt, i) for i in range(count)]

    def _submit(self, work: Any, *given: Any) -> Any:
        # Not pure: equal arguments are no reason to take an earlier job's result.
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
            time.sleep(_LOOK_EVERY_S)

    def _check_scheduler(self, states: Iterable[str]) -> None:
        gone = self._client.status != "running" or any(state in ("cancelled", "lost") for state in states)
        if not gone:
            self._lost_since = None
            return
        self._lost_since = self._lost_since or time.monotonic()
        if time.monotonic() - self._lost_since > _LOST_S or self._client.status == "closed":
            raise JobError(
                "The Dask scheduler was lost",
                found=f"the client is {self._client.status}",
                cure="Start the cluster again; the same command then goes on from what is done",
            )

    def _collect(self) -> None:
        """Takes the counters of the bundles that are done, and raises what one of them raised."""
        left = []
        for future in self._uncounted:
            if future.status == "error":
                future.result()
            if future.status != "finished":
                left.append(future)
                continue
            counters, distributions = future.result(timeout=_LOST_S)
            with self._lock:
                self._counters.update(counters)
                for key, data in distributions.items():
                    before = self._distributions.get(key)
                    self._distributions[key] = data if before is None else before.combine(data)
        self._uncounted[:] = left


def _in_groups(parts: Sequence[Any], count: int) -> list[list[Any]]:
    return [list(parts[i::count]) for i in range(min(count, len(parts)))]


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
