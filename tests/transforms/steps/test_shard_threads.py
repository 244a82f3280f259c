"""What a worker accepts of a bundle: as much as it can work on, so that its runner can give the rest to others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.transforms.environments import EmbeddedPythonGrpcEnvironment

from benchmarks.tail import WAYS, ideal, makespan
from headrace.pipeline.runners.graph import build_graph
from headrace.transforms.predicting.devices import cores
from headrace.transforms.steps.shard_threads import ShardThreads
from tests.support.jobs import put_inputs, read_output
from tests.transforms.beam.test_predict import prepared_job


def test_no_more_is_accepted_than_runs_and_one_that_waits() -> None:
    pool, go, accepted = ShardThreads(2), threading.Event(), list[Future[bool]]()

    def offer() -> None:
        for _ in range(10):
            accepted.append(pool.submit(go.wait))

    # Two bundles at once share one bound.
    offering = [threading.Thread(target=offer) for _ in range(2)]
    for one in offering:
        one.start()
    time.sleep(0.3)
    held = len(accepted)
    go.set()
    for one in offering:
        one.join(10)
    assert held == 3
    assert len(accepted) == 20
    assert all(future.result(10) for future in accepted)


def test_what_failed_or_was_cancelled_gives_its_place_back() -> None:
    pool, go = ShardThreads(1), threading.Event()
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 // 0).result(10)
        running = pool.submit(go.wait)
        waiting = pool.submit(go.wait)
        assert waiting.cancel()
        go.set()
        assert running.result(10)
        go.clear()
    assert pool.submit(lambda: 7).result(10) == 7
    last: list[Future[int]] = []
    offering = threading.Thread(target=lambda: last.extend(pool.submit(int, k) for k in range(4)), daemon=True)
    offering.start()
    offering.join(10)
    assert [future.result(10) for future in last] == [0, 1, 2, 3]


def test_a_bundle_that_is_split_gives_back_what_nobody_works_on(tmp_path: Path) -> None:
    """Over gRPC, since splits reach a worker in the midst of a bundle only so."""
    put_inputs(f"{tmp_path}/in", [20] * 24)
    job = prepared_job(tmp_path, "--preprocess=tests.transforms.steps.test_shard_threads:slowly", "--shard_bytes=1")
    _started.clear()
    kept: list[int] = []

    def split(elements: int) -> Iterator[Any]:
        yield None
        if elements < 24:  # what was given back
            return
        while not _started.wait(0.01):
            pass
        time.sleep(0.1)
        result = yield 0.0
        if result is not None and result.channel_splits:
            kept.append(result.channel_splits[0].first_residual_element)

    runner = fn_runner.FnApiRunner(default_environment=EmbeddedPythonGrpcEnvironment.default())
    with fn_runner.split_manager("Predict/Predict", split), beam.Pipeline(runner=runner) as pipeline:
        build_graph(pipeline, job)
    assert kept
    assert max(kept) <= cores() + 2
    assert read_output(f"{tmp_path}/out")["id"].to_pylist() == list(range(24 * 20))


_started = threading.Event()


def slowly(batch: Any) -> Any:
    if batch.num_rows:
        _started.set()
        time.sleep(0.2)
    return batch


def test_the_simulation_never_beats_the_ideal_and_holding_less_never_costs() -> None:
    for count in (2, 16):
        before, after = (sum(makespan(way, count, seed) for seed in range(3)) for way in WAYS[:2])
        assert 3 * ideal(count) < after < before
        assert all(makespan(way, count, 0) >= ideal(count) for way in WAYS)
    # Where nobody is slower there is little to move.
    assert makespan(WAYS[1], 2, 0, slower=1) < 1.2 * ideal(2, slower=1)
