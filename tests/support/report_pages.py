"""Pages of runs that are hard to show: everything in one class, a row, no row, many columns, long names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.transforms.jobs.job import OnError
from headrace.transforms.report.kept import Kept
from headrace.transforms.report.page import Run, page
from headrace.transforms.shards.measuring import Process, ShardMeasurements, ShardMeasuring
from headrace.transforms.shards.shard import Shard, ShardResult
from headrace.transforms.storage import ObjectRef
from tests.support.finishing import account_of
from tests.support.plans import plain_job

LONG = "a_folder_with_a_very_long_name_in_which_nothing_can_be_broken_" * 4
KINDS = ("whole", "one row", "no row", "200 columns", "long names", "bad rows")


def write_page(kind: str, folder: Path) -> Path:
    """One of `KINDS`."""
    table = _predictions(kind)
    place = f"memory://{LONG}/{LONG}" if kind == "long names" else "memory://b"
    errors = OnError(f"{place}/out/_dead_letters", "1%") if kind in ("bad rows", "long names") else OnError()
    job = plain_job(f"{place}/in/*.parquet", output=f"{place}/out", on_error=errors)
    account = account_of([_result(table, place)])
    if errors.dead_letters:
        account.rows, account.bad_rows = 61, 1
    kept = Kept(("_manifest/part",), "2026-11-30 01:00:00 UTC", "digest", account.rows, 0, 10.0, tuple(account.columns))
    path = folder / f"{kind.replace(' ', '_')}.html"
    path.write_text(page(Run(job, account, kept, None, "This is the first report here.")))
    return path


def _predictions(kind: str) -> pa.Table:
    random = np.random.default_rng(1)
    rows = {"one row": 1, "no row": 0}.get(kind, 61)
    columns: dict[str, Any] = {"label": np.full(rows, 3), "score": random.beta(8, 1, rows).astype(np.float32)}
    if kind == "whole":
        columns["score"] = np.full(rows, 0.015625)
    if kind == "200 columns":
        columns = {f"output_{i:03d}": random.normal(i, 1 + i, rows) for i in range(200)}
    if kind == "long names":
        columns = {f"{LONG}.score": columns["score"], f"{LONG}.text": [f"{LONG}{i % 3}" for i in range(rows)]}
    return pa.table(columns)


def _result(table: pa.Table, place: str) -> ShardResult:
    measuring = ShardMeasuring(table.schema, table.schema.names)
    for batch in table.to_batches():
        measuring.add(batch, 0.015625)
    measuring.key_values()
    source = ObjectRef(f"{place}/in/part-0.parquet", 1000, "1")
    shard = Shard(f"part-0-{0:012d}-{table.num_rows:012d}-{0:020x}.parquet", source, 0, table.num_rows, (0, 1), 1000)
    measurements = measuring.measurements()
    process = Process("worker:1", 1e9, 2.5, 0)
    return ShardResult(
        *(shard, 5000, "1", 0),
        computed=True,
        predicted_rows=table.num_rows,
        batches=1,
        read_bytes=1000,
        seconds={"read": 0.5, "predict": 2.0, "write": 0.25},
        device="cpu",
        measurements=ShardMeasurements(
            measurements.columns, 1e9 + 2.5, 1e9 + 5.25, measurements.batch_seconds, process, 1
        ),
    )
