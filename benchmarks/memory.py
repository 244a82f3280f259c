"""Peak memory of a job over one shard, above a process that only has the same imports and the model.

Shards of 10^5 rows and of 10^7 rows in row groups of 16,384, and of 10^7 rows in a single row group. A row is 64 floats, so
10^7 rows are 2.5 GB once read; in the file they are a few MB, since 16,384 rows after one another are equal: the input's
size on disk is not what this measures. Medians are taken.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure, work
from benchmarks.measure import Goal, Machine

ROWS = (100_000, 10_000_000)
QUICK_ROWS = (20_000, 200_000)
BLOCKS = 16
MIB = 1 << 20
MOST_MIB, MOST_GROWTH = 300.0, 1.10
BASE = "imports and the model"
IMPORTS = """
import sys

from headrace.pipeline.unused_modules import unused_modules
from headrace.transforms.left_out import leave_out
from headrace.transforms.predicting.devices import set_up_tensorflow

leave_out(*unused_modules(["--model"]))
set_up_tensorflow(whole_process=True)

import headrace.pipeline.runners.launch
import headrace.pipeline.checks.preflight
import headrace.pipeline.commands.summary
import headrace.pipeline.checks.output_folder
from headrace.transforms.models.loading import Loading
from headrace.transforms.models.pin import pin_model
from headrace.transforms.predicting.predictor import devices_for, load_shared

ref, loading = pin_model(sys.argv[1]), Loading()
model = load_shared(ref, "serving_default", loading, devices_for([ref], loading)[0])
"""


def main(argv: Sequence[str] | None = None) -> int:
    asked = measure.arguments("memory", __doc__, runs=3, room="100 MB").parse_args(argv)
    rounds, (small, large) = (1, QUICK_ROWS) if asked.quick else (asked.runs, ROWS)
    shards = {
        f"{small:,} rows": (small, work.ROW_GROUP_ROWS),
        f"{large:,} rows": (large, work.ROW_GROUP_ROWS),
        f"{large:,} rows in one row group": (large, large),
    }
    if asked.quick:
        del shards[f"{large:,} rows"]
    peaks: dict[str, list[int]] = {name: [] for name in (BASE, *shards)}
    with measure.work_folder(asked.work) as folder:
        # A process that this one starts counts this one's peak as its own until it runs a program of its own.
        model = measure.apart(work.make_model, folder)
        inputs = {name: measure.apart(make_shard, folder, *shape) for name, shape in shards.items()}
        for number in range(rounds):
            for name in measure.in_turn(list(peaks), number):
                peaks[name].append(_peak(name, folder, model, inputs.get(name), shards.get(name, (0, 0))[0]))
                measure.show_progress(f"round {number + 1} of {rounds}: {name}: peak {peaks[name][-1] / MIB:,.0f} MiB")
    middle = {name: median(each) / MIB for name, each in peaks.items()}
    above = {name: middle[name] - middle[BASE] for name in shards}
    first, *others = above
    goals = [Goal(f"{name}, MiB above {BASE}", above[name], MOST_MIB, at_least=False) for name in above]
    goals += [Goal(f"{name} / {first}", above[name] / above[first], MOST_GROWTH, at_least=False) for name in others]
    machine = Machine.here()
    lines = [f"{machine}\nmedians of {rounds}", "", f"{BASE:<32} peak {middle[BASE]:6,.0f} MiB"]
    lines += [f"{name:<32} peak {middle[name]:6,.0f} MiB, {above[name]:+,.0f} MiB" for name in above]
    measure.show(asked, "\n".join(lines), goals, {**asdict(machine), "peak_bytes": peaks})
    return 0


def _peak(name: str, folder: str, model: str, source: str | None, rows: int) -> int:
    if source is None:
        return measure.run(name, [sys.executable, "-c", IMPORTS, model], f"{folder}/log.txt").peak
    output = f"{folder}/out"
    shutil.rmtree(output, ignore_errors=True)
    flags = [f"--model={model}", f"--input={source}", f"--output={output}", "--prediction=output_0=scores"]
    used = measure.run(name, measure.python("pipeline", *flags), f"{folder}/log.txt")
    found = [pq.read_metadata(f"{output}/{file}").num_rows for file in os.listdir(output) if file.endswith(".parquet")]
    if found != [rows]:
        raise SystemExit(f"{name}: wrote files of {found} rows, not one of {rows}.")
    return used.peak


def make_shard(folder: str, rows: int, row_group_rows: int) -> str:
    """One file; while it is written, a few rows are in memory under many names, which takes little memory."""
    target = f"{folder}/shard-{rows}-{row_group_rows}.parquet"
    if os.path.exists(target):
        return target
    random = np.random.default_rng(0)
    size = work.ROW_GROUP_ROWS
    blocks = []
    for _ in range(BLOCKS):
        row = random.standard_normal(work.WIDTH, dtype=np.float32)
        blocks.append(pa.FixedSizeListArray.from_arrays(pa.array(np.tile(row, size)), work.WIDTH))
    full, rest = divmod(rows, size)
    chunks = [blocks[i % BLOCKS] for i in range(full)] + [blocks[full % BLOCKS].slice(0, rest)]
    table = pa.table({"id": pa.array(np.arange(rows)), "features": pa.chunked_array(chunks)})
    with pq.ParquetWriter(
        f"{target}.part",
        table.schema,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"id": "DELTA_BINARY_PACKED", "features.list.element": "PLAIN"},
    ) as writer:
        writer.write_table(table, row_group_size=row_group_rows)
    os.rename(f"{target}.part", target)
    return target


if __name__ == "__main__":
    sys.exit(main())
