"""CPU time of a row in `headrace`, beside the model alone and a bare loop, for tables of five shapes.

Each program runs as a process of its own on a small and on a large input; the difference between the two counts, so that
start-up is left out. The programs take turns, and medians are taken: compare figures of one sitting only.
"""

from __future__ import annotations

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
from headrace.transforms.nested_arrow import flat

OF_THE_CEILING = 0.75
PROGRAMS = ("headrace", "bare loop")


def main(argv: Sequence[str] | None = None) -> int:
    parser = measure.arguments("shapes", __doc__, runs=3, room="about 1 GB")
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    asked = parser.parse_args(argv)
    rounds, lines, goals, found = 1 if asked.quick else asked.runs, list[str](), list[Goal](), dict[str, object]()
    with measure.work_folder(asked.work) as folder:
        for name in asked.only:
            cpu, wall, alone = _measured(name, folder, rounds, asked.quick)
            found[name] = {"cpu": cpu, "wall": wall, "alone": alone}
            goals.append(
                Goal(f"{name}: model alone / headrace", alone / cpu["headrace"], OF_THE_CEILING, at_least=True)
            )
            rates = "".join(f"{1 / wall[program]:>12,.0f}" for program in PROGRAMS)
            spent = "".join(f"{seconds * 1e6:>12,.2f}" for seconds in (cpu["headrace"], cpu["bare loop"], alone))
            lines.append(f"{name:<9}{rates}{spent}   {SHAPES[name].what}")
    machine = Machine.here()
    head = f"{'':<9}{'rows/s':>12}{'bare loop':>12}{'CPU-us/row':>12}{'bare loop':>12}{'model alone':>12}"
    table = "\n".join([f"{machine}\nmedians of {rounds}", "", head, *lines])
    measure.show(asked, table, goals, {**asdict(machine), "shapes": found})
    return 0


def _measured(name: str, folder: str, rounds: int, quick: bool) -> tuple[dict[str, float], dict[str, float], float]:
    """CPU and wall seconds of a row, by program; CPU seconds of a row in the model alone."""
    shape = SHAPES[name]
    rows, large = (shape.rows // 100, 2) if quick else (shape.rows, shape.times)
    model = work.once(f"{folder}/{name}-model", partial(measure.apart, write_model, name))
    inputs = work.once(f"{folder}/{name}-{rows}-rows", partial(write_table, name, rows))
    alone = [measure.apart(seconds_alone, name, model, inputs)]
    cpu: dict[str, list[float]] = {program: [] for program in PROGRAMS}
    wall: dict[str, list[float]] = {program: [] for program in PROGRAMS}
    for number in range(rounds):
        for program in measure.in_turn(PROGRAMS, number):
            used = _run(program, name, folder, model, inputs, rows, large)
            before = measure.Used(0, 0, 0) if quick else _run(program, name, folder, model, inputs, rows, 1)
            cpu[program].append((used.cpu - before.cpu) / (rows * (large - 1)))
            wall[program].append((used.wall - before.wall) / (rows * (large - 1)))
            measure.show_progress(f"{name}, round {number + 1} of {rounds}: {program} in {used.wall:.1f} s")
        alone += [] if quick else [measure.apart(seconds_alone, name, model, inputs)]
    return {p: median(cpu[p]) for p in PROGRAMS}, {p: median(wall[p]) for p in PROGRAMS}, median(alone)


def _run(program: str, name: str, folder: str, model: str, inputs: str, rows: int, times: int) -> measure.Used:
    files, output = work.under_more_names(inputs, times), f"{folder}/out"
    shutil.rmtree(output, ignore_errors=True)
    if program == "headrace":
        job = [f"--model={model}", f"--input={files}/*.parquet", f"--output={output}", "--keep=id"]
        command = measure.python("pipeline", *job, "--prediction=output_0=scores", *SHAPES[name].flags)
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
