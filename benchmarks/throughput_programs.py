"""What benchmarks/throughput.py sets side by side: how each program is started, on how many rows, and whether it can run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

from benchmarks.measure import python

MILLION = 1_000_000


@dataclass(frozen=True)
class Sizes:
    """Rows in the files, and under how many names they are read for the small and for the large run."""

    rows: int
    small: int
    large: int

    def __str__(self) -> str:
        return f"{_count(self.rows * self.small)} to {_count(self.rows * self.large)}"


FAST, MIDDLE, SLOW = Sizes(MILLION, 4, 20), Sizes(MILLION, 1, 5), Sizes(50_000, 1, 5)
QUICK = Sizes(2_048, 0, 1)


@dataclass(frozen=True)
class Program:
    """`goal` is the least speed of headrace relative to it; `apart`: in the environment of the peers.

    `counts_cpu` is false where processes work that are not children of the bench.
    """

    name: str
    command: tuple[str, ...]
    sizes: Sizes
    goal: float | None = None
    apart: bool = False
    counts_cpu: bool = True


PROGRAMS = (
    Program("bare loop", ("bare_loop", "model"), FAST),
    Program("shard threads", ("shard_threads", "model"), FAST, goal=1.0),
    Program("headrace", (), FAST),
    Program("Spark predict_batch_udf", ("spark_udf", "model"), MIDDLE, goal=2.5, apart=True, counts_cpu=False),
    Program("Ray Data map_batches", ("ray_data", "model"), MIDDLE, goal=4.0, apart=True, counts_cpu=False),
    Program("RunInference, numpy results", ("run_inference", "numpy", "model.keras"), SLOW, goal=20.0),
    Program("RunInference, default handler", ("run_inference", "default", "model.keras"), SLOW, goal=80.0),
)


def command(program: Program, folder: str, inputs: str, output: str, peers_python: str | None) -> list[str]:
    if program.name == "headrace":
        flags = ["--prediction=output_0=scores", "--keep=id"]
        return python(
            "pipeline", f"--model={folder}/model", f"--input={inputs}/*.parquet", f"--output={output}", *flags
        )
    name, *options, model = program.command
    line = python(f"benchmarks.peers.{name}", *options, f"{folder}/{model}", inputs, output)
    return [peers_python or sys.executable, *line[1:]] if program.apart else line


def why_not(program: Program, peers_python: str | None) -> str | None:
    """Why a program cannot run here, None where it can."""
    if not program.apart:
        return None
    if not peers_python:
        return "no --peers_python was given"
    needed = {"spark_udf": "pyspark.ml.functions, pandas", "ray_data": "ray.data"}[program.command[0]]
    try:
        tried = subprocess.run([peers_python, "-c", f"import {needed}, pyarrow"], capture_output=True, text=True)
    except OSError as error:
        return f"{peers_python} cannot be run: {error.strerror}"
    if tried.returncode:
        return tried.stderr.strip().rpartition("\n")[2]
    return _why_no_java() if program.command[0] == "spark_udf" else None


def _why_no_java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    try:
        subprocess.run([f"{home}/bin/java" if home else "java", "-version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "Spark needs Java 17 or 21, and `java -version` fails"
    return None


def _count(rows: int) -> str:
    return f"{rows // MILLION} M" if rows >= MILLION else f"{rows // 1000} k"
