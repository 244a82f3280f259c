"""What a GPU makes of headrace: loading, a whole job, and batches that its memory does not hold.

Each stage is a process of its own (benchmarks/gpu_programs.py) with a time limit; one that fails is reported, and the others go
on. The GPU's numbers are compared with the natively loaded model's on the same GPU. Without a GPU, --quick runs it on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import measure
from benchmarks.load import LAYERS, MODELS, make_models
from benchmarks.measure import ROOT, Goal, Machine

IN_FLIGHT = 256 << 20
MIB = 1 << 20
CALLS = (1, 2, 3, 4)


def main(argv: Sequence[str] | None = None) -> int:
    parser = measure.arguments("gpu", __doc__, runs=3, room="12 GB")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of each model (default: %(default)s)")
    parser.add_argument("--limit_s", type=int, default=300, help="of each stage (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.size, asked.runs = 16, 1
    found: list[dict[str, Any]] = []
    goals: list[Goal] = []
    with measure.work_folder(asked.work) as folder:
        for stage in asked.stages:
            STAGES[stage](Bench(asked, folder, found, goals))
    lines = [str(Machine.here()), *(f"{stage.pop('stage')}: {json.dumps(stage)}" for stage in map(dict, found))]
    measure.show(asked, "\n".join(lines), goals, {"found": found})
    return int(any("failed" in stage for stage in found))


class Bench:
    """The request, and the results so far."""

    def __init__(self, asked: Any, folder: str, found: list[dict[str, Any]], goals: list[Goal]) -> None:
        self.asked, self.folder, self.found, self.goals = asked, folder, found, goals

    def run(self, stage: str, **task: Any) -> dict[str, Any]:
        """One process's JSON; where it fails, an empty one, and why is among what was found."""
        start = time.perf_counter()
        command = measure.python("benchmarks.gpu_programs", json.dumps({"stage": stage, **task}))
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        try:
            ran = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=self.asked.limit_s
            )
            said = json.loads(ran.stdout.splitlines()[-1]) if not ran.returncode else {"failed": ran.stderr[-3000:]}
        except subprocess.TimeoutExpired as error:
            said = {"failed": f"not done after {error.timeout:.0f} s: {(error.stderr or b'')[-3000:]!r}"}
        named = {name: value for name, value in task.items() if name not in ("folder", "width")}
        self.found.append({"stage": stage, **named, **said, "process_s": round(time.perf_counter() - start, 1)})
        measure.show_progress(json.dumps(self.found[-1]))
        return {} if "failed" in said else said

    def goal(self, what: str, figure: float, bound: float, *, at_least: bool) -> None:
        self.goals.append(Goal(what, figure, bound, at_least))


def _card(bench: Bench) -> None:
    """The GPU and the libraries, and whether a product and a convolution are correct."""
    result = bench.run("card")
    if result:
        bench.goal("largest relative error (TF32 has 10 bits)", max(result["errors"].values()), 2e-3, at_least=False)


def _load(bench: Bench) -> None:
    """A model of each format onto the GPU, compared with its native loader: seconds, host memory, the same numbers."""
    width = make_models(f"{bench.folder}/models-{bench.asked.size}", bench.asked.size)
    largest = bench.asked.size * MIB // LAYERS
    for model in MODELS:
        runs: dict[str, list[dict[str, Any]]] = {"headrace": [], "native": []}
        for number in range(bench.asked.runs):
            for program in measure.in_turn(list(runs), number):
                task = {"model": model, "program": program, "width": width, "in_flight": IN_FLIGHT}
                result = bench.run("load", folder=f"{bench.folder}/models-{bench.asked.size}", **task)
                runs[program] += [result] if result else []
        if not all(runs.values()):
            continue
        digests = {run["predictions"] for each in runs.values() for run in each}
        bench.goal(f"{model}: different predictions", len(digests), 1, at_least=False)
        peak = max(run["host_peak"] for run in runs["headrace"])
        bench.goal(f"{model}: host peak, MiB", peak / MIB, 1.1 * (IN_FLIGHT + largest) / MIB, at_least=False)


def _job(bench: Bench) -> None:
    """Images through ResNet50 by whole jobs, with more and more calls at once, compared with that model alone."""
    quick = bench.asked.quick
    work = (
        {"images": 8, "files": 2, "side": 32, "batch": 4}
        if quick
        else {"images": 1024, "files": 8, "side": 224, "batch": 256}
    )
    result = bench.run("job", folder=bench.folder, times=2 if quick else 3, calls=(2,) if quick else CALLS, **work)
    if result:
        rate = result["jobs"]["2 at once"]["rows_per_s"] / result["alone_with_copies"]
        bench.goal("images/s, job / model alone with copies", rate, 0.9, at_least=True)
        bench.goal("job: rows that differ", result["different"], 0, at_least=False)


def _memory(bench: Bench) -> None:
    """A batch too large for two GPUs of 2 GiB each, cut out of one: halved, and the same numbers all the same."""
    result = bench.run("memory", folder=bench.folder, rows=400 if bench.asked.quick else 80_000)
    if result:
        bench.goal("rows that differ after halving", result["different"], 0, at_least=False)
        if result["gpus"]:
            bench.goal("halvings", result["halved"], 1, at_least=True)
            bench.goal("replicas used", result["replicas"], 2, at_least=True)


STAGES = {"card": _card, "load": _load, "job": _job, "memory": _memory}

if __name__ == "__main__":
    sys.exit(main())
