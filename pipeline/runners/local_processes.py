"""`--processes=N`: Beam's local runner with worker processes of this machine. It lacks their progress and logs, and never
ends if one of them dies; so they are started here.

Each has a socket to this process, on which it sends lines of JSON: what it has counted, the shards that it works on, and what
it logs. Nothing is unpickled from it. That this end is closed tells a worker to stop.

Beam's private names, of 2.77: `WorkerHandler.register_environment`, `GrpcWorkerHandler`, and `_futures_by_id` of its control
connection.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, fn_runner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.transforms.environments import Environment, python_sdk_capabilities
from google.protobuf import json_format

from headrace.transforms import progress
from headrace.transforms.errors import JobError
from headrace.transforms.steps.shard_log import name_running_of_processes

from ..flags.beam_options import PredictOptions, processes_of

_URN = "headrace:environment:local_process:v1"
# A terminal, or systemd, sends signals to all processes of the group; but the launcher stops its workers.
_START = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[2])
from headrace.pipeline.runners.local_worker import main
main(int(sys.argv[1]))
"""
_END_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.2


def local_runner(options: PipelineOptions) -> FnApiRunner:
    if count := processes_of(options):
        options.view_as(DirectOptions).direct_num_workers = count
        return FnApiRunner(default_environment=_LocalProcess(python_sdk_capabilities()))
    return FnApiRunner()


class _LocalProcess(Environment):  # type: ignore[misc, unused-ignore]
    def to_runner_api_parameter(self, _: Any) -> tuple[str, bytes]:
        return _URN, b""


@WorkerHandler.register_environment(_URN, bytes)
class _Worker(GrpcWorkerHandler):  # type: ignore[misc, unused-ignore]
    """A worker process, as Beam's runner asks for it."""

    def __init__(self, _: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        assert _processes is not None, "only run_in_processes starts workers"
        self._processes = _processes

    def start_worker(self) -> None:
        options = json_format.MessageToDict(self.provision_info.provision_info.pipeline_options)
        self._processes.start(self.worker_id, self.control_address, options, self._fail)

    def _fail(self) -> None:
        """Ends what the runner waits for from this worker now: otherwise it would never end."""
        for name, future in list(self.control_conn._futures_by_id.items()):
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error="The worker process has ended"))

    def stop_worker(self) -> None:
        self._processes.wait(self.worker_id)


class _Process:
    """A worker's process, and what it has sent."""

    def __init__(self, settings: dict[str, Any], fail: Callable[[], None]) -> None:
        """`fail` ends the runner's wait for it."""
        self.fail, self.counted = fail, progress.Snapshot()
        self.shards: Sequence[str] = ()
        self.channel, theirs = socket.socketpair()
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        with theirs:
            command = [sys.executable, "-c", _START, str(theirs.fileno()), path]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self.channel.sendall(json.dumps(settings).encode() + b"\n")

    def receive(self) -> None:
        """Until the process has ended."""
        # It may end within a line; and a worker that was stopped is not listened to.
        with suppress(OSError, ValueError), self.channel.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                self._take(json.loads(line))
        self._process.wait()

    def _take(self, message: dict[str, Any]) -> None:
        if "log" in message:
            name, level, text = message["log"]
            logging.getLogger(name).log(level, "%s", text)
            return
        self.counted, self.shards = progress.Snapshot(**message["counted"]), message["shards"]

    def stop(self) -> None:
        with suppress(OSError):  # it has ended
            self.channel.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        self._process.kill()
        self.channel.close()

    def ended_text(self) -> str:
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        at = f", while it worked on {', '.join(self.shards)}" if self.shards else ""
        return f"process {self._process.pid}: {how}{at}"


class Processes:
    """The worker processes of one job, by their names. `died` describes those that ended before their work."""

    def __init__(self, options: PredictOptions) -> None:
        self._settings = {
            "processes": options.processes,
            "device": options.device,
            "verbose": options.verbose,
            "log_level": logging.getLogger().getEffectiveLevel(),
        }
        self._workers: dict[str, _Process] = {}
        self._readers: dict[str, threading.Thread] = {}
        self._ended: set[str] = set()
        self.died: list[str] = []
        self.stopped = False

    def start(self, name: str, control: str, options: dict[str, Any], fail: Callable[[], None]) -> None:
        own = {"name": name, "control": control, "options": options}
        self._workers[name] = _Process(self._settings | own, fail)
        reader = threading.Thread(target=self._watch, args=(name,), name=f"headrace-{name}", daemon=True)
        self._readers[name] = reader
        reader.start()

    def _watch(self, name: str) -> None:
        worker = self._workers[name]
        worker.receive()
        if name not in self._ended:
            self.died.append(worker.ended_text())
            self.stop()

    def wait(self, name: str) -> None:
        """For a worker that has no more work, and so ends."""
        self._ended.add(name)
        self._readers[name].join(_END_SECONDS)
        self._workers[name].kill()

    def stop(self) -> None:
        """Ends all, with what they work on."""
        self._ended.update(self._workers)
        for worker in list(self._workers.values()):
            worker.stop()
        for name, worker in list(self._workers.items()):
            if self._readers[name] is not threading.current_thread():
                self._readers[name].join(_END_SECONDS)
            worker.kill()
        self.stopped = True

    def fail(self) -> None:
        """Again and again: the runner may be about to wait for the next thing."""
        for worker in list(self._workers.values()):
            worker.fail()

    def counted(self) -> list[progress.Snapshot]:
        return [worker.counted for worker in list(self._workers.values())]

    def shards(self) -> list[str]:
        return [shard for worker in list(self._workers.values()) for shard in worker.shards]


# Beam makes the handlers of workers itself: one job at a time has processes.
_processes: Processes | None = None
_one_job = threading.Lock()


def run_in_processes(options: PredictOptions, run: Callable[[], Any]) -> Any:
    """What `run` returns, which starts the workers and ends them. Raises `JobError` where one of them dies."""
    outcome = Future[Any]()

    def work() -> None:
        try:
            outcome.set_result(run())
        except BaseException as error:
            outcome.set_exception(error)

    with _processes_of_a_job(options) as processes:
        # A thread, since Beam's wait could not be interrupted by a signal.
        thread = threading.Thread(target=work, name="headrace-local-runner", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_LOOK_EVERY_SECONDS)
                if processes.stopped:
                    processes.fail()
        except BaseException:
            processes.stop()
            deadline = time.monotonic() + _END_SECONDS
            while thread.is_alive() and time.monotonic() < deadline:
                processes.fail()
                thread.join(_LOOK_EVERY_SECONDS)
            raise
        if processes.died:
            raise JobError(
                "A worker process ended before its work was done",
                found=processes.died[0],
                cure="Run the same command again to go on from what is done. Where memory was short, the system ends a process "
                "with SIGKILL: then use fewer --processes or a smaller --batch_size",
            )
    return outcome.result()


@contextmanager
def _processes_of_a_job(options: PredictOptions) -> Iterator[Processes]:
    global _processes
    if not _one_job.acquire(blocking=False):
        raise JobError("Another job of this process has --processes", cure="Run one after the other")
    before = threading.excepthook

    def hook(found: threading.ExceptHookArgs) -> None:
        if not issubclass(found.exc_type, grpc.RpcError):  # a connection to a process that has ended
            before(found)

    _processes = processes = Processes(options)
    progress.count_processes(processes.counted)
    name_running_of_processes(processes.shards)
    threading.excepthook = hook
    # It knows two kinds of workers, and takes these for none.
    beams = logging.getLogger(fn_runner.__name__)
    beams.addFilter(_is_not_about_workers)
    try:
        yield processes
    finally:
        beams.removeFilter(_is_not_about_workers)
        threading.excepthook = before
        name_running_of_processes(tuple)
        _processes = None
        _one_job.release()


def _is_not_about_workers(record: logging.LogRecord) -> bool:
    return "direct_num_workers" not in str(record.msg)
