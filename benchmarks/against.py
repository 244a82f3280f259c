"""This checkout beside an earlier revision of it: start-up, rows per second and loading, in turn on one machine.

    python -m benchmarks.against 619bfdb

Each run is a process of its own with this environment's packages, in a folder that holds one revision's files. The two take
turns, and a round's ratio is of its two runs: figures of one sitting only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median, quantiles

from benchmarks import measure, work
from benchmarks.measure import ROOT, Goal, Machine, Used

LARGE_ROWS, SMALL_ROWS, TIMES = 1_000_000, 1_000, 2
WEIGHTS = (16, 4096)  # square float32 matrices of that width: 1 GiB
MOST = 1.03
HERE = "this checkout"
# The second import is that of a revision from before there was the name headrace.
LOAD = """
import sys
import tensorflow as tf
try:
    from headrace import load_model
except ImportError:
    from transforms import load_model
model = load_model(sys.argv[1])
assert model.nbytes
"""
MAKE = """
import sys
import tensorflow as tf
count, width = int(sys.argv[2]), int(sys.argv[3])
module = tf.Module()
module.kernels = [tf.Variable(tf.random.stateless_normal((width, width), (1, i))) for i in range(count)]
@tf.function(input_signature=[tf.TensorSpec((None, width), tf.float32, "x")])
def call(x):
    for kernel in module.kernels:
        x = tf.tanh(tf.matmul(x, kernel))
    return {"y": x}
module.call = call
tf.saved_model.save(module, sys.argv[1], signatures=call.get_concrete_function())
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = measure.arguments("against", __doc__, runs=7, room="2.5 GB")
    parser.add_argument("revision", nargs="?", default="HEAD", help="the earlier one, as git names it (default: HEAD)")
    asked = parser.parse_args(argv)
    rounds = 1 if asked.quick else asked.runs
    with measure.work_folder(asked.work) as folder:
        places = {HERE: ROOT, asked.revision: _checked_out(asked.revision, folder)}
        programs = _programs(folder, quick=asked.quick)
        used: dict[str, dict[str, list[Used]]] = {name: {place: [] for place in places} for name in programs}
        for name, command in programs.items():
            for number in range(
                -1, rounds
            ):  # the first of each finds its files in the page cache and its code compiled
                for place in measure.in_turn(tuple(places), number):
                    shutil.rmtree(f"{folder}/out", ignore_errors=True)
                    own = {"PYTHONPATH": places[place]}
                    figures = measure.run(f"{name}, {place}", command, f"{folder}/log.txt", own, places[place])
                    if number >= 0 or asked.quick:
                        used[name][place].append(figures)
                        measure.show_progress(
                            f"round {number + 1} of {rounds}: {name}, {place}: {figures.wall:.2f} s, {figures.cpu:.2f} CPU s"
                        )
    lines, goals = [f"{Machine.here()}\n{HERE} / {asked.revision}, medians of {rounds} rounds, and quartiles", ""], []
    for name, runs in used.items():
        for what in ("wall", "cpu", "peak"):
            ratios = [
                getattr(new, what) / getattr(old, what)
                for new, old in zip(runs[HERE], runs[asked.revision], strict=True)
            ]
            low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios * 3)
            lines.append(f"{name:<28} {what:<5} {median(ratios):6.3f}   {low:.3f} to {high:.3f}")
            goals.append(Goal(f"{name}, {what}", median(ratios), MOST, at_least=False))
    each = {
        name: {place: [asdict(figures) for figures in some] for place, some in runs.items()}
        for name, runs in used.items()
    }
    measure.show(asked, "\n".join(lines), goals, {**asdict(Machine.here()), "runs": each})
    return 0


def _checked_out(revision: str, folder: str) -> str:
    target = f"{folder}/revision"
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target)
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "x", "-C", target], input=packed.stdout, check=True)
    return target


def _programs(folder: str, *, quick: bool) -> dict[str, list[str]]:
    model = work.make_model(folder)
    large, small = (work.make_rows(folder, SMALL_ROWS if quick else rows) for rows in (LARGE_ROWS, SMALL_ROWS))
    count, width = (2, 64) if quick else WEIGHTS
    weights = f"{folder}/weights-{count}-{width}"
    if not os.path.exists(f"{weights}/saved_model.pb"):
        measure.run("a model", [sys.executable, "-c", MAKE, weights, str(count), str(width)], f"{folder}/log.txt")

    def job(rows: str) -> list[str]:
        asked = [
            f"--model={model}",
            f"--input={rows}/*.parquet",
            f"--output={folder}/out",
            "--prediction=output_0=scores",
        ]
        return measure.python("pipeline", *asked)

    times = 1 if quick else TIMES
    return {
        f"a job of {SMALL_ROWS:,} rows": job(small),
        f"a job of {times * LARGE_ROWS:,} rows": job(work.under_more_names(large, times)),
        f"loading {4 * count * width**2 / 2**30:.3g} GiB": [sys.executable, "-c", LOAD, weights],
    }


if __name__ == "__main__":
    sys.exit(main())
