"""Rows per second of `python -m pipeline` beside a bare loop and beside a thread per core, in one sitting.

Each program runs as a process of its own on a small and on a large input; what counts is the difference between the two,
so that start-up is left out. The runs are interleaved, and the median is taken: compare figures of one sitting only.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np
import pyarrow.parquet as pq

from benchmarks import work

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = ("bare loop", "shard threads", "headrace")


@dataclass(frozen=True)
class Run:
    """One process: `wall` and `cpu` are its seconds from start to end, `cpu` over all its threads and children."""

    program: str
    rows: int
    round: int
    wall: float
    cpu: float


@dataclass(frozen=True)
class Figures:
    """By program where it is a mapping; `rows` are the two sizes that the figures lie between."""

    date: str
    cores: int
    cpu: str
    python: str
    rows: tuple[int, int]
    rounds: int
    rows_per_second: dict[str, float]
    times_the_bare_loop: dict[str, float]
    cpu_microseconds_per_row: dict[str, float]
    bound_rows_per_second: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", required=True, help="folder for model, inputs and outputs: about 2 GB")
    parser.add_argument("--runs", type=int, default=5, help="rounds; the median counts (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="every run and the figures, for machines")
    parser.add_argument("--quick", action="store_true", help="few rows, one round: only shows that it runs")
    asked = parser.parse_args(argv)
    folder = os.path.abspath(asked.work)
    base, small, large, rounds = (16_384, 1, 4, 1) if asked.quick else (1_000_000, 4, 20, asked.runs)
    os.makedirs(folder, exist_ok=True)
    work.make(folder, base)
    sizes = {times * base: work.under_more_names(folder, times) for times in (small, large)}
    runs: list[Run] = []
    for number in range(rounds):
        for rows, inputs in sizes.items():
            # Each round begins with another program, so that none always finds the machine as the same one left it.
            samples = []
            for at in range(len(PROGRAMS)):
                program = PROGRAMS[(number + at) % len(PROGRAMS)]
                run, sample = _measure(program, folder, inputs, rows, number)
                runs.append(run)
                samples.append(sample)
                print(f"round {number + 1} of {rounds}: {program}, {rows:,} rows in {run.wall:.1f} s", file=sys.stderr)
            if not all(np.allclose(samples[0], sample, rtol=1e-4, atol=1e-6) for sample in samples):
                raise SystemExit("The programs' predictions differ: the comparison would mean nothing.")
    figures = _figures(runs, rounds, *sizes)
    print("All of them run; so few rows say nothing of speed." if asked.quick else _table(figures))
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump({**asdict(figures), "quick": asked.quick, "runs": [asdict(run) for run in runs]}, file, indent=1)
    return 0


def _command(program: str, folder: str, inputs: str, output: str) -> list[str]:
    model = f"{folder}/model"
    if program == "headrace":
        flags = ["--prediction=output_0=scores", "--keep=id"]
        return ["pipeline", f"--model={model}", f"--input={inputs}/*.parquet", f"--output={output}", *flags]
    return [f"benchmarks.peers.{program.replace(' ', '_')}", model, inputs, output]


def _measure(program: str, folder: str, inputs: str, rows: int, number: int) -> tuple[Run, np.ndarray]:
    """Runs the program; gives its times and the scores of its first file."""
    output = f"{folder}/out"
    shutil.rmtree(output, ignore_errors=True)
    os.sync()  # else one program pays for writing what another left in the page cache
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", *_command(program, folder, inputs, output)]
    with open(f"{folder}/log.txt", "w+", encoding="utf-8") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{program} ended with exit code {process.returncode}:\n{log.read()[-4000:]}")
    files = sorted(glob.glob(f"{output}/*.parquet"))
    written = [pq.read_metadata(path) for path in files]
    found = sum(metadata.num_rows for metadata in written)
    codec = written[0].row_group(0).column(0).compression
    names = written[0].schema.to_arrow_schema().names
    if found != rows or names != ["id", "scores"] or codec != "ZSTD":
        raise SystemExit(
            f"{program} wrote {found} rows of {names} with {codec}; expected {rows} of id, scores with ZSTD."
        )
    table = pq.read_table(files[0])
    scores = table["scores"].combine_chunks().flatten().to_numpy()
    shutil.rmtree(output)
    return Run(program, rows, number, wall, usage.ru_utime + usage.ru_stime), scores


def _figures(runs: Sequence[Run], rounds: int, small: int, large: int) -> Figures:
    at = {(run.program, run.rows, run.round): run for run in runs}

    def per_row(program: str, field: str) -> float:
        differences = (
            getattr(at[program, large, number], field) - getattr(at[program, small, number], field)
            for number in range(rounds)
        )
        return median(differences) / (large - small)

    cores = len(os.sched_getaffinity(0))
    rates = {program: 1 / per_row(program, "wall") for program in PROGRAMS}
    return Figures(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cores=cores,
        cpu=_cpu(),
        python=platform.python_version(),
        rows=(small, large),
        rounds=rounds,
        rows_per_second=rates,
        times_the_bare_loop={program: rate / rates["bare loop"] for program, rate in rates.items()},
        cpu_microseconds_per_row={program: per_row(program, "cpu") * 1e6 for program in PROGRAMS},
        bound_rows_per_second=cores / per_row("bare loop", "cpu"),
    )


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _table(of: Figures) -> str:
    lines = [
        f"{of.date}, {of.cores} cores of {of.cpu}, Python {of.python}",
        f"between {of.rows[0]:,} and {of.rows[1]:,} rows, median of {of.rounds}",
        "",
        f"{'':<20} {'rows/s':>10} {'x bare loop':>13} {'CPU-us/row':>12}",
    ]
    for program, rate in of.rows_per_second.items():
        times, cpu = of.times_the_bare_loop[program], of.cpu_microseconds_per_row[program]
        lines.append(f"{program:<20} {rate:>10,.0f} {times:>13.2f} {cpu:>12.2f}")
    bound = of.bound_rows_per_second
    lines.append(f"{'bound':<20} {bound:>10,.0f} {bound / of.rows_per_second['bare loop']:>13.2f}")
    return "\n".join([*lines, "", "bound: cores / CPU-seconds per row of the bare loop"])


if __name__ == "__main__":
    sys.exit(main())
