"""A Shard to its committed file: one pull-through stream of record batches. No Beam."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from .. import progress
from ..bounded_json import parse_json
from ..errors import AlreadyExists, OutputConflict, OutputIncomplete
from ..jobs.job import Job
from ..output.claims import CLAIM_KEY, check_claim, confirm_added
from ..output.dead_letters import CommittedDeadLetters, DeadLetters, of_another_schema
from ..parquet.reader import read_batches, read_footer
from ..parquet.writer import write_batches
from ..predicting.bisection import Bisection
from ..predicting.devices import intra_op_threads
from ..predicting.predictor import Predictor
from ..read_ahead import read_ahead
from ..shards.measuring import STATISTICS, ShardMeasurements, ShardMeasuring, known_columns
from ..shards.shard import PartOutcome, Shard, ShardResult, sources_sha256
from ..storage import ObjectRef, Store, open_store
from .row_filtering import FILTERED, ShardFiltering
from .termination import Cancelled

_BATCHES_AHEAD = 2


def predict_shard(
    job: Job, predictor: Predictor, store: Store, sink: Store, shard: Shard, cancelled: threading.Event | None = None
) -> ShardResult:
    """Reads the shard from `store`, predicts it, and commits its file to `sink`; or finds that file there already."""
    uri = f"{job.output}/{shard.output}"
    if (found := _already_written(job, sink, uri, shard)) is not None:
        return found
    if shard.drift and job.on_error.dead_letters is None:
        raise of_another_schema(shard)
    run = _ShardRun(job, predictor, store, sink, shard, cancelled)
    started = time.perf_counter()
    try:
        key_values, schema = _key_values(job, shard, run.threads, predictor.device), predictor.output_schema
        written, rows = write_batches(sink, uri, schema, run.predictions(), key_values, run.account_for)
    except AlreadyExists:
        if (found := _already_written(job, sink, uri, shard)) is None:
            raise
        return found
    confirm_added(job, sink, written, run.committed_letters)
    spent = run.clock.seconds
    spent["write"] = time.perf_counter() - started - spent["read"] - spent["predict"]
    progress.add(shards_done=1)
    return run.result(written, rows, spent)


class _ShardRun:
    """A shard's rows on their way: read, predicted, measured and counted, until its file is committed."""

    def __init__(
        self,
        job: Job,
        predictor: Predictor,
        store: Store,
        sink: Store,
        shard: Shard,
        cancelled: threading.Event | None,
    ) -> None:
        self._job, self._predictor, self._store, self._sink = job, predictor, store, sink
        self._shard, self._cancelled = shard, cancelled
        self._columns, self._schema = _columns_to_read(job, store, shard)
        self.clock, self.threads = _Clock(), intra_op_threads()
        reported = job.report is not None
        self._measuring = ShardMeasuring(predictor.output_schema, predictor.predictions) if reported else None
        self._letters = DeadLetters(job, shard, self._schema) if job.on_error.dead_letters is not None else None
        on_bad = self._letters.add if self._letters else None
        # No batch has rows of two files: a joined file's predictions are those of the file alone.
        self._bisections = [
            Bisection(predictor, part.source.uri, job.batch_rows, on_bad, part.batch_rows) for part in shard.parts
        ]
        self._filtering = ShardFiltering(predictor.where, len(shard.parts))
        self._committed: CommittedDeadLetters | None = None
        self.committed_letters: list[tuple[Store, ObjectRef]] = []

    @property
    def _bad_rows(self) -> int:
        return sum(bisection.bad_rows for bisection in self._bisections)

    def predictions(self) -> Iterator[pa.RecordBatch]:
        for number, bisection in enumerate(self._bisections):
            yield from self._predictions_of(number, bisection)

    def _predictions_of(self, number: int, bisection: Bisection) -> Iterator[pa.RecordBatch]:
        part = self._shard.parts[number]
        first_row = part.first_row
        types = None if part.drift else self._schema
        rows = read_batches(self._store, part, self._columns, part.batch_rows or self._job.batch_rows, types)
        with read_ahead(rows, _BATCHES_AHEAD) as source:
            for batch in self.clock.time_each("read", source):
                bad_before = bisection.bad_rows
                for result in self.clock.time_each("predict", self._results(bisection, batch, first_row)):
                    if self._cancelled is not None and self._cancelled.is_set():
                        raise Cancelled
                    progress.add(rows_done=result.num_rows)
                    kept = self._filtering(number, result)
                    if self._measuring is not None:
                        self._measuring.add(kept, self.clock.last)
                    yield kept
                if self._letters is not None:
                    self._letters.settle()
                if bad := bisection.bad_rows - bad_before:
                    progress.add(rows_done=bad, bad_rows=bad)
                first_row += batch.num_rows

    def _results(self, bisection: Bisection, batch: pa.RecordBatch, first_row: int) -> Iterator[pa.RecordBatch]:
        if self._letters is None or not self._shard.drift:
            return bisection(batch, first_row)
        self._letters.add_all(batch, first_row, of_another_schema(self._shard))
        bisection.bad_rows += batch.num_rows
        return iter(())

    def account_for(self, written: int) -> dict[str, str]:
        """Before the commit, since what has been committed counts as done."""
        check_claim(self._job, self._sink)
        bad, left_out = self._bad_rows, sum(self._filtering.left_out)
        if written + left_out + bad != self._shard.rows:
            raise OutputIncomplete(
                f"{self._shard.where} gave other rows than planned",
                expected=f"{self._shard.rows} rows from row {self._shard.first_row} on",
                found=f"{written} predicted, {left_out} left out and {bad} bad",
                cure="Run the same command again",
            )
        if self._letters is not None and self._job.on_error.dead_letters is not None:
            letters_store = open_store(self._job.on_error.dead_letters, self._job.storage)
            if (committed := self._letters.commit(letters_store)) is not None:
                self._committed = committed
                self.committed_letters.append((letters_store, committed.ref))
        measured = self._measuring.key_values() if self._measuring is not None else {}
        outcome = _outcome(self._bisections, self._filtering, self._committed)
        return outcome | self._filtering.key_values() | measured

    def result(self, written: ObjectRef, rows: int, spent: dict[str, float]) -> ShardResult:
        shard, bisections = self._shard, self._bisections
        return ShardResult(
            shard,
            written.size,
            written.version,
            written.crc32c,
            computed=True,
            predicted_rows=rows,
            bad_rows=self._bad_rows,
            filtered_rows=sum(self._filtering.left_out),
            dead_letters=self._committed.ref.uri if self._committed else None,
            batch_splits=() if shard.joined else tuple(bisections[0].splits),
            of_parts=_of_parts(bisections, self._filtering) if shard.joined else (),
            intra_op_threads=self.threads,
            device=self._predictor.device,
            batches=sum(bisection.batches for bisection in bisections),
            batches_halved=sum(bisection.halved for bisection in bisections),
            read_bytes=shard.nbytes,
            seconds=spent,
            measurements=self._measuring.measurements() if self._measuring is not None else None,
        )


def _columns_to_read(job: Job, store: Store, shard: Shard) -> tuple[Sequence[str], pa.Schema]:
    """The job's; all that the file has where it lacks some of these, since its rows go to dead letters."""
    if not shard.drift:
        return job.schema.names, job.schema
    stored = read_footer(store, shard.source).schema
    schema = pa.schema([*stored, *(pa.field(key, pa.string()) for key, _ in shard.partitions)])
    return schema.names, schema


def _of_parts(bisections: Sequence[Bisection], filtering: ShardFiltering) -> tuple[PartOutcome, ...]:
    return tuple(
        (bisection.bad_rows, left_out, tuple(bisection.splits))
        for bisection, left_out in zip(bisections, filtering.left_out, strict=True)
    )


def _identity(job: Job, shard: Shard) -> dict[str, str]:
    return {
        "headrace.fingerprint": job.fingerprint,
        "headrace.model": job.model_digests,
        "headrace.input": shard.source.uri,
        "headrace.input_version": shard.source.version,
        "headrace.first_row": str(shard.first_row),
        "headrace.rows": str(shard.rows),
        **({"headrace.joined": sources_sha256(*shard.sources)} if shard.joined else {}),
    }


def _key_values(job: Job, shard: Shard, threads: int, device: str) -> dict[str, str]:
    """The metadata of each prediction file: its identity, and what its bits depend on."""
    return {
        **_identity(job, shard),
        "headrace.batch_rows": str(job.batch_rows),
        "headrace.intra_op_threads": str(threads),
        "headrace.device": device,
        **({CLAIM_KEY: str(job.claim)} if job.claim else {}),
    }


def _outcome(
    bisections: Sequence[Bisection], filtering: ShardFiltering, committed: CommittedDeadLetters | None
) -> dict[str, str]:
    """What is known only at the end: rows left out and their place, and batches of another than the planned size."""
    key_values = {}
    if committed is not None:
        key_values["headrace.bad_rows"] = str(sum(bisection.bad_rows for bisection in bisections))
        key_values["headrace.dead_letters"] = committed.ref.uri
        key_values["headrace.dead_letters_sha256"] = committed.sha256
    unlike = any(bisection.bad_rows or bisection.splits for bisection in bisections) or any(filtering.left_out)
    if len(bisections) > 1 and unlike:
        key_values["headrace.of_parts"] = json.dumps(_of_parts(bisections, filtering))
    elif bisections[0].splits:
        key_values["headrace.batch_splits"] = json.dumps(bisections[0].splits)
    return key_values


def _already_written(job: Job, sink: Store, uri: str, shard: Shard) -> ShardResult | None:
    if (there := sink.find(uri)) is None:
        return None
    result = result_of_existing(job, sink, there, shard)
    progress.add(shards_done=1, shards_found=1, rows_found=shard.rows, bad_rows_found=result.bad_rows)
    return result


def result_of_existing(job: Job, sink: Store, there: ObjectRef, shard: Shard) -> ShardResult:
    """What the prediction file `there` records about the shard. Raises `OutputConflict` where it is of something else."""
    wanted, footer = _identity(job, shard), read_footer(sink, there)
    kept = {key.decode(): value.decode() for key, value in footer.key_values.items()}
    if different := [key for key, value in wanted.items() if kept.get(key) != value]:
        raise OutputConflict(
            f"{there.uri} is in the way",
            expected=f"{different[0]} {wanted[different[0]]}, or no such object",
            found=f"{different[0]} {kept.get(different[0])}",
            cure="Name another --output, or remove that object",
        )
    return ShardResult(
        shard,
        there.size,
        there.version,
        there.crc32c,
        computed=False,
        predicted_rows=footer.rows,
        dead_letters=kept.get("headrace.dead_letters"),
        **_kept_outcome(there, kept),
        measurements=ShardMeasurements(known_columns(kept.get(STATISTICS))),
    )


def _kept_outcome(there: ObjectRef, kept: Mapping[str, str]) -> dict[str, Any]:
    """What a prediction file records about rows that are not in it. Raises `OutputConflict` where it is damaged."""
    try:
        parts = parse_json(kept.get("headrace.of_parts", "[]"))
        return {
            "bad_rows": int(kept.get("headrace.bad_rows", "0")),
            "filtered_rows": int(kept.get(FILTERED, "0")),
            "batch_splits": _splits(parse_json(kept.get("headrace.batch_splits", "[]"))),
            # Earlier versions left no rows out.
            "of_parts": tuple((bad, sum(left_out), _splits(splits)) for bad, *left_out, splits in parts),
        }
    except (ValueError, TypeError) as error:
        raise OutputConflict(
            f"{there.uri} does not say which of its rows are left out",
            expected="numbers in its footer, as headrace writes them",
            found=str(error),
            cure="Remove that object: the same command computes it again",
        ) from error


def _splits(read: Iterable[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((row, rows) for row, rows in read)


def found_result(job: Job, there: ObjectRef, shard: Shard, has_dead_letters: bool) -> ShardResult:
    """For an existing prediction file: it is read only where it may have left rows out."""
    if shard.drift or job.where is not None or has_dead_letters:
        return result_of_existing(job, open_store(job.output, job.storage), there, shard)
    return ShardResult(shard, there.size, there.version, there.crc32c, computed=False, predicted_rows=shard.rows)


class _Clock:
    """`seconds` of each stage in all, and those of its `last` item."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "predict": 0.0, "write": 0.0}
        self.last = 0.0

    def time_each(self, stage: str, items: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        iterator, seconds = iter(items), self.seconds
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator, None)
            finally:
                self.last = time.perf_counter() - start
                seconds[stage] += self.last
            if item is None:
                return
            yield item
