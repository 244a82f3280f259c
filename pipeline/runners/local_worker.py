"""The main program of a worker process that `local_processes` starts: Beam's SDK harness, and a socket to the launcher."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import Any

from headrace.transforms import progress
from headrace.transforms.predicting.devices import set_up_tensorflow, share_cores
from headrace.transforms.steps.shard_log import running
from headrace.transforms.steps.termination import end_shards
from headrace.transforms.storage.store import retries_so_far

from ..terminal.log import quiet_stderr

_TELL_EVERY_SECONDS = 0.2


def main(descriptor: int) -> None:
    """`descriptor` is of the connected socket. Its first line has the settings."""
    launcher = _Launcher(socket.socket(fileno=descriptor))
    settings = launcher.settings()
    threading.Thread(target=launcher.end_with_it, name="headrace-launcher", daemon=True).start()
    logging.captureWarnings(True)
    logging.getLogger().addHandler(_ToLauncher(launcher, settings["log_level"]))
    share_cores(settings["processes"])
    with nullcontext() if settings["verbose"] else quiet_stderr():
        set_up_tensorflow(settings["device"], whole_process=True)
    threading.Thread(target=launcher.keep_telling, name="headrace-tell", daemon=True).start()
    _work(settings)
    launcher.tell()


def _work(settings: dict[str, Any]) -> None:
    """Until the runner has no more of it."""
    # Takes seconds, in which a signal may come: so this process listens to the launcher before.
    from apache_beam.runners.worker import sdk_worker
    from apache_beam.runners.worker.sdk_worker_main import create_harness

    if not settings["verbose"]:
        # Beam prints each traceback before the launcher reports its cause.
        sdk_worker.print = lambda *_, **__: None
    _, harness, _ = create_harness(
        {
            "CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{settings["control"]}"',
            "PIPELINE_OPTIONS": json.dumps(settings["options"]),
            "WORKER_ID": settings["name"],
        }
    )
    harness.run()


class _Launcher:
    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._lock = channel, threading.Lock()
        self._lines = channel.makefile("r", encoding="utf-8")

    def settings(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self._lines.readline())
        return read

    def send(self, message: dict[str, Any]) -> None:
        with self._lock, suppress(OSError):  # it has gone: this process ends with it
            self._channel.sendall(json.dumps(message).encode() + b"\n")

    def tell(self) -> None:
        counted = asdict(progress.snapshot()) | {"storage_retries": retries_so_far()}
        self.send({"counted": counted, "shards": running()})

    def keep_telling(self) -> None:
        every = threading.Event()
        while not every.wait(_TELL_EVERY_SECONDS):
            self.tell()

    def end_with_it(self) -> None:
        """Nothing is lost by that: what is not committed was never visible."""
        self._lines.read()
        end_shards(finish_seconds=0)
        os._exit(0)


class _ToLauncher(logging.Handler):
    def __init__(self, launcher: _Launcher, level: int) -> None:
        super().__init__(level)
        self._launcher = launcher

    def emit(self, record: logging.LogRecord) -> None:
        self._launcher.send({"log": [record.name, record.levelno, self.format(record)]})
