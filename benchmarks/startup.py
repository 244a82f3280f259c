"""Seconds of a whole job of 1,000 rows, beside a process that imports Beam and TensorFlow, loads the model, and ends.

The two take turns, and medians are taken: compare figures of one sitting only. CPU seconds are those of the processor, of all
threads and processes; where other programs run, they say more than the time that passes. Both run with bytecode, which an
installation brings with it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from benchmarks import measure, work
from benchmarks.measure import Goal, Machine, Used

ROWS = 1_000
MOST = 0.7
IMPORTS = """
import sys

import apache_beam
import tensorflow as tf

model = tf.saved_model.load(sys.argv[1])
"""
PROGRAMS = ("headrace, 1,000 rows", "imports and the model")


def main(argv: Sequence[str] | None = None) -> int:
    asked = measure.arguments("startup", __doc__, runs=7, room="1 MB").parse_args(argv)
    rounds = 1 if asked.quick else asked.runs
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    used: dict[str, list[Used]] = {name: [] for name in PROGRAMS}
    with measure.work_folder(asked.work) as folder:
        model, inputs, output = work.make_model(folder), work.make_rows(folder, ROWS), f"{folder}/out"
        job = [f"--model={model}", f"--input={inputs}/*.parquet", f"--output={output}"]
        commands = {
            PROGRAMS[0]: measure.python("pipeline", *job, "--prediction=output_0=scores"),
            PROGRAMS[1]: [sys.executable, "-c", IMPORTS, model],
        }
        if not asked.quick:
            for name, command in commands.items():  # so that the first round finds every file, and its bytecode
                shutil.rmtree(output, ignore_errors=True)
                measure.run(name, command, f"{folder}/log.txt")
        for number in range(rounds):
            for name in measure.in_turn(PROGRAMS, number):
                shutil.rmtree(output, ignore_errors=True)
                used[name].append(measure.run(name, commands[name], f"{folder}/log.txt"))
                last = used[name][-1]
                measure.show_progress(
                    f"round {number + 1} of {rounds}: {name}: {last.wall:.2f} s, {last.cpu:.2f} s of CPU"
                )
    wall = {name: median(each.wall for each in runs) for name, runs in used.items()}
    cpu = {name: median(each.cpu for each in runs) for name, runs in used.items()}
    job_name, imports_name = PROGRAMS
    goals = [
        Goal(f"{' / '.join(PROGRAMS)}, {what}", each[job_name] / each[imports_name], MOST, at_least=False)
        for what, each in (("CPU", cpu), ("wall", wall))
    ]
    machine = Machine.here()
    lines = [f"{name:<24} {wall[name]:6.2f} s {cpu[name]:6.2f} s of CPU" for name in PROGRAMS]
    every = {name: [asdict(each) for each in runs] for name, runs in used.items()}
    measure.show(
        asked, "\n".join([f"{machine}\nmedians of {rounds}", "", *lines]), goals, {**asdict(machine), "used": every}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
