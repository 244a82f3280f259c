"""A job on three worker processes of a Dask cluster, and what becomes of it where a worker or the scheduler is killed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from headrace.pipeline.cli import main
from tests.support.dask_cluster import Cluster, dask_cluster
from tests.support.front import Front, Gate
from tests.support.jobs import put_inputs, put_model, read_output
from tests.support.machines import served
from tests.support.warm import Warm

pytest.importorskip("distributed")
WORKERS = 3
COUNTS = (30, 20, 40, 10, 50, 30)


def flags(uri: str, output: str, *more: str, model: str = "m") -> list[str]:
    return [
        f"--model={uri}/{model}",
        f"--input={uri}/in/*.parquet",
        f"--output={uri}/{output}",
        "--shard_bytes=1",
        *more,
    ]


class Uploads:
    """The shards that a worker hands to its store. The first waits at the `meeting` until each worker has one, however late
    it started; then `at` is done, and nothing is answered.
    """

    def __init__(self, meeting: threading.Barrier, at: Callable[[], None] | None = None) -> None:
        self.count, self._at, self._meeting = 0, at, meeting

    def __call__(self, gate: Gate) -> bool:
        if gate.command != "POST" or "/upload/" not in gate.path:
            return False
        self.count += 1
        if self.count > 1:
            return False
        with suppress(threading.BrokenBarrierError):  # then a worker has none, which the tests assert
            self._meeting.wait(100)
        if self._at is None:
            return False
        self._at()
        return True


def watched(stores: list[Front], number: int = 0, at: Callable[[], None] | None = None) -> list[Uploads]:
    """The uploads of each worker; `at` the first one of that `number`, something is done."""
    meeting = threading.Barrier(WORKERS)
    uploads = [Uploads(meeting, at if i == number else None) for i in range(len(stores))]
    for store, fault in zip(stores, uploads, strict=True):
        store.faults[:] = [fault]
    return uploads


@contextmanager
def fronts(emulator: str) -> Iterator[list[Front]]:
    with ExitStack() as ends:
        yield [ends.enter_context(served(Front(emulator))) for _ in range(WORKERS)]


@contextmanager
def cluster_of(warm: Warm, folder: Path, stores: list[Front]) -> Iterator[Cluster]:
    with dask_cluster(warm, folder, [{"STORAGE_EMULATOR_HOST": store.url} for store in stores]) as cluster:
        yield cluster


def reads_of_weights(stores: list[Front]) -> list[int]:
    """How often the workers, all together, asked for each range of the weights' file, ascending."""
    return sorted(
        Counter(
            (path, headers.get("Range"))
            for store in stores
            for method, path, headers in store.seen
            if method == "GET" and "variables.data" in path and "alt=media" in path
        ).values()
    )


@pytest.fixture
def place(bucket: str) -> str:
    put_model("saved_model", f"{bucket}/m")
    # This process holds the weights of m after the local run, and would share them with Dask's workers.
    put_model("saved_model", f"{bucket}/unloaded")
    put_inputs(f"{bucket}/in", COUNTS)
    assert main(flags(bucket, "local")) == 0
    return bucket


@pytest.mark.timeout(900)
def test_three_workers_give_what_a_local_run_gives_also_where_one_is_killed(
    place: str, emulator: str, warm: Warm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    local = read_output(f"{place}/local")
    capfd.readouterr()
    with fronts(emulator) as stores, cluster_of(warm, tmp_path, stores) as cluster:
        dask = ("--runner=DaskRunner", f"--dask_client_address={cluster.address}")
        uploads = watched(stores)
        assert main(flags(place, "out", *dask, model="unloaded")) == 0
        assert read_output(f"{place}/out").equals(local)
        # The checkpoint's object graph, which names the weights, is read by each.
        assert reads_of_weights(stores) == [1, WORKERS]
        assert all(one.count for one in uploads)
        assert f"{sum(COUNTS)} rows computed" in capfd.readouterr().out
        uploads = watched(stores, 0, lambda: cluster.kill(cluster.workers[0]))
        assert main(flags(place, "one-killed", *dask)) == 0
        assert uploads[0].count == 1
        assert all(one.count for one in uploads)
        assert read_output(f"{place}/one-killed").equals(local)


@pytest.mark.timeout(900)
def test_where_the_scheduler_is_killed_the_same_command_finishes(
    place: str, emulator: str, warm: Warm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with fronts(emulator) as stores:
        with cluster_of(warm, tmp_path / "first", stores) as cluster:
            dask = ("--runner=DaskRunner", f"--dask_client_address={cluster.address}")
            uploads = watched(stores, 1, lambda: cluster.kill(cluster.scheduler))
            assert main(flags(place, "out", *dask)) == 1
            told = capfd.readouterr().err
            assert "The Dask scheduler was lost" in told
            assert "Traceback" not in told
            assert all(one.count for one in uploads)
        for store in stores:
            store.faults.clear()
        with cluster_of(warm, tmp_path / "second", stores) as cluster:
            assert main(flags(place, "out", "--runner=DaskRunner", f"--dask_client_address={cluster.address}")) == 0
    assert read_output(f"{place}/out").equals(read_output(f"{place}/local"))
