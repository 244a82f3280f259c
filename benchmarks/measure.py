"""What the benches share: a program run as a process of its own, goals beside their figures, and the machine's name."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from headrace.transforms.container_limits import usable_cores

Result = TypeVar("Result")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True)
class Used:
    """One process, from start to end: seconds, CPU seconds over its threads and the children that it waited for, and the
    peak of its resident memory in bytes."""

    wall: float
    cpu: float
    peak: int


@dataclass(frozen=True)
class Goal:
    """A figure and the bound that it is to keep, both inclusive."""

    what: str
    figure: float
    bound: float
    at_least: bool

    @property
    def kept(self) -> bool:
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound

    def __str__(self) -> str:
        bound = f"{'at least' if self.at_least else 'at most'} {self.bound:g}"
        return f"{self.what:<52} {self.figure:>9.3f}   goal: {bound:<14} {'kept' if self.kept else 'MISSED'}"


@dataclass(frozen=True)
class Machine:
    date: str
    cores: int
    cpu: str
    python: str

    @classmethod
    def here(cls) -> Machine:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(now, usable_cores(), _cpu(), platform.python_version())

    def __str__(self) -> str:
        return f"{self.date}, {self.cores} cores of {self.cpu}, Python {self.python}"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def python(module: str, *arguments: str) -> list[str]:
    """The command line of one of our modules, or of one that is installed in this environment."""
    return [sys.executable, "-m", module, *arguments]


def apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """The function's result, from a process of its own: what it imports and holds does not stay in this one."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def run(
    name: str, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None, folder: str = ROOT
) -> Used:
    """Runs a command in the folder; what it says goes to the file `log`, and to the user where it fails."""
    os.sync()  # else one program pays for writing what another left in the page cache
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
    with open(log, "w+", encoding="utf-8", errors="replace") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=quiet, stdout=said, stderr=said, start_new_session=True)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started: Spark's Java, Ray's workers
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{name} ended with exit code {process.returncode}:\n{said.read()[-4000:]}")
    return Used(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def in_turn(programs: Sequence[str], round_number: int) -> Iterator[str]:
    """Each round begins with another program: none always finds the machine as the same one left it."""
    for at in range(len(programs)):
        yield programs[(round_number + at) % len(programs)]


def arguments(name: str, description: str | None, runs: int, room: str) -> argparse.ArgumentParser:
    """The flags that every bench takes; `room` says how much the work folder will hold."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(description or "").split("\n\n")[0]
    )
    parser.add_argument("--work", help=f"folder for models, inputs and outputs: {room} (default: a new one, removed)")
    parser.add_argument("--runs", type=int, default=runs, help="rounds; the median counts (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="every run and the figures, for machines")
    parser.add_argument("--quick", action="store_true", help="little work, one round: only shows that it runs")
    return parser


@contextmanager
def work_folder(given: str | None) -> Iterator[str]:
    if given:
        os.makedirs(given, exist_ok=True)
        yield os.path.abspath(given)
        return
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        yield folder


def show_progress(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def show(asked: argparse.Namespace, table: str, goals: Sequence[Goal], everything: Mapping[str, Any]) -> None:
    """Prints table and goals, and writes all of it as JSON where that was asked for."""
    text = "\n".join([table, "", *map(str, goals)])
    print("It runs; so little work says nothing of speed or memory." if asked.quick else text)
    if asked.json:
        results = [{"what": goal.what, "figure": goal.figure, "bound": goal.bound, "kept": goal.kept} for goal in goals]
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump({**everything, "goals": results, "quick": asked.quick}, file, indent=1)
