"""Our Dask runner does what Beam's own of 2.77 does not, in one process and without a model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsSingleton, TaggedOutput

from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.runners import dask_runner
from headrace.pipeline.runners.dask_runner import TRIED, DaskRunner, check_dask
from headrace.transforms.errors import InvalidRequest, JobError
from tests.support.dask_pipelines import COMPUTED, WANTED
from tests.support.dask_pipelines import run as run_on
from tests.support.machines import free_port

ROOT = Path(__file__).resolve().parents[3]

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    how = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster:
        yield cluster.scheduler_address


def run(address: str, build: Callable[[beam.Pipeline], Any]) -> tuple[list[Any], Any]:
    return run_on(DaskRunner(), address, build)


@pytest.fixture(scope="module")
def beams_own() -> dict[str, Any]:
    """What Beam's own runner makes of the same pipelines, in a process without ours."""
    command = [sys.executable, "-m", "tests.support.dask_pipelines"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", WANTED)
def test_our_runner_does_it(address: str, name: str) -> None:
    build, wanted = WANTED[name]
    COMPUTED.clear()
    assert run(address, build)[0] == wanted
    assert len(COMPUTED) == (2 if name == "side_inputs" else 0)


FAULTS: dict[str, Callable[[Any], bool]] = {
    "impulse": lambda found: "'NoneType' object has no attribute 'map'" in found,
    "finish_bundle": lambda found: found == [],
    "tags": lambda found: found == list(range(6)),
    "reshuffle": lambda found: found == [0] * 6,
    "elements of the side input computed": lambda found: found > 2,
    "metrics": lambda found: found == "NotImplementedError",
}


@pytest.mark.parametrize("name", FAULTS)
def test_beams_own_runner_still_has_the_fault(beams_own: dict[str, Any], name: str) -> None:
    """Where this fails, Beam has fixed it: take the fault from the list of pipeline/runners/dask_runner.py."""
    assert FAULTS[name](beams_own[name]), beams_own


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
        (["--dask_client_address=here"], "--dask_client_address=here is not an address"),
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


CLUSTER = """
import time
import distributed

how = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None, "protocol": "tcp"}
cluster = distributed.LocalCluster(**how)
print(cluster.scheduler_address, flush=True)
time.sleep(100)
"""


@pytest.mark.timeout(120)
def test_a_scheduler_lost_while_it_is_asked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the client learns of it from the answer that does not come."""
    cluster = subprocess.Popen([sys.executable, "-c", CLUSTER], stdout=subprocess.PIPE, text=True)
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        asked = distributed.Client.gather

        def killed_first(*given: Any, **more: Any) -> Any:
            cluster.kill()
            return asked(*given, **more)

        monkeypatch.setattr(distributed.Client, "gather", killed_first)
        monkeypatch.setattr(dask_runner, "_ANSWER_S", 2.0)
        with pytest.raises(JobError, match="The Dask scheduler was lost"):
            run(address, lambda p: p | beam.Create([1, 2]) | beam.Reshuffle() | beam.Map(str))
    finally:
        cluster.kill()
        cluster.communicate()


WORKERS = """
import sys, time
import distributed

how = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None, "protocol": "tcp"}
if __name__ == "__main__":
    cluster = distributed.LocalCluster(**how)
    print(cluster.scheduler_address, flush=True)
    time.sleep(200)
"""


class Draw(beam.DoFn):
    """Gives something else each time: here, in another number too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def process(self, _: object) -> Iterator[tuple[int, int] | TaggedOutput]:
        drawn = len([*self._folder.glob("drawn-*")])
        (self._folder / f"drawn-{drawn}").write_text(str(os.getpid()))
        yield from ((drawn, i) for i in range(2 if drawn else 12))
        yield from (TaggedOutput("beside", (drawn, i)) for i in range(2 + drawn))


class DieOnce(beam.DoFn):
    """Where `Draw` was run, the process ends with the first element."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def process(self, one: tuple[int, int]) -> Iterator[tuple[int, int]]:
        if (self._folder / "drawn-0").read_text() == str(os.getpid()) and not (self._folder / "died").exists():
            (self._folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (self._folder / f"used-{one[0]}-{one[1]}").touch()
        yield one


@pytest.mark.timeout(240)
def test_what_a_reshuffle_was_given_stays_where_the_worker_that_gave_it_is_lost(tmp_path: Path) -> None:
    """A second listing of the output, which then holds more, once lost a shard that neither listing counted as its own."""
    (tmp_path / "workers.py").write_text(WORKERS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "workers.py")]
    cluster = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        options = PipelineOptions([f"--dask_client_address={address}"])
        pipeline = beam.Pipeline(runner=DaskRunner(), options=options)
        draw = beam.ParDo(Draw(tmp_path)).with_outputs("beside", main="drawn")
        drawn = pipeline | beam.Impulse() | "Draw" >> draw
        used = drawn.drawn | beam.Reshuffle() | "Use" >> beam.ParDo(DieOnce(tmp_path))
        both = (used, drawn.beside) | beam.Flatten() | beam.Map(lambda one: (0, one)) | beam.GroupByKey()
        both | "Write" >> beam.Map(lambda one: (tmp_path / "all.json").write_text(json.dumps(sorted(one[1]))))
        pipeline.run().wait_until_finish()
    finally:
        os.killpg(cluster.pid, signal.SIGKILL)
        cluster.communicate()
    assert (tmp_path / "died").exists()
    assert {path.name for path in tmp_path.glob("used-*")} == {f"used-0-{i}" for i in range(12)}
    assert json.loads((tmp_path / "all.json").read_text()) == sorted([[0, i] for i in (*range(12), *range(2))])
