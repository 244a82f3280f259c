"""Worker pools that are machines apart: each starts Beam's SDK workers, and none can share weights with another's.

What makes processes one machine is in transforms/models/streaming/shared_host.py: they see the same abstract sockets
and have the same effective user. Here each machine is a user namespace (user_namespaces(7)) with a user of its own,
which needs no rights of root, and reaches the store through a front of its own, which keeps what was asked.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.support.front import Front

ROOT = Path(__file__).resolve().parents[2]
FIRST_USER = 70_001
START_S = 60.0


@dataclass(frozen=True)
class Machine:
    """`endpoint` is its pool's, which starts workers; `store` what they ask the bucket through."""

    user: int
    endpoint: str
    store: Front
    pool: subprocess.Popen[bytes]

    def media(self, pattern: str) -> list[tuple[str, str]]:
        """Object and byte range of each read whose object's name the pattern matches from its start."""
        found = []
        for method, path, headers in list(self.store.seen):
            name = re.search(r"/o/([^?]+)\?.*alt=media", path)
            if method == "GET" and name and re.match(pattern, unquote(name[1])):
                found.append((unquote(name[1]), headers.get("Range", headers.get("range", "all"))))
        return found

    def workers(self) -> list[int]:
        """The processes that its pool started and that are alive."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has ended since
                continue
            if int(parent) == self.pool.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    def kill_workers(self) -> int:
        """As a crash or the kernel would; how many there were."""
        numbers = self.workers()
        for number in numbers:
            os.kill(number, signal.SIGKILL)
        return len(numbers)


def can_be_apart() -> str:
    """Empty, or why there can be no machines here."""
    try:
        run = subprocess.run(_as_user(FIRST_USER, "true"), capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return f"unshare of util-linux is missing: {error}"
    return run.stderr.strip()


@contextmanager
def machines(count: int, behind: str, logs: Path, env: dict[str, str] | None = None) -> Iterator[list[Machine]]:
    """So many machines in front of the store at `behind`; what they say goes to `logs`. All end with the context."""
    with ExitStack() as ends:
        started = []
        for user in range(FIRST_USER, FIRST_USER + count):
            front = ends.enter_context(served(Front(behind)))
            port = free_port()
            log = ends.enter_context((logs / f"machine-{user}.log").open("ab"))
            command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
            pool = subprocess.Popen(
                _as_user(user, *command),
                env={**worker_environment(), "STORAGE_EMULATOR_HOST": front.url, **(env or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            ends.callback(end, pool)
            started.append(Machine(user, f"localhost:{port}", front, pool))
        for machine in started:
            await_port(machine.endpoint, machine.pool)
        yield started


@contextmanager
def one_endpoint(endpoints: Sequence[str]) -> Iterator[str]:
    """An endpoint of worker pools, for a runner that is told one; it has the pools behind it start workers in turn."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
    from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

    class InTurn(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
        def __init__(self) -> None:
            channels = [grpc.insecure_channel(endpoint) for endpoint in endpoints]
            self._turns = itertools.cycle(map(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub, channels))
            # Of several TaskManagers, each has workers 1-1, 2-1 and so on: an id says nothing without who asked.
            self._started: dict[tuple[str, str], Any] = {}
            self._lock = threading.Lock()

        def StartWorker(self, request: Any, context: Any) -> Any:
            with self._lock:
                pool = self._started[context.peer(), request.worker_id] = next(self._turns)
            return pool.StartWorker(request)

        def StopWorker(self, request: Any, context: Any) -> Any:
            with self._lock:
                pool = self._started.pop((context.peer(), request.worker_id), None)
            return pool.StopWorker(request) if pool else beam_fn_api_pb2.StopWorkerResponse()

    server = grpc.server(shared_unbounded_instance())
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(InTurn(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(1).wait()


@contextmanager
def python_job_service(workers: int, logs: Path) -> Iterator[str]:
    """Beam's job service in Python, in a process of its own, which asks for so many workers; its endpoint."""
    port = free_port()
    with (logs / "job-service.log").open("ab") as log:
        command = ["-m", "tests.support.job_service", str(port), str(workers)]
        service = subprocess.Popen(
            [sys.executable, *command], env=worker_environment(), stdout=log, stderr=log, start_new_session=True
        )
        try:
            await_port(f"localhost:{port}", service)
            yield f"localhost:{port}"
        finally:
            end(service)


def worker_environment() -> dict[str, str]:
    """A pool starts `python`, by that name, which must be this one and have this checkout."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def await_port(endpoint: str, process: subprocess.Popen[bytes], seconds: float = START_S) -> None:
    """Raises `RuntimeError` where the process ends, or does not listen in time."""
    host, port = endpoint.rsplit(":", 1)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen at {endpoint} (exit code {process.poll()})")


def _as_user(user: int, *command: str) -> list[str]:
    return ["unshare", "--user", f"--map-user={user}", f"--map-group={user}", "--", *command]


@contextmanager
def served(front: Front) -> Iterator[Front]:
    with front:
        threading.Thread(target=front.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield front
        finally:
            front.shutdown()


def end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started, its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
