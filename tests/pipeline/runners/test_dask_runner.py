"""Our Dask runner does what Beam's own of 2.77 does not, in one process and without a model.

Beam's own runner is not run here: its options and ours declare the same flag, and Beam lets only one of them be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.runners.dask_runner import TRIED, DaskRunner, check_dask
from headrace.transforms.errors import InvalidRequest, JobError
from tests.support.machines import free_port

distributed = pytest.importorskip("distributed")
_found: list[Any] = []


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    how = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster:
        yield cluster.scheduler_address


def keep(one: Any) -> None:
    _found.append(one)


def run(address: str, build: Callable[[beam.Pipeline], Any]) -> tuple[list[Any], Any]:
    """What the last collection holds; the workers are threads of this process."""
    _found.clear()
    options = PipelineOptions([f"--dask_client_address={address}"])
    pipeline = beam.Pipeline(runner=DaskRunner(), options=options)
    build(pipeline) | "Keep" >> beam.Map(keep)
    result = pipeline.run()
    result.wait_until_finish()
    return sorted(_found, key=repr), result


class Late(beam.DoFn):
    """Gives its elements when the bundle ends."""

    def start_bundle(self) -> None:
        self._kept: list[Any] = []

    def process(self, one: Any) -> None:
        self._kept.append(one)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._kept)


def parity(one: int) -> Iterator[Any]:
    yield one if one % 2 == 0 else TaggedOutput("odd", one)


def seed(pipeline: beam.Pipeline) -> Any:
    return pipeline | beam.Impulse() | beam.FlatMap(lambda _: range(6))


def tags(pipeline: beam.Pipeline) -> Any:
    both = pipeline | beam.Create(range(6)) | beam.FlatMap(parity).with_outputs("odd", main="even")
    return both.odd


def side(pipeline: beam.Pipeline) -> Any:
    some = pipeline | "Some" >> beam.Create([10, 20])
    return pipeline | "Few" >> beam.Create([1, 2]) | beam.Map(lambda one, side: one + sum(side), AsList(some))


def late(pipeline: beam.Pipeline) -> Any:
    return pipeline | beam.Create(range(6)) | beam.ParDo(Late())


def reshuffled(pipeline: beam.Pipeline) -> Any:
    return pipeline | beam.Create(range(6)) | beam.Reshuffle() | beam.ParDo(Bundles())


class Bundles(Late):
    """How many elements each bundle has."""

    def finish_bundle(self) -> Iterator[Any]:
        yield GlobalWindows.windowed_value(len(self._kept))


PIPELINES: dict[str, tuple[Any, list[Any]]] = {
    "impulse": (seed, list(range(6))),
    "finish_bundle": (late, list(range(6))),
    "tags": (tags, [1, 3, 5]),
    "side_inputs": (side, [31, 32]),
    "reshuffle": (reshuffled, [1] * 6),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_our_runner_does_it(address: str, name: str) -> None:
    build, wanted = PIPELINES[name]
    assert run(address, build)[0] == wanted


def test_groups_and_singletons_and_empty_collections(address: str) -> None:
    def grouped(pipeline: beam.Pipeline) -> Any:
        pairs = pipeline | beam.Create([("a", 1), ("b", 2), ("a", 3), (7, 4)])
        total = pairs | beam.Values() | beam.CombineGlobally(sum)
        sums = pairs | beam.CombinePerKey(sum)
        return sums | "Of" >> beam.Map(lambda pair, whole: (*pair, whole), AsSingleton(total))

    assert run(address, grouped)[0] == [("a", 4, 10), ("b", 2, 10), (7, 4, 10)]
    assert run(address, lambda p: p | beam.Create([]) | beam.Reshuffle() | beam.Map(str))[0] == []

    def joined(pipeline: beam.Pipeline) -> Any:
        left = pipeline | "L" >> beam.Create([("k", 1)])
        right = pipeline | "R" >> beam.Create([("k", 2), ("m", 3)])
        both = {"l": left, "r": right} | beam.CoGroupByKey()
        return both | beam.Map(lambda pair: (pair[0], list(pair[1]["l"]), list(pair[1]["r"])))

    assert run(address, joined)[0] == [("k", [1], [2]), ("m", [], [3])]


def test_counters_are_summed_over_bundles_each_once(address: str) -> None:
    def count(one: int) -> int:
        beam.metrics.Metrics.counter("mine", "ones").inc(one)
        beam.metrics.Metrics.distribution("mine", "spread").update(one)
        return one

    _, result = run(address, lambda p: p | beam.Create([1, 2, 3]) | beam.Reshuffle() | beam.Map(count))
    told = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("mine"))
    assert [one.result for one in told["counters"]] == [6]
    (spread,) = (one.result for one in told["distributions"])
    assert (spread.count, spread.sum, spread.min, spread.max) == (3, 6, 1, 3)


def test_a_workers_error_is_raised_here_with_its_step(address: str) -> None:
    with pytest.raises(Exception, match=r"modulo by zero.*while running 'Bad'"):
        run(address, lambda p: p | beam.Create([0]) | "Bad" >> beam.Map(lambda one: 1 // one))


def test_what_it_cannot_run_is_named(address: str) -> None:
    with pytest.raises(JobError, match="Strange cannot run on Dask"):
        run(address, lambda p: p | beam.Create([1]) | Strange())


class Strange(beam.PTransform):
    """A primitive of no runner."""

    def expand(self, ones: beam.PCollection) -> beam.PCollection:
        return beam.pvalue.PCollection.from_(ones)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "--dask_client_address is missing"),
        (["--dask_client_address=here"], "--dask_client_address=here is no address"),
        (["--dask_client_address=tcp://127.0.0.1:CLOSED"], "No Dask scheduler answers"),
    ],
)
def test_what_dask_lacks_is_told_before_anything_is_written(given: list[str], told: str) -> None:
    flags = [one.replace("CLOSED", str(free_port())) for one in given]
    with pytest.raises(InvalidRequest, match=told):
        check_dask(parse_flags(["--runner=DaskRunner", *flags]))


def test_a_beam_that_was_not_tried_and_packages_are_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    options = parse_flags(["--runner=DaskRunner", f"--dask_client_address={address}"])
    with pytest.raises(InvalidRequest, match="--user_package"):
        check_dask(options, ["mine"])
    monkeypatch.setattr("headrace.pipeline.runners.dask_runner.beam_version", "2.99.0")
    with pytest.raises(InvalidRequest, match=f"Apache Beam {TRIED[0]}"):
        check_dask(options)
