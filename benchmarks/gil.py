"""How often the interpreter's lock is held while a job runs, by py-spy, and by whom.

py-spy looks into the running job at fixed instants once the first of its files is committed. With `--gil` it counts a
sample only where a thread holds the lock: their number over that of all instants is the share. Medians are taken.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from benchmarks import measure, work
from benchmarks.measure import Goal, Machine

RATE = 100
MOST = 0.05
SHOWN = 12
OURS = re.compile(r"\((?:headrace/)?(?:pipeline|transforms)/")


def main(argv: Sequence[str] | None = None) -> int:
    asked = measure.arguments("gil", __doc__, runs=3, room="3 GB").parse_args(argv)
    rounds, (times, seconds) = (1, (2, 1)) if asked.quick else (asked.runs, (20, 15))
    shares, leaves, callers = [], Counter[str](), Counter[str]()
    with measure.work_folder(asked.work) as folder:
        model, inputs = work.make_model(folder), work.under_more_names(work.make_rows(folder, 1_000_000), times)
        for number in range(rounds):
            stacks = _sample(folder, model, inputs, seconds)
            shares.append(stacks.total() / (RATE * seconds))
            for stack, count in stacks.items():
                frames = stack.split(";")
                leaves[frames[-1]] += count
                callers[next((frame for frame in reversed(frames) if OURS.search(frame)), "no code of ours")] += count
            measure.show_progress(f"round {number + 1} of {rounds}: held in {shares[-1]:.1%} of samples")
    instants = RATE * seconds * rounds
    goals = [Goal("share of samples in which the lock is held", median(shares), MOST, at_least=False)]
    machine = Machine.here()
    lines = [f"{machine}\n{rounds} times {seconds} s, {RATE} samples a second"]
    for title, counted in (("function that holds it", leaves), ("deepest function of headrace's", callers)):
        lines += ["", f"{'samples':>8}  {title}"]
        lines += [f"{count / instants:8.2%}  {name}" for name, count in counted.most_common(SHOWN)]
    everything = {**asdict(machine), "instants": instants, "shares": shares, "held_by": leaves, "under": callers}
    measure.show(asked, "\n".join(lines), goals, everything)
    return 0


def _sample(folder: str, model: str, inputs: str, seconds: int) -> Counter[str]:
    """Stacks, outermost frame first and joined by `;`, each with the number of samples in which it held the lock."""
    output = f"{folder}/out"
    shutil.rmtree(output, ignore_errors=True)
    flags = [f"--model={model}", f"--input={inputs}/*.parquet", f"--output={output}", "--prediction=output_0=scores"]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with (
        open(f"{folder}/log.txt", "w+", encoding="utf-8") as log,
        subprocess.Popen(
            measure.python("pipeline", *flags), cwd=measure.ROOT, env=quiet, stdout=log, stderr=log
        ) as job,
    ):
        try:
            while job.poll() is None and not glob.glob(f"{output}/*.parquet"):
                time.sleep(0.05)
            stacks = _record(job.pid, seconds)
            if job.poll() is not None:
                log.seek(0)
                raise SystemExit(f"The job ended before {seconds} s of samples were taken:\n{log.read()[-4000:]}")
            return stacks
        finally:
            job.kill()


def _record(pid: int, seconds: int) -> Counter[str]:
    program = shutil.which("py-spy", path=f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        raise SystemExit("There is no py-spy: pip install 'headrace[bench]'.")
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", suffix=".txt") as raw:
        how = [
            f"--pid={pid}",
            f"--duration={seconds}",
            f"--rate={RATE}",
            "--gil",
            "--format=raw",
            f"--output={raw.name}",
        ]
        ran = subprocess.run([program, "record", *how], capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(
                f"py-spy cannot look into the job (it needs root, or ptrace_scope 0):\n{ran.stderr[-2000:]}"
            )
        stacks = Counter[str]()
        for line in raw.read().splitlines():
            stack, _, count = line.rpartition(" ")
            stacks[re.sub(r":\d+\)", ")", stack)] += int(count)
        return stacks


if __name__ == "__main__":
    sys.exit(main())
