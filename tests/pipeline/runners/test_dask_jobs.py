"""A job on three worker processes of a Dask cluster, and what becomes of it where a worker or the scheduler is killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    """The shards that a worker hands to its store, each a little late, so that every worker has some; `at` the second one,
    something is done first.
    """

    def __init__(self, at: Callable[[], None] | None = None) -> None:
        self.count, self._at = 0, at

    def __call__(self, gate: Gate) -> bool:
        if gate.command != "POST" or "/upload/" not in gate.path:
            return False
        self.count += 1
        time.sleep(0.3)
        if self.count == 2 and self._at is not None:
            self._at()
            return True  # with no answer
        return False


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
        uploads = [Uploads() for _ in stores]
        for store, fault in zip(stores, uploads, strict=True):
            store.faults.append(fault)
        assert main(flags(place, "out", *dask, model="unloaded")) == 0
        assert read_output(f"{place}/out").equals(local)
        # The checkpoint's object graph, which names the weights, is read by each.
        assert reads_of_weights(stores) == [1, WORKERS]
        assert all(one.count for one in uploads)
        assert f"{sum(COUNTS)} rows computed" in capfd.readouterr().out
        killed = Uploads(lambda: cluster.kill(cluster.workers[0]))
        stores[0].faults[:] = [killed]
        assert main(flags(place, "one-killed", *dask)) == 0
        assert killed.count == 2
        assert read_output(f"{place}/one-killed").equals(local)


@pytest.mark.timeout(900)
def test_where_the_scheduler_is_killed_the_same_command_finishes(
    place: str, emulator: str, warm: Warm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with fronts(emulator) as stores:
        with cluster_of(warm, tmp_path / "first", stores) as cluster:
            dask = ("--runner=DaskRunner", f"--dask_client_address={cluster.address}")
            stores[1].faults.append(Uploads(lambda: cluster.kill(cluster.scheduler)))
            assert main(flags(place, "out", *dask)) == 1
            told = capfd.readouterr().err
            assert "The Dask scheduler was lost" in told
            assert "Traceback" not in told
        stores[1].faults.clear()
        with cluster_of(warm, tmp_path / "second", stores) as cluster:
            assert main(flags(place, "out", "--runner=DaskRunner", f"--dask_client_address={cluster.address}")) == 0
    assert read_output(f"{place}/out").equals(read_output(f"{place}/local"))
