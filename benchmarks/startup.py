"""Seconds of a whole job of 1,000 rows, beside a process that imports Beam and TensorFlow, loads the model, and ends.

The two take turns, and medians are taken: compare figures of one sitting only.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from benchmarks import measure, work
from benchmarks.measure import Goal, Machine

ROWS = 1_000
MOST = 1.2
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
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with measure.work_folder(asked.work) as folder:
        model, inputs, output = work.make_model(folder), work.make_rows(folder, ROWS), f"{folder}/out"
        job = [f"--model={model}", f"--input={inputs}/*.parquet", f"--output={output}"]
        commands = {
            PROGRAMS[0]: measure.python("pipeline", *job, "--prediction=output_0=scores"),
            PROGRAMS[1]: [sys.executable, "-c", IMPORTS, model],
        }
        if not asked.quick:
            for name, command in commands.items():  # so that the first round finds every file in the page cache
                shutil.rmtree(output, ignore_errors=True)
                measure.run(name, command, f"{folder}/log.txt")
        for number in range(rounds):
            for name in measure.in_turn(PROGRAMS, number):
                shutil.rmtree(output, ignore_errors=True)
                seconds[name].append(measure.run(name, commands[name], f"{folder}/log.txt").wall)
                measure.show_progress(f"round {number + 1} of {rounds}: {name}: {seconds[name][-1]:.2f} s")
    middle = {name: median(each) for name, each in seconds.items()}
    goals = [Goal(" / ".join(PROGRAMS), middle[PROGRAMS[0]] / middle[PROGRAMS[1]], MOST, at_least=False)]
    machine = Machine.here()
    lines = [f"{machine}\nmedians of {rounds}", "", *(f"{name:<24} {value:6.2f} s" for name, value in middle.items())]
    measure.show(asked, "\n".join(lines), goals, {**asdict(machine), "seconds": seconds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
