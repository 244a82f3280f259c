"""The graph's last step: every shard accounted for, then the manifest, then `_SUCCESS`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.transforms.combiners import ToListCombineFn

from transforms.errors import AlreadyExists, OutputConflict, OutputIncomplete
from transforms.job import MANIFEST_FOLDER, SUCCESS, Job
from transforms.plan import list_outputs
from transforms.shard import Shard, ShardResult, parse_output_name
from transforms.storage import Store, open_store

MANIFEST_SCHEMA = pa.schema(
    [
        ("output", pa.string()),
        ("output_bytes", pa.int64()),
        ("output_version", pa.string()),
        ("output_crc32c", pa.uint32()),
        ("input", pa.string()),
        ("input_bytes", pa.int64()),
        ("input_version", pa.string()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("intra_op_threads", pa.int32()),
        ("read_seconds", pa.float64()),
        ("predict_seconds", pa.float64()),
        ("write_seconds", pa.float64()),
    ]
)


def manifest_table(results: Iterable[ShardResult]) -> pa.Table:
    """One row per output, in input order. Times are null where the output stood there before this run."""
    rows = []
    for result in sorted(results, key=lambda result: result.shard):
        shard = result.shard
        rows.append(
            {
                "output": shard.output,
                "output_bytes": result.output_bytes,
                "output_version": result.output_version,
                "output_crc32c": result.output_crc32c,
                "input": shard.source.uri,
                "input_bytes": shard.source.size,
                "input_version": shard.source.version,
                "first_row": shard.first_row,
                "rows": shard.rows,
                "intra_op_threads": result.intra_op_threads,
                **{f"{stage}_seconds": seconds for stage, seconds in result.seconds.items()},
            }
        )
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def finalize(job: Job, results: list[ShardResult]) -> dict[str, Any]:
    """Holds the results against the output folder, writes the manifest and `_SUCCESS`, and returns what that holds.

    Where an equal job, started at the same time, was first, its manifest and its mark are the ones that stay.
    """
    store = open_store(job.output, job.storage)
    check_complete(job, results)
    table = manifest_table(results)
    manifest = _write_manifest(store, job, table)
    summary = {
        "fingerprint": job.fingerprint,
        "manifest": [manifest],
        "shards": table.num_rows,
        "rows": sum(result.shard.rows for result in results),
        "limit": job.limit,
    }
    summary = _mark_success(store, f"{job.output}/{SUCCESS}", summary)
    for ref in store.list(f"{job.output}/{MANIFEST_FOLDER}/"):
        if ref.uri.removeprefix(f"{job.output}/") not in summary["manifest"]:
            store.delete(ref)
    return summary


def check_complete(job: Job, results: list[ShardResult]) -> None:
    """Raises `OutputIncomplete` where a file of the plan is gone, `OutputConflict` where one stands that is none of it."""
    there = list_outputs(job.output, job.storage).objects
    planned = {result.shard.output: result for result in results}
    if gone := sorted(planned.keys() - there.keys()):
        raise OutputIncomplete(
            f"{job.output}/{gone[0]} has vanished since it was written",
            expected=f"{len(planned)} prediction files",
            found=f"{len(planned) - len(gone)}",
            cure="Run the same command again; it computes what is missing",
        )
    stray = sorted(name for name in there.keys() - planned.keys() if parse_output_name(name) is not None)
    if stray:
        raise OutputConflict(
            f"{job.output}/{stray[0]} is no part of this job, or of its input as it is now",
            expected=f"the {len(planned)} files of the plan",
            found=f"{len(stray)} more",
            cure="Name another --output, or add --overwrite to replace the earlier output",
        )


def _write_manifest(store: Store, job: Job, table: pa.Table) -> str:
    sink = io.BytesIO()
    record = {b"headrace.job": json.dumps(job.record(), sort_keys=True).encode()}
    pq.write_table(table.replace_schema_metadata(record), sink, compression="zstd")
    data = sink.getvalue()
    name = f"{MANIFEST_FOLDER}/part-00000-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    _create_same(store, f"{job.output}/{name}", data)
    return name


def _mark_success(store: Store, uri: str, summary: dict[str, Any]) -> dict[str, Any]:
    """What `_SUCCESS` holds then: an equal job's account of the same shards may name another manifest of them."""
    data = json.dumps(summary, indent=2).encode() + b"\n"
    try:
        _create_same(store, uri, data)
    except AlreadyExists:
        there: dict[str, Any] = json.loads(store.read(store.stat(uri)))
        if there | {"manifest": summary["manifest"]} != summary:
            raise
        return there
    return summary


def _create_same(store: Store, uri: str, data: bytes) -> None:
    """What stands there already is success only if it says the same."""
    with store.create(uri) as writer:
        try:
            writer.write(data)
            writer.commit()
        except AlreadyExists:
            if store.read(store.stat(uri)) != data:
                raise
        return


class _Account(beam.DoFn):
    """Joins plan and results by output name: each planned shard has its result."""

    def process(self, element: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[ShardResult]:
        name, joined = element
        planned: list[Shard] = list(joined["planned"])
        results: list[ShardResult] = list(joined["results"])
        if not results:
            raise OutputIncomplete(
                f"No worker accounts for {name}",
                expected=f"rows {planned[0].first_row} to {planned[0].end_row} of {planned[0].source.uri}",
                cure="Run the same command again; it computes what is missing",
            )
        yield results[0]


class _Finish(beam.DoFn):
    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, results: list[ShardResult]) -> Iterator[dict[str, Any]]:
        yield finalize(self._job, results)


class Finalize(beam.PTransform):
    """(PCollection[Shard], PCollection[ShardResult]) to the one element that `_SUCCESS` holds."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def expand(self, joined: tuple[beam.PCollection[Shard], beam.PCollection[ShardResult]]) -> Any:
        planned, results = joined
        by_name = {
            "planned": planned | "PlannedByName" >> beam.Map(lambda shard: (shard.output, shard)),
            "results": results | "ResultsByName" >> beam.Map(lambda result: (result.shard.output, result)),
        }
        return (
            by_name
            | "Join" >> beam.CoGroupByKey()
            | "Account" >> beam.ParDo(_Account())
            | "Gather" >> beam.CombineGlobally(ToListCombineFn())
            | "Finish" >> beam.ParDo(_Finish(self._job))
        )
