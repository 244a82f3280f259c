"""A Dask cluster whose scheduler and workers can be killed: each is forked from a process that has imported TensorFlow."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.machines import free_port
from tests.support.warm import ROOT, Warm

SCHEDULER = """
import asyncio, sys
from distributed import Scheduler

async def main():
    async with Scheduler(host="127.0.0.1", port=int(sys.argv[1]), dashboard=False) as scheduler:
        await scheduler.finished()

asyncio.run(main())
"""
WORKER = """
import asyncio, sys
from distributed import Worker

async def main():
    async with Worker(sys.argv[1], nthreads=1, name=sys.argv[2], dashboard=False) as worker:
        await worker.finished()

asyncio.run(main())
"""
START_S = 300.0  # on a machine with much else to do


class Cluster:
    """`environments` are of the workers, beside this process's own; all of them are one machine."""

    def __init__(self, warm: Warm, folder: Path, environments: Sequence[dict[str, str]], port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scheduler.py").write_text(SCHEDULER)
        (folder / "worker.py").write_text(WORKER)
        self._warm, self.address = warm, f"tcp://127.0.0.1:{port}"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.scheduler = warm.run([str(folder / "scheduler.py"), str(port)], folder, env)
        self.workers = [
            warm.run([str(folder / "worker.py"), self.address, str(number)], folder, {**env, **own})
            for number, own in enumerate(environments)
        ]
        self._ended: set[int] = set()
        self._await_workers(len(environments))

    def kill(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)

    def close(self) -> None:
        for number in (self.scheduler, *self.workers):
            self.kill(number)
            self._warm.wait(number)

    def _await_workers(self, count: int) -> None:
        from distributed import Client

        end = time.monotonic() + START_S
        while True:
            try:
                with Client(self.address, timeout=5, set_as_default=False) as client:  # type: ignore[no-untyped-call]
                    client.wait_for_workers(count, timeout=max(1, end - time.monotonic()))
                return
            except OSError:  # the scheduler is not there yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)


@contextmanager
def dask_cluster(
    warm: Warm, folder: Path, environments: Sequence[dict[str, str]], port: int | None = None
) -> Iterator[Cluster]:
    cluster = Cluster(warm, folder, environments, port or free_port())
    try:
        yield cluster
    finally:
        cluster.close()
