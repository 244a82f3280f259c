"""CPU time of a row in `headrace`, beside the model alone and a bare loop, for tables of five shapes.

Rows per second are beside Ray Data and Spark too. Each program runs as a process of its own on a small and a large input; the
difference between the two counts, so that start-up is left out. The programs take turns, and medians are taken: compare
figures of one sitting only.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from statistics import median

import numpy as np
import pyarrow.parquet as pq

from benchmarks import measure, work
from benchmarks.measure import Goal, Machine
from benchmarks.shape_programs import SHAPES, seconds_alone, write_model, write_table
from benchmarks.throughput_programs import PROGRAMS as PEERS
from benchmarks.throughput_programs import why_not
from headrace.transforms.nested_arrow import flat

OF_THE_CEILING = 0.75
PROGRAMS = ("headrace", "bare loop")
# Their CPU time is not known: they work in processes that are not children of the bench.
APART = {peer.name: peer for peer in PEERS if peer.apart}
PEERS_TIMES = 4


def main(argv: Sequence[str] | None = None) -> int:
    parser = measure.arguments("shapes", __doc__, runs=3, room="about 1 GB")
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    parser.add_argument(
        "--peers_python", metavar="FILE", help="the interpreter that has Spark and Ray (make bench-peers)"
    )
    asked = parser.parse_args(argv)
    left_out = {name: reason for name, peer in APART.items() if (reason := why_not(peer, asked.peers_python))}
    programs = [*PROGRAMS, *(name for name in APART if name not in left_out)]
    rounds, lines, goals, found = 1 if asked.quick else asked.runs, list[str](), list[Goal](), dict[str, object]()
    with measure.work_folder(asked.work) as folder:
        for name in asked.only:
            cpu, wall, alone = _measured(name, folder, rounds, asked, programs)
            found[name] = {"cpu": cpu, "wall": wall, "alone": alone}
            goals.append(
                Goal(f"{name}: model alone / headrace", alone / cpu["headrace"], OF_THE_CEILING, at_least=True)
            )
            rates = "".join(f"{1 / wall[program]:>12,.0f}" for program in programs)
            spent = "".join(f"{seconds * 1e6:>12,.2f}" for seconds in (cpu["headrace"], cpu["bare loop"], alone))
            lines.append(f"{name:<9}{rates}{spent}   {SHAPES[name].what}")
    machine = Machine.here()
    names = "".join(f"{name.split()[0] if name in APART else name:>12}" for name in programs)
    head = f"rows/s, and CPU-us/row of headrace, of the bare loop and of the model alone\n{'':<9}{names}"
    notes = [f"{name} is left out: {reason}." for name, reason in left_out.items()]
    table = "\n".join([f"{machine}\nmedians of {rounds}", "", head, *lines, *notes])
    measure.show(asked, table, goals, {**asdict(machine), "shapes": found})
    return 0


def _measured(
    name: str, folder: str, rounds: int, asked: argparse.Namespace, programs: Sequence[str]
) -> tuple[dict[str, float], dict[str, float], float]:
    """CPU and wall seconds of a row, by program; CPU seconds of a row in the model alone."""
    shape = SHAPES[name]
    rows = shape.rows // 100 if asked.quick else shape.rows
    model = work.once(f"{folder}/{name}-model", partial(measure.apart, write_model, name))
    inputs = work.once(f"{folder}/{name}-{rows}-rows", partial(write_table, name, rows))
    alone = [measure.apart(seconds_alone, name, model, inputs)]
    cpu: dict[str, list[float]] = {program: [] for program in programs}
    wall: dict[str, list[float]] = {program: [] for program in programs}
    for number in range(rounds):
        for program in measure.in_turn(programs, number):
            large = 2 if asked.quick else PEERS_TIMES if program in APART else shape.times
            run = partial(_run, program, name, folder, model, inputs, rows, peers_python=asked.peers_python)
            used, before = run(large), measure.Used(0, 0, 0) if asked.quick else run(1)
            cpu[program].append((used.cpu - before.cpu) / (rows * (large - 1)))
            wall[program].append((used.wall - before.wall) / (rows * (large - 1)))
            measure.show_progress(f"{name}, round {number + 1} of {rounds}: {program} in {used.wall:.1f} s")
    alone += [] if asked.quick else [measure.apart(seconds_alone, name, model, inputs)]
    return {p: median(cpu[p]) for p in programs}, {p: median(wall[p]) for p in programs}, median(alone)


def _run(
    program: str, name: str, folder: str, model: str, inputs: str, rows: int, times: int, *, peers_python: str | None
) -> measure.Used:
    files, output = work.under_more_names(inputs, times), f"{folder}/out"
    shutil.rmtree(output, ignore_errors=True)
    if program == "headrace":
        job = [f"--model={model}", f"--input={files}/*.parquet", f"--output={output}", "--keep=id"]
        command = measure.python("pipeline", *job, "--prediction=output_0=scores", *SHAPES[name].flags)
    elif program in APART:
        peer = measure.python(f"benchmarks.peers.{APART[program].command[0]}", model, files, output, name)
        command = [peers_python or sys.executable, *peer[1:]]
    else:
        command = measure.python("benchmarks.shape_programs", "loop", name, model, files, output)
    used = measure.run(program, command, f"{folder}/log.txt")
    _check(output, rows * times, program)
    return used


def _check(output: str, rows: int, program: str) -> None:
    table = pq.read_table(output)
    if table.num_rows != rows or not all(
        np.isfinite(flat(scores).to_numpy()).all() for scores in table["scores"].chunks
    ):
        raise SystemExit(f"{program} wrote {table.num_rows} rows, not {rows}, or scores that are not finite.")


if __name__ == "__main__":
    sys.exit(main())
