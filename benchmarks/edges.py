"""What a job of a million shards costs beside predicting: each step at 10^4, 10^5 and 10^6 shards of 50 columns.

Inputs and outputs are made up, in memory; what a real store takes for its answers comes on top. Each program is a process of
its own. Its peak includes the interpreter with Beam and Arrow, which is given beside it.
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
SIZES = (10_000, 100_000, 1_000_000)
QUICK = (1_000, 2_000)
# In this order: some read what others leave.
WHAT = {
    "resume": "one worker: lists the output, drops half of the plan",
    "add_up": "one worker of ten: adds up what shards tell",
    "combine": "one worker: the accounts of all bundles",
    "parts": "one worker: all parts of the manifest",
    "last": "the last step: manifest against listing, report",
    "again": "launcher: the same command when all is done",
    "local": "all of that on Beam's local runner, in one process",
}
# Beam's local runner holds every element in memory: it is measured only where that is bearable.
MOST_LOCAL = 100_000
MOST_MIB, LEAST_LINEAR = 1024.0, 0.8


def main(argv: Sequence[str] | None = None) -> int:
    parser = measure.arguments("edges", __doc__, runs=1, room="500 MB")
    parser.add_argument(
        "--only", nargs="+", choices=list(WHAT), help="these programs, in the order of their names here"
    )
    parser.add_argument("--shards", nargs="+", type=int, default=SIZES, help="so many (default: 10^4, 10^5 and 10^6)")
    asked = parser.parse_args(argv)
    sizes, rounds = (QUICK, 1) if asked.quick else (asked.shards, asked.runs)
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    with measure.work_folder(asked.work) as folder:
        for _ in range(rounds):
            for count in sizes:
                for program in asked.only or WHAT:
                    if program == "local" and count > MOST_LOCAL:
                        continue
                    command = measure.python("benchmarks.edges_programs", program, str(count), folder)
                    measure.run(program, command, f"{folder}/log.txt")
                    with open(f"{folder}/log.txt", encoding="utf-8") as log:
                        rows.setdefault((program, count), []).append(json.loads(log.read().splitlines()[-1]))
                    last = rows[program, count][-1]
                    measure.show_progress(f"{WHAT[program]}, {count:,} shards: {last['seconds']:.1f} s")
    cpu = {key: median(run["cpu_seconds"] for run in runs) for key, runs in rows.items()}
    lines, goals = [f"{Machine.here()}\nmedians of {rounds}", ""], []
    for (program, count), runs in rows.items():
        seconds, top, before = (median(run[name] for run in runs) for name in ("seconds", "peak", "before"))
        lines.append(
            f"{WHAT[program]:<56}{count:>10,} shards{seconds:>8.1f} s, CPU{cpu[program, count]:>8.1f} s, "
            f"peak{top / MIB:>6,.0f} MiB, {before / MIB:,.0f} before"
        )
    for program in WHAT:
        counts = [count for name, count in rows if name == program]
        if not counts:
            continue
        few, many = (counts[-2], counts[-1]) if len(counts) > 1 else (counts[0], counts[0])
        ratio = (many / cpu[program, many]) / (few / cpu[program, few])
        goals.append(Goal(f"{program}: shards per CPU s, {many:,} / {few:,}", ratio, LEAST_LINEAR, at_least=True))
        if program != "local":
            most = median(run["peak"] for run in rows[program, many]) / MIB
            goals.append(Goal(f"{program}: peak MiB at {many:,} shards", most, MOST_MIB, at_least=False))
    kept = {f"{program} {count}": runs for (program, count), runs in rows.items()}
    measure.show(asked, "\n".join(lines), goals, {**asdict(Machine.here()), "runs": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
