"""A Shard to its committed file: one pull-through stream of record batches. No Beam."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

import pyarrow as pa

from transforms import progress
from transforms.devices import intra_op_threads
from transforms.errors import AlreadyExists, ObjectNotFound, OutputConflict, OutputIncomplete
from transforms.job import Job
from transforms.parquet import read_batches, read_footer, write_batches
from transforms.predictor import Predictor, input_columns
from transforms.read_ahead import read_ahead
from transforms.shard import Shard, ShardResult
from transforms.storage import Store

_BATCHES_AHEAD = 2


class Cancelled(Exception):
    """Another shard of the bundle has failed; this one stops without leaving anything."""


def predict_shard(
    job: Job, predictor: Predictor, store: Store, sink: Store, shard: Shard, cancelled: threading.Event | None = None
) -> ShardResult:
    """Reads the shard from `store`, predicts it, and commits its file to `sink`; or finds that file there already."""
    uri = f"{job.output}/{shard.output}"
    if (found := _already_written(job, sink, uri, shard)) is not None:
        return found
    columns = input_columns(job)
    clock, threads = _Clock(), intra_op_threads()
    batches = 0

    def predicted() -> Iterator[pa.RecordBatch]:
        nonlocal batches
        first_row = shard.first_row
        rows = read_batches(store, shard, columns, job.batch_rows)
        with read_ahead(rows, _BATCHES_AHEAD) as source:
            for batch in clock.time_each("read", source):
                if cancelled is not None and cancelled.is_set():
                    raise Cancelled
                with clock.time("predict"):
                    result = predictor(batch, shard.source.uri, first_row)
                first_row += batch.num_rows
                batches += 1
                progress.add(rows_done=batch.num_rows)
                yield result
        # Here, since what has been committed counts as done.
        if first_row != shard.end_row:
            raise OutputIncomplete(
                f"{shard.source.uri} gave other rows than planned",
                expected=f"rows {shard.first_row} to {shard.end_row}",
                found=f"rows {shard.first_row} to {first_row}",
                cure="Run the same command again",
            )

    started = time.perf_counter()
    try:
        written, _ = write_batches(sink, uri, predictor.output_schema, predicted(), _key_values(job, shard, threads, predictor.device))
    except AlreadyExists:
        if (found := _already_written(job, sink, uri, shard)) is None:
            raise
        return found
    spent = clock.seconds
    spent["write"] = time.perf_counter() - started - spent["read"] - spent["predict"]
    progress.add(shards_done=1)
    return ShardResult(
        shard,
        written.size,
        written.version,
        written.crc32c,
        computed=True,
        intra_op_threads=threads,
        batches=batches,
        read_bytes=shard.nbytes,
        seconds=spent,
    )


def _identity(job: Job, shard: Shard) -> dict[str, str]:
    return {
        "headrace.fingerprint": job.fingerprint,
        "headrace.model": job.model_digests,
        "headrace.input": shard.source.uri,
        "headrace.input_version": shard.source.version,
        "headrace.first_row": str(shard.first_row),
        "headrace.rows": str(shard.rows),
    }


def _key_values(job: Job, shard: Shard, threads: int, device: str) -> dict[str, str]:
    """What each prediction file says of itself: what it is, and what its bits depend on."""
    bits = {
        "headrace.batch_rows": str(job.batch_rows),
        "headrace.intra_op_threads": str(threads),
        "headrace.device": device,
    }
    return _identity(job, shard) | bits


def _already_written(job: Job, sink: Store, uri: str, shard: Shard) -> ShardResult | None:
    try:
        there = sink.stat(uri)
    except ObjectNotFound:
        return None
    wanted = _identity(job, shard)
    kept = {key.decode(): value.decode() for key, value in read_footer(sink, there).key_values.items()}
    if different := [key for key, value in wanted.items() if kept.get(key) != value]:
        raise OutputConflict(
            f"{uri} stands in the way",
            expected=f"{different[0]} {wanted[different[0]]}, or no such object",
            found=f"{different[0]} {kept.get(different[0])}",
            cure="Name another --output, or remove that object",
        )
    progress.add(shards_done=1, rows_found=shard.rows)
    return ShardResult(shard, there.size, there.version, there.crc32c, computed=False)


class _Clock:
    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "predict": 0.0, "write": 0.0}

    def time(self, stage: str) -> _Span:
        return _Span(self.seconds, stage)

    def time_each(self, stage: str, items: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        iterator = iter(items)
        while True:
            with self.time(stage):
                item = next(iterator, None)
            if item is None:
                return
            yield item


class _Span:
    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._stage] += time.perf_counter() - self._start
