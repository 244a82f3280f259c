"""CPU time of reading Parquet with its footers and pages checked, beside pyarrow's own reader.

Each file is read whole by both in turn, in one process; the medians' ratio counts. `first` reads a copy that no footer was
kept of, `again` one whose footer was parsed before, as for the second shard of a file.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.measure import Goal, Machine
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.shards.shard import Shard
from headrace.transforms.storage import open_store

BATCH_ROWS = 8192
# Columns, rows, row groups, and the largest ratio allowed.
SHAPES = ((8, 500_000, 4, 1.1), (500, 16_000, 2, None), (2_000, 8_000, 2, 1.3))


def main(argv: Sequence[str] | None = None) -> int:
    asked = measure.arguments("guard", __doc__, runs=9, room="200 MB").parse_args(argv)
    rounds = 1 if asked.quick else asked.runs
    goals, lines, figures = [], [], {}
    with measure.work_folder(asked.work) as folder:
        for columns, rows, groups, most in SHAPES:
            path = _make(folder, columns, rows // 20 if asked.quick else rows, groups)
            seconds = _measure(path, rounds)
            ratio = {name: seconds[name] / seconds["pyarrow"] for name in ("first", "again")}
            figures[columns] = {"seconds": seconds, "ratio": ratio}
            times = "  ".join(f"{name} {value * 1e3:8.1f} ms" for name, value in seconds.items())
            lines.append(f"{columns:>6} columns  {times}  ratios {ratio['first']:.2f}, {ratio['again']:.2f}")
            measure.show_progress(lines[-1])
            if most is not None:
                goals.append(Goal(f"CPU beside pyarrow's, {columns:,} columns", ratio["first"], most, at_least=False))
    machine = Machine.here()
    measure.show(asked, "\n".join([str(machine), *lines]), goals, {**asdict(machine), "figures": figures})
    return 0


def _make(folder: str, columns: int, rows: int, groups: int) -> str:
    rng = np.random.default_rng(0)
    values = {f"column_{i}": rng.random(rows, "f4") if i % 2 else rng.integers(0, 1000, rows) for i in range(columns)}
    path = f"{folder}/{columns}.parquet"
    pq.write_table(pa.table(values), path, compression="zstd", row_group_size=-(-rows // groups))
    return path


def _measure(path: str, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {"pyarrow": [], "first": [], "again": []}
    for number in range(rounds + 1):
        copy = f"{path}.{number}"
        shutil.copy(path, copy)
        for name in ("pyarrow", "first", "again"):
            start = time.process_time()
            (_pyarrow if name == "pyarrow" else _headrace)(copy)
            if number:  # the first warms up
                times[name].append(time.process_time() - start)
        os.remove(copy)
    return {name: median(each) for name, each in times.items()}


def _pyarrow(path: str) -> None:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for _ in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            pass


def _headrace(path: str) -> None:
    store = open_store(path)
    source = store.stat(path)
    footer = read_footer(store, source)
    shard = Shard("out", source, 0, footer.rows, (0, len(footer.row_group_rows)), source.size)
    for _ in read_batches(store, shard, footer.schema.names, BATCH_ROWS):
        pass


if __name__ == "__main__":
    sys.exit(main())
