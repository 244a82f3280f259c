"""Rows that could not be predicted: one Parquet file for each shard that has any, named by its content. No Beam.

It holds the columns as they were read, before any function, and in addition `headrace_input`, `headrace_row` (from 0 in that
input), `headrace_stage` and `headrace_error`. For a file whose schema is not the job's it holds all rows, with all of that
file's own columns: files of dead letters need not have one schema. It is committed before the prediction file, which names it
in its own metadata: dead letters that no prediction file names are from a failed attempt, and do not count.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..columns.wording import counted
from ..errors import ColumnError, DataError, InvalidRequest, OutputIncomplete, TooManyBadRows, row_span
from ..jobs.job import ASIDE, Job
from ..nested_arrow import repeated, schema_of
from ..parquet.reader import read_footer
from ..shards.shard import Shard
from ..storage import ObjectRef, Store, open_store
from .bad_rows import BadRow
from .claims import CLAIM_KEY, holds

COLUMNS = schema_of(
    {
        "headrace_input": pa.string(),
        "headrace_row": pa.int64(),
        "headrace_stage": pa.string(),
        "headrace_error": pa.string(),
    }
)
# Up to version 0.1 they ended in `.parquet`.
_NAME = re.compile(r"(?P<output>.*-\d{12}-\d{12}-(?P<job>[0-9a-f]{8})[0-9a-f]{12})-[0-9a-f]{16}\.(?:pq|parquet)")
_BYTES_HELD = 1 << 20
EXAMPLES = 3
_EXAMPLE_LETTERS = 400


def dead_letter_schema(columns: pa.Schema) -> pa.Schema:
    """Raises `InvalidRequest` where a column has a name that dead letters need."""
    if taken := [name for name in COLUMNS.names if name in columns.names]:
        raise InvalidRequest(
            f"The input has a column {taken[0]!r}, and so have dead letters",
            expected=f"no column named {', '.join(COLUMNS.names)}",
            found=f"columns {', '.join(columns.names)}",
            cure="Rename it, leave it out with --keep, or take --on_error=fail",
        )
    return pa.schema([*(field.with_nullable(True) for field in columns), *COLUMNS])


def dead_letters(bad: Sequence[BadRow]) -> pa.RecordBatch:
    """Rows of one schema, which hold on to no memory of the batches that they were found in."""
    columns = zip(*((bad_row.where, bad_row.row, bad_row.stage, bad_row.error) for bad_row in bad), strict=True)
    said = [pa.array(values, kind) for values, kind in zip(columns, COLUMNS.types, strict=True)]
    schema = dead_letter_schema(bad[0].batch.schema.remove_metadata())
    parts = []
    for _, of_batch in groupby(bad, key=lambda bad_row: id(bad_row.batch)):
        same = list(of_batch)
        parts.append([_copied(column, [bad_row.index for bad_row in same]) for column in same[0].batch.columns])
    values = [pa.concat_arrays(arrays) if len(parts) > 1 else arrays[0] for arrays in zip(*parts, strict=True)]
    return pa.RecordBatch.from_arrays([*values, *said], schema=schema)


def _copied(array: pa.Array[Any], indices: list[int]) -> pa.Array[Any]:
    try:
        return array.take(pa.array(indices))
    except pa.ArrowNotImplementedError:  # of views
        return pa.array([array[i].as_py() for i in indices], array.type)


@dataclass(frozen=True, slots=True)
class CommittedDeadLetters:
    """`sha256` is of the whole object, in hexadecimal."""

    ref: ObjectRef
    sha256: str


class DeadLetters:
    """The bad rows of one shard. Holds them in memory as compressed Parquet until they are committed."""

    def __init__(self, job: Job, shard: Shard, columns: pa.Schema) -> None:
        """`columns` are those that are read. The job's policy must be one that has a folder for dead letters."""
        self._job, self._shard, self._allowed = job, shard, job.on_error.allowed(shard.rows)
        self._schema = dead_letter_schema(columns.remove_metadata())
        self._sink = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.RecordBatch] = []
        self._new: list[BadRow] = []
        self._examples: list[str] = []
        self.rows = 0

    def add(self, bad: BadRow) -> None:
        """Raises `TooManyBadRows` as soon as there are more than the job's bound lets a shard of that size have."""
        self.rows += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append(_example(bad.row, bad.stage, bad.error))
        if self.rows > self._allowed:
            span = row_span(self._shard.first_row, self._shard.end_row)
            raise too_many_bad_rows(
                self._job, f"among {span} of {self._shard.where}", self._allowed, self.rows, self._examples
            )
        self._new.append(bad)

    def settle(self) -> None:
        """Called after each batch: sorts its rows, and keeps none of its memory."""
        if self._new:
            self._held.append(dead_letters(sorted(self._new, key=lambda bad_row: bad_row.row)))
            self._new = []
        if sum(batch.nbytes for batch in self._held) >= _BYTES_HELD:
            self._write_held()

    def add_all(self, batch: pa.RecordBatch, first_row: int, error: DataError) -> None:
        """A whole batch. Raises `TooManyBadRows` as `add` does."""
        self.rows += batch.num_rows
        if self.rows > self._allowed:
            raise rows_of_another_schema(self._job, self._shard, self._allowed)
        rows = pa.array(range(first_row, first_row + batch.num_rows), pa.int64())
        where, stage, why = (
            repeated(text, pa.string(), batch.num_rows) for text in (self._shard.source.uri, error.stage, str(error))
        )
        self._held.append(pa.RecordBatch.from_arrays([*batch.columns, where, rows, stage, why], schema=self._schema))
        self._write_held()

    def commit(self, store: Store) -> CommittedDeadLetters | None:
        """Nothing where no row is bad."""
        self.settle()
        self._write_held()
        if self._writer is None:
            return None
        self._writer.close()
        data = self._sink.getvalue()
        sha256 = hashlib.sha256(data).hexdigest()
        stem = self._shard.output.removesuffix(".parquet")
        uri = f"{self._job.on_error.dead_letters}/{stem}-{sha256[:16]}{ASIDE}"
        return CommittedDeadLetters(store.put_same(uri, data), sha256)

    def _write_held(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            source = self._shard.source
            said = {
                "headrace.fingerprint": self._job.fingerprint,
                "headrace.output": f"{self._job.output}/{self._shard.output}",
                "headrace.input": source.uri,
                "headrace.input_version": source.version,
                **({CLAIM_KEY: str(self._job.claim)} if self._job.claim else {}),
            }
            schema = self._schema.with_metadata(said)
            self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd", write_page_checksum=True)
        self._writer.write_table(pa.Table.from_batches(self._held, self._schema))
        self._held = []


def too_many_bad_rows(job: Job, among: str, allowed: int | None, found: int, examples: Iterable[str]) -> TooManyBadRows:
    """`allowed` is None where none is left to predict."""
    return TooManyBadRows(
        f"Too many rows cannot be predicted {among}",
        expected=f"{allowed:,} at most (--max_bad_rows={job.on_error.most})"
        if allowed is not None
        else "not all of them",
        found=f"{found:,}, as {'; '.join(examples)}",
        cure="Look at these rows first; if they may be left out, run the same command with another --max_bad_rows"
        if allowed is not None
        else "Fix what all rows fail on: no --max_bad_rows lets a job through that predicts nothing",
    )


def of_another_schema(shard: Shard) -> ColumnError:
    """The failure of all rows of a shard whose file lacks the job's columns."""
    what, expected, found = shard.drift
    error = ColumnError(what, expected=expected, found=found)
    error.stage = "schema"
    return error


def rows_of_another_schema(job: Job, shard: Shard, allowed: int) -> TooManyBadRows:
    what, expected, found = shard.drift
    return TooManyBadRows(
        f"{what}: none of its {counted(shard.rows, 'row')} can be predicted",
        expected=f"{expected}; or {allowed:,} such rows at most (--max_bad_rows={job.on_error.most})",
        found=found,
        cure="Leave this file out of --input, or write it again with the same schema; if its rows may be left out, run the "
        "same command with another --max_bad_rows",
    )


def _example(row: int, stage: str, error: str) -> str:
    return f"row {row} ({stage}): {error[:_EXAMPLE_LETTERS]}{'…' if len(error) > _EXAMPLE_LETTERS else ''}"


def first_examples(store: Store, uris: Sequence[str]) -> Iterator[str]:
    """The first rows in these files, three at most, each with its file."""
    left = EXAMPLES
    for uri in uris[:EXAMPLES]:
        with closing(store.open_arrow(store.stat(uri))) as source:
            table = pq.ParquetFile(source).read_row_group(0, columns=COLUMNS.names).slice(0, left)
        for where, row, stage, error in zip(*(table[name].to_pylist() for name in COLUMNS.names), strict=True):
            yield f"{where} {_example(row, stage, error)}"
        left -= table.num_rows
        if not left:
            return


def list_dead_letters(job: Job) -> Iterator[tuple[str, ObjectRef]]:
    """One listing of the folder: the prediction file that each file of dead letters belongs to, by its name, and that file. Of
    this job's fingerprint alone; several outputs may share a folder.
    """
    folder = job.on_error.dead_letters
    if folder is None:
        return
    for ref in open_store(folder, job.storage).list(f"{folder}/"):
        match = _NAME.fullmatch(ref.uri.removeprefix(f"{folder}/"))
        if match is not None and match["job"] == job.fingerprint[:8]:
            yield f"{match['output']}.parquet", ref


def dead_letters_of(output: str, store: Store, folder: str) -> Iterator[ObjectRef]:
    """Every file of dead letters in the folder whose metadata name that output folder, of any job."""
    for ref in store.list(f"{folder}/"):
        match = _NAME.fullmatch(ref.uri.removeprefix(f"{folder}/"))
        if match is not None:
            said = read_footer(store, ref).key_values.get(b"headrace.output", b"")
            if said.decode() == f"{output}/{match['output']}.parquet":
                yield ref


class UriDigests:
    """Any number of URIs, by 64 bits of the SHA-256 of each: eight bytes for one."""

    def __init__(self, uris: Iterable[str]) -> None:
        self._sorted = np.unique(np.fromiter(map(self._digest, uris), np.uint64))

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, uri: str) -> bool:
        return holds(self._sorted, self._digest(uri))

    def includes(self, other: UriDigests) -> bool:
        return bool(np.isin(other._sorted, self._sorted, assume_unique=True).all())

    @staticmethod
    def _digest(uri: str) -> int:
        return int.from_bytes(hashlib.sha256(uri.encode(errors="surrogateescape")).digest()[:8], "big")


def check_dead_letters(job: Job, named: Callable[[], Iterable[str]]) -> None:
    """`named` gives the files that prediction files name, again each time. Raises `OutputIncomplete` where one is gone."""
    wanted, there = UriDigests(named()), UriDigests(ref.uri for _, ref in list_dead_letters(job))
    if there.includes(wanted):
        return
    first, gone = None, 0
    for uri in named():
        if uri not in there:
            first, gone = min(uri, first or uri), gone + 1
    raise OutputIncomplete(
        f"{first} has vanished since it was written",
        expected=f"{len(wanted)} files of dead letters",
        found=f"{len(wanted) - gone}",
        cure="Put it back, or predict everything again with --overwrite",
    )


def unnamed_dead_letters(job: Job, named: UriDigests) -> Iterator[ObjectRef]:
    """Files that no prediction file names, of failed attempts and of removed outputs; only those whose metadata name this
    output folder, and no later claim.
    """
    for output, ref in list_dead_letters(job):
        if ref.uri in named:
            continue
        said = read_footer(open_store(ref.uri, job.storage), ref).key_values
        ours = said.get(b"headrace.output", b"").decode() == f"{job.output}/{output}"
        if ours and int(said.get(CLAIM_KEY.encode(), b"0")) <= job.claim:
            yield ref
