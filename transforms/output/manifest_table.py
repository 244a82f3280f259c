"""The table in a part of the manifest: its schema, and results as its rows. No Beam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from ..errors import OutputIncomplete
from ..nested_arrow import schema_of
from ..shards.shard import ShardResult

_SPLITS = pa.list_(pa.struct([("row", pa.int64()), ("rows", pa.int64())]))
# In the order of `_joined`.
_JOINED = pa.struct(
    [
        ("input", pa.string()),
        ("input_bytes", pa.int64()),
        ("input_version", pa.string()),
        ("rows", pa.int64()),
        ("bad_rows", pa.int64()),
        ("filtered_rows", pa.int64()),
        ("batch_splits", _SPLITS),
    ]
)


def _joined(result: ShardResult) -> list[tuple[Any, ...]] | None:
    """The files of an output that joins several."""
    if not result.shard.joined:
        return None
    parts = result.shard.parts
    of_parts = zip(parts, result.of_parts or ((0, 0, ()),) * len(parts), strict=True)
    return [
        (part.source.uri, part.source.size, part.source.version, part.rows, bad, left_out, splits or None)
        for part, (bad, left_out, splits) in of_parts
    ]


# Each column's type, and its value for a result.
_COLUMNS: dict[str, tuple[pa.DataType, Callable[[ShardResult], Any]]] = {
    "output": (pa.string(), lambda result: result.shard.output),
    "output_bytes": (pa.int64(), lambda result: result.output_bytes),
    "output_version": (pa.string(), lambda result: result.output_version),
    "output_crc32c": (pa.uint32(), lambda result: result.output_crc32c),
    "input": (pa.string(), lambda result: result.shard.source.uri),
    "input_bytes": (pa.int64(), lambda result: result.shard.source.size),
    "input_version": (pa.string(), lambda result: result.shard.source.version),
    "first_row": (pa.int64(), lambda result: result.shard.first_row),
    "rows": (pa.int64(), lambda result: result.shard.rows),
    "predicted_rows": (pa.int64(), lambda result: result.predicted_rows),
    "bad_rows": (pa.int64(), lambda result: result.bad_rows),
    "filtered_rows": (pa.int64(), lambda result: result.filtered_rows),
    "dead_letters": (pa.string(), lambda result: result.dead_letters),
    "batch_splits": (_SPLITS, lambda result: result.batch_splits or None),
    "intra_op_threads": (pa.int32(), lambda result: result.intra_op_threads),
    "device": (pa.string(), lambda result: result.device),
    "read_seconds": (pa.float64(), lambda result: result.seconds.get("read")),
    "predict_seconds": (pa.float64(), lambda result: result.seconds.get("predict")),
    "write_seconds": (pa.float64(), lambda result: result.seconds.get("write")),
    "joined": (pa.list_(_JOINED), _joined),
}
MANIFEST_SCHEMA = schema_of({name: kind for name, (kind, _) in _COLUMNS.items()})


def manifest_table(results: Iterable[ShardResult]) -> pa.Table:
    """One row per output, in input order; see `ShardResult`. Times are null where the output existed before this run.

    Where an output joins files, `input` is the first of them, `rows`, `bad_rows` and `filtered_rows` are of all, and `joined`
    are all of them in the order of their rows; else it is null.
    Raises `OutputIncomplete` where rows of a shard are in neither.
    """
    results = sorted(results, key=lambda result: result.shard)
    for result in results:
        shard = result.shard
        if result.predicted_rows + result.filtered_rows + result.bad_rows != shard.rows:
            raise OutputIncomplete(
                f"{shard.output} does not account for every row of {shard.where}",
                expected=f"{shard.rows} rows",
                found=f"{result.predicted_rows} predicted, {result.filtered_rows} left out and {result.bad_rows} bad",
                cure="Remove that file, and run the same command again",
            )
    columns = [pa.array([value(result) for result in results], kind) for kind, value in _COLUMNS.values()]
    return pa.Table.from_arrays(columns, schema=MANIFEST_SCHEMA)
