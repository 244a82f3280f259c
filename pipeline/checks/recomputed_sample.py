"""Computes some batches of a finished job again, and compares them with what its files say."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, islice
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.transforms.errors import HeadraceError
from headrace.transforms.jobs.job import Job
from headrace.transforms.nested_arrow import decoded, flat, lengths, members, storage
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.predicting.predictor import Predictor, load_predictor
from headrace.transforms.shards.shard import Shard
from headrace.transforms.steps.plan_shards import shards_of_file
from headrace.transforms.steps.row_filtering import batches_kept
from headrace.transforms.storage import ObjectRef, Store, open_store

from .soundness import Verdict, input_spans

RELATIVE, ABSOLUTE = 1e-3, 1e-5
"""Tolerances for numbers from another kind of machine, whose instructions round differently."""


def verify_sample(verdict: Verdict, job: Job, manifest: pa.Table, count: int) -> None:
    """Adds to the verdict what `count` random batches show. Batches equal to the bit, or within the tolerance, are sound.

    Files whose batches were cut otherwise than planned (bad rows, batches too large for memory) are passed over.
    """
    rows = [
        row
        for row in input_spans(entry for entry in manifest.to_pylist() if not entry.get("bad_rows"))
        if row["rows"] and _batch_rows(job, row) is not None
    ]
    if not rows:
        verdict.notes.append("No file has batches as planned: nothing was computed again.")
        return
    predictor, close, passed_over = load_predictor(job), 0, 0
    store, sink = open_store(job.folder, job.storage), open_store(job.output, job.storage)
    for row in random.choices(rows, [row["rows"] for row in rows], k=count):  # noqa: S311 any batch will do
        size = _batch_rows(job, row) or job.batch_rows
        where = f"{job.output}/{row['output']}"
        batch, first = 0, row["first_row"]
        try:
            spans = _batches(job, sink, where, row, size)
            if spans is None:
                passed_over += 1
                continue
            verdict.checked["sample"] += 1
            batch = random.randrange(len(spans))  # noqa: S311
            first += batch * size
            predicted = _again(job, predictor, store, row, batch, size)
            found = _found_rows(sink, where, *spans[batch])
        except (HeadraceError, ValueError) as error:
            verdict.add("sample", where, f"rows from {first} on to compute again", error)
            continue
        if found.schema.names != predicted.schema.names:
            verdict.add("sample", where, f"columns {', '.join(predicted.schema.names)}", ", ".join(found.schema.names))
            continue
        expected = predicted if predictor.where is None else predictor.where(predicted)
        if found.num_rows != expected.num_rows:
            # Where the last bits differ, the condition of a row at its bound may differ too.
            alike, rows_expected = _alike(predicted, found), expected.num_rows
            if alike is None or all(map(same, alike.columns, found.columns)):
                wanted = f"{rows_expected} rows of the batch from {first} on"
                verdict.add("sample", where, wanted, f"{found.num_rows} rows")
                continue
            expected = alike
        differing = [name for name in expected.schema.names if not same(expected.column(name), found.column(name))]
        far = [name for name in differing if not near(expected.column(name), found.column(name))]
        if far:
            verdict.add("sample", where, f"column {far[0]!r} of rows from {first} on as computed again", "other values")
        close += bool(differing) and not far
    if passed_over:
        drawn = f"{passed_over} of {count} batches drawn"
        verdict.notes.append(f"{drawn} lie in files that had no such batches: passed over.")
    if close:
        verdict.notes.append(
            f"{close} of {count} batches are not equal to the bit, but within {RELATIVE:g} of each value: so it is on "
            "another kind of machine than the one that predicted."
        )


def _batch_rows(job: Job, row: dict[str, Any]) -> int | None:
    """Rows of each of the file's batches; None where they differ."""
    splits = row.get("batch_splits") or []
    if not splits:
        return job.batch_rows
    (first, *others) = splits
    return int(first["rows"]) if not others and first["row"] == row["first_row"] else None


def _again(job: Job, predictor: Predictor, store: Store, row: dict[str, Any], number: int, size: int) -> pa.RecordBatch:
    source = ObjectRef(row["input"], row["input_bytes"], row["input_version"])
    # Row groups whose rows are all deleted are shards without rows, which begin where the next one does.
    shard = next(
        candidate
        for candidate in shards_of_file(job, source, read_footer(store, source))
        if candidate.rows and candidate.first_row == row["first_row"]
    )
    shard = replace(shard, rows=row["rows"])  # of a job with a limit, the last one is cut
    batch = next(islice(read_batches(store, shard, job.schema.names, size, job.schema), number, None))
    return predictor(batch, source.uri, shard.first_row + number * size)


def _batches(job: Job, sink: Store, uri: str, row: dict[str, Any], size: int) -> list[tuple[int, int]] | None:
    """(rows before, rows) of each batch of the input in its output; None where they are not of that size.

    Raises `ValueError` where the output of a job that leaves rows out does not record them.
    """
    sizes = [min(size, row["rows"] - start) for start in range(0, row["rows"], size)]
    kept = sizes
    if job.where is not None:
        said = batches_kept(read_footer(sink, sink.stat(uri)).key_values, row["part"])
        kept = [stayed for _, stayed in said]
        if not said or [rows for rows, _ in said] != sizes[: len(said)]:
            return None
    return list(zip(accumulate(kept, initial=row["before"]), kept, strict=False))


def _found_rows(sink: Store, uri: str, first: int, rows: int) -> pa.RecordBatch:
    file = sink.stat(uri)
    footer = read_footer(sink, file)
    if not rows:
        return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in footer.schema], schema=footer.schema)
    shard = Shard("", file, first, rows, (0, len(footer.row_group_rows)), file.size, first)
    return next(read_batches(sink, shard, footer.schema.names, rows))


def _alike(predicted: pa.RecordBatch, found: pa.RecordBatch) -> pa.RecordBatch | None:
    """The recomputed rows that are near the found rows, in the order of the latter; None where a found row has no such row."""
    at, chosen = iter(range(predicted.num_rows)), []
    for i in range(found.num_rows):
        row = found.slice(i, 1).columns
        j = next((j for j in at if all(map(near, predicted.slice(j, 1).columns, row))), None)
        if j is None:
            return None
        chosen.append(j)
    return predicted.take(pa.array(chosen, pa.int64()))


def same(a: pa.Array[Any], b: pa.Array[Any]) -> bool:
    """Equal to the bit. A NaN equals itself, and a dictionary-encoded value equals the value that it encodes."""
    return _agree(a, b, lambda first, second: first.tobytes() == second.tobytes())


def near(a: pa.Array[Any], b: pa.Array[Any]) -> bool:
    return _agree(a, b, lambda first, second: np.allclose(first, second, RELATIVE, ABSOLUTE, equal_nan=True))


def _agree(
    a: pa.Array[Any], b: pa.Array[Any], floats: Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], bool]
) -> bool:
    """Whether both are alike, including their fractions, which `floats` compares."""
    if a.equals(b):
        return True
    if a.type != b.type or len(a) != len(b) or not a.is_null().equals(b.is_null()):
        return False
    if isinstance(a, pa.ExtensionArray):
        return _agree(storage(a), storage(b), floats)
    if pa.types.is_dictionary(a.type):
        return _agree(decoded(a), decoded(b), floats)
    if pa.types.is_floating(a.type):
        return floats(*(array.drop_null().to_numpy(zero_copy_only=False) for array in (a, b)))
    if pa.types.is_map(a.type):
        kind = pa.list_(pa.struct([a.type.key_field, a.type.item_field]))
        a, b = a.cast(kind), b.cast(kind)
    if pa.types.is_struct(a.type):
        return all(_agree(left, right, floats) for left, right in zip(members(a), members(b), strict=True))
    if pa.types.is_nested(a.type):
        return lengths(a).equals(lengths(b)) and _agree(flat(a), flat(b), floats)
    return False
