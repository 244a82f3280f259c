"""Programs in forked children of a process that has imported what they need: a start costs no seconds of imports.

Orders and answers are lines of JSON. {"start": argv, "log": path, "env": {…}, "folder": path} starts the command line there,
which stops on signals like the command itself, {"script": argv, "out": path, "log": path, "env": {…}, "folder": path} a file
of Python in an environment of its own; both are answered by the child's process number. {"wait": number} is answered by its
exit code, negative for the signal that ended it, {"poll": number} too, or by null while it runs.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("apache_beam.runners.portability.fn_api_runner", "google.cloud.storage", "keras", "tensorflow")
OURS = (
    "headrace.pipeline.terminal.live_display",
    "headrace.pipeline.runners.launch",
    "headrace.pipeline.checks.preflight",
    "headrace.pipeline.commands.summary",
    "headrace.pipeline.checks.recomputed_sample",
    "headrace.pipeline.checks.output_folder",
    "headrace.pipeline.checks.soundness",
)


class Warm:
    """A context: `start` and `run` give a process number, which is that of its process group too, `wait` its exit code.

    Without `ours`, the programs have nothing of this checkout, as by `python -I`, but what they bring themselves.
    """

    def __init__(self, *, ours: bool = True) -> None:
        how = ("-m", "tests.support.warm", *OURS) if ours else ("-I", str(Path(__file__)))
        self._server = subprocess.Popen(
            [sys.executable, *how, *OTHERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        assert self._server.stdout is not None
        self._server.stdout.close()

    def start(
        self, argv: Sequence[str], log: str, env: Mapping[str, str] | None = None, folder: str = ".", out: str = ""
    ) -> int:
        """What it prints goes to `out`, and what it logs to `log`; both to `log` without `out`."""
        order = {"start": list(argv), "log": log, "out": out or log, "env": dict(env or {}), "folder": folder}
        return int(self._ask(order))

    def run(self, script: Sequence[str], folder: Path, env: Mapping[str, str]) -> int:
        """What it prints comes to `out.txt` and `err.txt` in the folder."""
        out, log = str(folder / "out.txt"), str(folder / "err.txt")
        return int(self._ask({"script": list(script), "out": out, "log": log, "env": dict(env), "folder": str(folder)}))

    def wait(self, number: int) -> int:
        return int(self._ask({"wait": number}))

    def poll(self, number: int) -> int | None:
        code = self._ask({"poll": number})
        return None if code is None else int(code)

    def kill_after(self, number: int, seconds: float, signal: int) -> int:
        """The exit code; the child may have been done before."""
        time.sleep(seconds)
        os.kill(number, signal)
        return self.wait(number)

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


@cache
def shared() -> Warm:
    """One for this whole process, until it ends."""
    warm = Warm()
    atexit.register(warm.__exit__)
    return warm


def python(code: str, *arguments: str, path: Sequence[str] = (), folder: str | None = None) -> str:
    """What a program prints in a process of its own, in `folder` or one that is new, which has `path` before the folders where
    modules are looked for.

    Raises `AssertionError` where it does not end with exit code 0.
    """
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="headrace-test-") as folder:
        script = Path(folder, "program.py")
        script.write_text(f"import sys; sys.path[:0] = {list(path)!r}\n{code}", encoding="utf-8")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, str(ROOT)])}
        ended = shared().wait(shared().run([str(script), *arguments], Path(folder), env))
        out, err = (Path(folder, name).read_text(encoding="utf-8") for name in ("out.txt", "err.txt"))
    assert ended == 0, f"exit {ended}\n{out}\n{err[-4000:]}"
    return out


def _serve(modules: Sequence[str]) -> None:
    # Imported, not used: a thread of theirs would not outlive the fork.
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order or "poll" in order:
            ended, status = os.waitpid(order.get("wait") or order["poll"], 0 if "wait" in order else os.WNOHANG)
            print(os.waitstatus_to_exitcode(status) if ended else "null", flush=True)
            continue
        number = os.fork()
        if number:
            print(number, flush=True)
            continue
        os.setpgid(0, 0)  # so that what it starts can be ended with it
        for descriptor, path in ((1, order.get("out", order["log"])), (2, order["log"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        code = 70
        try:
            code = (_start if "start" in order else _run)(order)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _start(order: dict[str, Any]) -> int:
    from headrace.pipeline.cli import main
    from headrace.pipeline.terminal.signals import stop_on_signals

    os.environ.update(order["env"])
    os.chdir(order["folder"])
    stop_on_signals()
    if at := order["env"].get("HEADRACE_TEST_STOP_AT"):
        _stop_at(at)
    return main(order["start"])


def _stop_at(part: str) -> None:
    """SIGSTOP as the first file whose name holds `part` is about to get it."""
    seen: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.link", "os.rename") and part in str(args[1]) and not seen:
            seen.append(part)
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(hook)


def _run(order: dict[str, Any]) -> int:
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    sys.argv = order["script"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1:])
