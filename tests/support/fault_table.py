"""docs/faults.md, a line for each fault that the tests tried and what came of it: `make chaos` has it written."""

from __future__ import annotations

import fcntl
import os

RUNS = int(os.environ.get("HEADRACE_CHAOS_RUNS", "4"))
SEED = int(os.environ.get("HEADRACE_CHAOS_SEED", "20261123"))
TABLE = os.environ.get("HEADRACE_CHAOS_TABLE")
HEAD = "| fault | runs | faults in them | outcome |"
ABOUT = (
    "# Faults tried, and what came of them",
    "",
    f"Made by `make chaos RUNS={RUNS} SEED={SEED}`. Whole jobs, each compared with an undisturbed one (the same names,",
    "rows, values and order) and by `headrace verify`. Loads are of small models of four kinds, compared with what",
    "TensorFlow or Keras loads.",
)


def tell(fault: str, asked: int, done: int, times: int, outcome: str) -> None:
    """A line of the table: of each fault how many runs were asked for and done, how often it struck in them, and what came of
    it. Tests that run side by side write one table.
    """
    if TABLE is None:
        return
    runs = f"{done:,}" if done == asked else f"{done:,} of {asked:,}: interrupted"
    with open(TABLE, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        lines = [line for line in file.read().splitlines() if line.startswith("| ")]
        rows = {line.split(" | ")[0]: line for line in lines if line != HEAD}
        rows[f"| {fault}"] = f"| {fault} | {runs} | {times:,} | {outcome} |"
        file.truncate(0)
        file.write("\n".join([*ABOUT, "", HEAD, "|---|---|---|---|", *rows.values(), ""]))
