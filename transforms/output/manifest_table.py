"""The table in a part of the manifest: its schema, and results as its rows. No Beam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from ..errors import OutputIncomplete
from ..nested_arrow import schema_of
from ..shards.shard import ShardResult

JOINED = pa.struct(
    [
        ("input", pa.string()),
        ("input_bytes", pa.int64()),
        ("input_version", pa.string()),
        ("rows", pa.int64()),
        ("bad_rows", pa.int64()),
        ("filtered_rows", pa.int64()),
        ("batch_splits", pa.list_(pa.struct([("row", pa.int64()), ("rows", pa.int64())]))),
    ]
)

MANIFEST_SCHEMA = schema_of(
    {
        "output": pa.string(),
        "output_bytes": pa.int64(),
        "output_version": pa.string(),
        "output_crc32c": pa.uint32(),
        "input": pa.string(),
        "input_bytes": pa.int64(),
        "input_version": pa.string(),
        "first_row": pa.int64(),
        "rows": pa.int64(),
        "predicted_rows": pa.int64(),
        "bad_rows": pa.int64(),
        "filtered_rows": pa.int64(),
        "dead_letters": pa.string(),
        "batch_splits": pa.list_(pa.struct([("row", pa.int64()), ("rows", pa.int64())])),
        "intra_op_threads": pa.int32(),
        "device": pa.string(),
        "read_seconds": pa.float64(),
        "predict_seconds": pa.float64(),
        "write_seconds": pa.float64(),
        "joined": pa.list_(JOINED),
    }
)


def manifest_table(results: Iterable[ShardResult]) -> pa.Table:
    """One row per output, in input order. Times are null where the output existed before this run.

    `rows` of the input are `predicted_rows` in the output, `filtered_rows` that --where leaves out, and `bad_rows` in the file
    `dead_letters`, a URI or null.
    `batch_splits` records where batches differ from the planned size; see
    `headrace.transforms.predicting.bisection`. Where an output joins files, `input` is the first of them, `rows`,
    `bad_rows` and `filtered_rows` are of all, and `joined` are all of them in the order of their rows; else it is null.
    Raises `OutputIncomplete` where rows of a shard are in neither.
    """
    rows = []
    for result in sorted(results, key=lambda result: result.shard):
        shard = result.shard
        if result.predicted_rows + result.filtered_rows + result.bad_rows != shard.rows:
            raise OutputIncomplete(
                f"{shard.output} does not account for every row of {shard.where}",
                expected=f"{shard.rows} rows",
                found=f"{result.predicted_rows} predicted, {result.filtered_rows} left out and {result.bad_rows} bad",
                cure="Remove that file, and run the same command again",
            )
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
                "predicted_rows": result.predicted_rows,
                "bad_rows": result.bad_rows,
                "filtered_rows": result.filtered_rows,
                "dead_letters": result.dead_letters,
                "batch_splits": _splits(result.batch_splits),
                "intra_op_threads": result.intra_op_threads,
                "device": result.device,
                **{f"{stage}_seconds": seconds for stage, seconds in result.seconds.items()},
                "joined": _joined(result) if shard.joined else None,
            }
        )
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def _joined(result: ShardResult) -> list[dict[str, Any]]:
    parts = result.shard.parts
    return [
        {
            "input": part.source.uri,
            "input_bytes": part.source.size,
            "input_version": part.source.version,
            "rows": part.rows,
            "bad_rows": bad,
            "filtered_rows": left_out,
            "batch_splits": _splits(splits),
        }
        for part, (bad, left_out, splits) in zip(parts, result.of_parts or ((0, 0, ()),) * len(parts), strict=True)
    ]


def _splits(splits: Iterable[tuple[int, int]]) -> list[dict[str, int]] | None:
    return [{"row": row, "rows": rows} for row, rows in splits] or None
