"""Rows per second of `headrace` beside what one would write or take instead, in one sitting.

Each program runs as a process of its own on a small and on a large input; what counts is the difference between the two,
so that start-up is left out: slow programs get fewer rows, as the table says. The runs are interleaved, and the median is
taken: compare figures of one sitting only.
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import measure, picture, work
from benchmarks.measure import Goal, Machine
from benchmarks.peers.columnar import Network
from benchmarks.throughput_programs import PROGRAMS, QUICK, Program, Sizes, command, why_not
from headrace.pipeline.terminal.log import quiet_stderr

COMPARED_IDS = 1000
OF_THE_BOUND = 0.90
ALONE_ROWS, ALONE_BATCHES = 8192, 50


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
    """By program; `cpu_microseconds_per_row` lacks programs whose workers' time is not counted.

    `bound` is rows per second: cores / CPU-seconds per row of the bare loop. `ceiling` is the same of the model alone, on a
    batch in memory: no program can do more.
    """

    rows: dict[str, str]
    rows_per_second: dict[str, float]
    cpu_microseconds_per_row: dict[str, float]
    bound: float
    ceiling: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = measure.arguments("throughput", __doc__, runs=5, room="about 2 GB")
    parser.add_argument(
        "--peers_python", metavar="FILE", help="the interpreter that has Spark and Ray (make bench-peers)"
    )
    parser.add_argument("--only", nargs="+", choices=[program.name for program in PROGRAMS], metavar="PROGRAM")
    parser.add_argument("--svg", metavar="FILE", help="the figures as a picture")
    asked = parser.parse_args(argv)
    left_out = {program.name: reason for program in PROGRAMS if (reason := why_not(program, asked.peers_python))}
    chosen = [
        program
        for program in PROGRAMS
        if program.name not in left_out and program.name in (asked.only or [program.name])
    ]
    with measure.work_folder(asked.work) as folder:
        work.make_model(folder)
        alone = [measure.apart(_seconds_of_a_row, folder)]
        runs = _rounds(asked, chosen, folder)
        alone.append(measure.apart(_seconds_of_a_row, folder))
    figures = _figures(runs, {program.name: QUICK if asked.quick else program.sizes for program in chosen}, min(alone))
    goals = _goals(figures)
    machine = Machine.here()
    table = _table(figures, f"{machine}\nmedians of {1 if asked.quick else asked.runs}", left_out)
    everything = {**asdict(machine), **asdict(figures), "left_out": left_out, "runs": [asdict(run) for run in runs]}
    measure.show(asked, table, goals, everything)
    if asked.svg:
        with open(asked.svg, "w", encoding="utf-8") as file:
            file.write(_picture(figures, machine))
    return 0


def _seconds_of_a_row(folder: str) -> float:
    """CPU-seconds of the model alone, one thread per operation."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    features = np.random.default_rng(0).standard_normal((ALONE_ROWS, work.WIDTH), dtype=np.float32)
    with quiet_stderr():
        network = Network(f"{folder}/model", threads_per_operation=1)
    return network.seconds_alone(features, ALONE_BATCHES) / ALONE_ROWS


def _rounds(asked: argparse.Namespace, chosen: Sequence[Program], folder: str) -> list[Run]:
    runs, rounds = [], 1 if asked.quick else asked.runs
    by_name = {program.name: program for program in chosen}
    expected: np.ndarray[Any, Any] | None = None
    for number in range(rounds):
        for name in measure.in_turn(list(by_name), number):
            sizes = QUICK if asked.quick else by_name[name].sizes
            for times in filter(None, (sizes.small, sizes.large)):
                inputs = work.under_more_names(work.make_rows(folder, sizes.rows), times)
                rows = sizes.rows * times
                run, scores = _measure(by_name[name], folder, inputs, rows, number, asked.peers_python)
                runs.append(run)
                measure.show_progress(f"round {number + 1} of {rounds}: {name}, {rows:,} rows in {run.wall:.1f} s")
                expected = scores[::times] if expected is None else expected
                if not np.allclose(scores, np.repeat(expected, times, axis=0), rtol=1e-4, atol=1e-6):
                    raise SystemExit(f"{name} predicts otherwise than {runs[0].program}: comparing them means nothing.")
    return runs


def _measure(
    program: Program, folder: str, inputs: str, rows: int, number: int, peers_python: str | None
) -> tuple[Run, np.ndarray[Any, Any]]:
    """Runs the program; gives its times, and the scores of the lowest ids in their order."""
    output = f"{folder}/out"
    shutil.rmtree(output, ignore_errors=True)
    used = measure.run(program.name, command(program, folder, inputs, output, peers_python), f"{folder}/log.txt")
    files = sorted(glob.glob(f"{output}/*.parquet"))
    written = [metadata for metadata in map(pq.read_metadata, files) if metadata.num_rows]
    found = sum(metadata.num_rows for metadata in written)
    if found != rows:
        raise SystemExit(f"{program.name} wrote {found} rows, not {rows}.")
    codec, names = written[0].row_group(0).column(0).compression, written[0].schema.to_arrow_schema().names
    if names != ["id", "scores"] or codec != "ZSTD":
        raise SystemExit(f"{program.name} wrote columns {names} with {codec}, not id and scores with ZSTD.")
    table = pq.read_table(files, filters=[("id", "<", COMPARED_IDS)]).sort_by("id")
    shutil.rmtree(output)
    return Run(program.name, rows, number, used.wall, used.cpu), np.stack(list(table["scores"].to_numpy()))


def _figures(runs: Sequence[Run], sizes: Mapping[str, Sizes], alone: float) -> Figures:
    rounds = max(run.round for run in runs) + 1
    at = {(run.program, run.rows, run.round): run for run in runs}

    def per_row(name: str, field: str) -> float:
        small, large = (sizes[name].rows * times for times in (sizes[name].small, sizes[name].large))
        differences = (
            getattr(at[name, large, number], field) - (getattr(at[name, small, number], field) if small else 0.0)
            for number in range(rounds)
        )
        return median(differences) / (large - small)

    cores = Machine.here().cores
    counted = {program.name for program in PROGRAMS if program.counts_cpu} & sizes.keys()
    return Figures(
        rows={name: str(of) for name, of in sizes.items()},
        rows_per_second={name: 1 / per_row(name, "wall") for name in sizes},
        cpu_microseconds_per_row={name: per_row(name, "cpu") * 1e6 for name in sizes if name in counted},
        bound=cores / per_row("bare loop", "cpu") if "bare loop" in sizes else 0.0,
        ceiling=cores / alone,
    )


def _goals(figures: Figures) -> list[Goal]:
    rates = figures.rows_per_second
    if "headrace" not in rates:
        return []
    ours = rates["headrace"]
    bound = [Goal("headrace / the bound", ours / figures.bound, OF_THE_BOUND, at_least=True)] if figures.bound else []
    return bound + [
        Goal(f"headrace / {program.name}", ours / rates[program.name], program.goal, at_least=True)
        for program in PROGRAMS
        if program.goal is not None and program.name in rates
    ]


def _table(of: Figures, head: str, left_out: Mapping[str, str]) -> str:
    rates, cpu = of.rows_per_second, of.cpu_microseconds_per_row
    bare = rates.get("bare loop", 0.0)
    lines = [head, "", f"{'':<30} {'rows/s':>10} {'x bare loop':>12} {'CPU-us/row':>11}   between rows"]
    for name, rate in [*rates.items(), *([("the bound", of.bound)] if bare else []), ("the ceiling", of.ceiling)]:
        times = f"{rate / bare:.2f}" if bare else "-"
        spent = f"{cpu[name]:.2f}" if name in cpu else "-"
        lines.append(f"{name:<30} {rate:>10,.0f} {times:>12} {spent:>11}   {of.rows.get(name, '')}".rstrip())
    lines += [f"{name:<30} was not run: {reason}" for name, reason in left_out.items()]
    bound_lines = ["the bound: cores / CPU-seconds per row of the bare loop"]
    return "\n".join([*lines, "", *bound_lines, "the ceiling: the same of the model alone, its batch in memory"])


def _picture(of: Figures, machine: Machine) -> str:
    rates = dict(sorted(of.rows_per_second.items(), key=lambda pair: -pair[1]))
    rows = [(name, rate, f"{rate:,.0f}") for name, rate in rates.items()]
    what = f"64-256-256-10 network on local Parquet; {machine.cores} cores of {machine.cpu}, {machine.date[:10]}"
    title = "Rows per second, start-up left out"
    return picture.bars(title, what, rows, goal=OF_THE_BOUND * of.bound if of.bound else None)


if __name__ == "__main__":
    sys.exit(main())
