"""The command line in forked children of a process that has imported everything: a start costs no seconds of imports.

Like the command itself they stop on signals. Orders and answers are lines of JSON: {"start": argv, "log": path, "env": {…}} is
answered by the child's process number, {"wait": number} by its exit code, negative for the signal that ended it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Self

IMPORTED = (
    "pipeline.display",
    "apache_beam.runners.portability.fn_api_runner",
    "google.cloud.storage",
    "keras",
    "tensorflow",
    "pipeline.launch",
    "pipeline.preflight",
    "pipeline.report",
    "pipeline.sample",
    "pipeline.standing",
    "pipeline.verify",
)


class Warm:
    """A context: `start` gives a process number, which is that of its process group too, `wait` its exit code."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        assert self._server.stdout is not None
        self._server.stdout.close()

    def start(self, argv: Sequence[str], log: str, env: dict[str, str] | None = None) -> int:
        return self._ask({"start": list(argv), "log": log, "env": env or {}})

    def wait(self, number: int) -> int:
        return self._ask({"wait": number})

    def kill_after(self, number: int, seconds: float, signal: int) -> int:
        """The exit code; the child may have been done before."""
        time.sleep(seconds)
        os.kill(number, signal)
        return self.wait(number)

    def _ask(self, order: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def _serve() -> None:
    # Imported, not used: a thread of theirs would not outlive the fork.
    for module in IMPORTED:
        importlib.import_module(module)
    from pipeline.cli import main
    from pipeline.stopping import stop_on_signals

    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            status = os.waitpid(order["wait"], 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        number = os.fork()
        if number:
            print(number, flush=True)
            continue
        os.setpgid(0, 0)  # so that what it starts can be ended with it
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order["env"])
        code = 70
        try:
            stop_on_signals()
            code = main(order["start"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    _serve()
