"""Planning and resuming at many files, made up in memory: files per second, and the peak memory of launcher and workers.

Ten and a hundred times as many files show whether each is linear. A file has ten row groups; what a real store takes for its
answers comes on top: 10^4 files in a bucket over HTTP are planned beside a loop that only makes the same requests. Then a
finished job of 10^4 shards is run again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from benchmarks import measure
from benchmarks.measure import Goal, Machine

MIB = 1 << 20
FILES = {
    "launcher": (100_000, 1_000_000),
    "planning": (100_000, 1_000_000),
    "transform": (10_000, 100_000),
    "finished": (10_000,),
    "emulator": (10_000,),
    "bucket": (2_000,),
}
QUICK = {
    "launcher": (1_000, 10_000),
    "planning": (100, 1_000),
    "transform": (100, 1_000),
    "finished": (100,),
    "emulator": (100,),
    "bucket": (100,),
}
WHAT = {
    "launcher": "launcher: survey of the listing",
    "planning": "one worker: footers to units of work",
    "transform": "PlanShards on Beam's local runner",
    "finished": "launcher: a finished job run again",
    "emulator": "one worker: real files over HTTP",
    "bucket": "one worker: the same, 30 ms to a first byte",
}
MOST_MIB, LEAST_LINEAR, MOST_SECONDS, MOST_BARE = 500.0, 0.8, 5.0, 1.2


def main(argv: Sequence[str] | None = None) -> int:
    asked = measure.arguments("scale", __doc__, runs=1, room="1 MB").parse_args(argv)
    sizes, rounds = (QUICK, 1) if asked.quick else (FILES, asked.runs)
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    with measure.work_folder(asked.work) as folder:
        for number in range(rounds):
            for program in measure.in_turn(list(sizes), number):
                for files in sizes[program]:
                    command = measure.python("benchmarks.scale_programs", program, str(files))
                    measure.run(program, command, f"{folder}/log.txt")
                    with open(f"{folder}/log.txt", encoding="utf-8") as log:
                        rows.setdefault((program, files), []).append(json.loads(log.read().splitlines()[-1]))
                    last = rows[program, files][-1]
                    measure.show_progress(f"{WHAT[program]}, {files:,} files: {last['seconds']:.1f} s")
    seconds = {key: median(run["seconds"] for run in runs) for key, runs in rows.items()}
    peaks = {key: median(run["peak"] for run in runs) / MIB for key, runs in rows.items()}
    goals = []
    for program in ("launcher", "planning", "transform"):
        few, many = sizes[program]
        cpu = {files: median(run["cpu_seconds"] for run in rows[program, files]) for files in (few, many)}
        ratio = (many / cpu[many]) / (few / cpu[few])
        goals.append(Goal(f"{program}: files per CPU s, {many:,} / {few:,}", ratio, LEAST_LINEAR, at_least=True))
    most = sizes["launcher"][-1]
    (done,) = sizes["finished"]
    goals.append(Goal(f"launcher: peak MiB at {most:,} files", peaks["launcher", most], MOST_MIB, at_least=False))
    goals.append(
        Goal(
            f"a finished job of {done:,} shards again, seconds", seconds["finished", done], MOST_SECONDS, at_least=False
        )
    )
    for program, where in (("emulator", "over HTTP"), ("bucket", "in a bucket of 30 ms")):
        real = rows[program, sizes[program][0]]
        bare = median(run["plan_seconds"] / run["bare_seconds"] for run in real)
        goals.append(Goal(f"planning {where} / a bare loop's requests", bare, MOST_BARE, at_least=False))
    lines = [f"{Machine.here()}\nmedians of {rounds}", ""]
    for (program, files), spent in seconds.items():
        rate, peak = files / spent, peaks[program, files]
        lines.append(
            f"{WHAT[program]:<44}{files:>10,} files{spent:>9.1f} s{rate:>10,.0f} files/s, peak{peak:>7,.0f} MiB"
        )
    results = {f"{program} {files}": runs for (program, files), runs in rows.items()}
    measure.show(asked, "\n".join(lines), goals, {**asdict(Machine.here()), "runs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
