"""RecordBatch to RecordBatch (`Predict`), and Shard to committed file (`PredictShards`), on one core."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from transforms import progress
from transforms.errors import AlreadyExists, DataError, InvalidRequest, ObjectNotFound, OutputConflict, OutputIncomplete
from transforms.job import Job, Loading
from transforms.mapping import ColumnPlan, auto_batch_rows, plan_columns
from transforms.metrics import count_batch, count_load, count_result
from transforms.models.model import Model
from transforms.models.ref import ModelRef, pin_model
from transforms.models.sharing import shared_model
from transforms.models.spec import Signature
from transforms.parquet import read_batches, read_footer, write_batches
from transforms.read_ahead import read_ahead
from transforms.shard import Shard, ShardResult
from transforms.storage import Store, StoreOptions, open_store

_BATCHES_AHEAD = 2

_log = logging.getLogger(__name__)


def cores() -> int:
    """Cores that this process may use, which is also the number of shards it works on at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_tensorflow_threads() -> None:
    """One intra-op thread, since a shard per core keeps the cores busy, and then a batch gives the same bits everywhere;
    as many inter-op threads as shards in flight, since TensorFlow runs a function's operations in these.

    TensorFlow takes this only before its first operation: a process that has used it already keeps what it has.
    """
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores())
    except RuntimeError as error:
        _log.info("TensorFlow keeps its threads, %s intra-op: %s", intra_op_threads() or "as many as cores", error)


def intra_op_threads() -> int:
    """As in force in this process; 0 is TensorFlow's own choice. They change the bits of large matrix products."""
    import tensorflow as tf

    return int(tf.config.threading.get_intra_op_parallelism_threads())


def load_shared(ref: ModelRef, signature: str, loading: Loading = Loading()) -> Model:
    """The process's one copy of the model, loaded by whoever asks first."""
    set_tensorflow_threads()
    model = shared_model(ref, signature, progress=progress.model_progress, **asdict(loading))
    progress.model_ready()
    return model


def predict_batch(model: Model, plan: ColumnPlan, batch: pa.RecordBatch, where: str, first_row: int) -> pa.RecordBatch:
    """Kept columns and predictions of one batch; `where` and `first_row` (counted from 0) are for its errors."""
    tensors = plan.inputs.tensors(batch, where=where, first_row=first_row)
    try:
        results = model.call(tensors)
    except Exception as error:
        raise DataError(
            f"The model fails on rows {first_row} to {first_row + batch.num_rows} (the end exclusive) of {where}",
            expected="values that it can compute with",
            found=f"{type(error).__name__}: {error}",
            cure="Look at these rows; a smaller --batch_size narrows them down",
        ) from error
    columns = [batch.column(name) for name in plan.keep]
    columns += plan.outputs.columns(results, batch.num_rows)
    return pa.RecordBatch.from_arrays(columns, schema=plan.output_schema)


class Cancelled(Exception):
    """Another shard of the bundle has failed; this one stops without leaving anything."""


def predict_shard(
    job: Job, model: Model, store: Store, sink: Store, shard: Shard, cancelled: threading.Event | None = None
) -> ShardResult:
    """Reads the shard from `store`, predicts it, and commits its file to `sink`; or finds that file there already."""
    uri = f"{job.output}/{shard.output}"
    if (found := _already_written(job, sink, uri, shard)) is not None:
        return found
    schema = pa.ipc.read_schema(pa.BufferReader(job.input_schema))
    plan = plan_columns(
        schema,
        Signature(job.signature, model.inputs, model.outputs),
        dict(job.features),
        dict(job.predictions),
        job.keep,
    )
    clock, threads = _Clock(), intra_op_threads()
    batches = 0

    def predicted() -> Iterator[pa.RecordBatch]:
        nonlocal batches
        first_row = shard.first_row
        rows = read_batches(store, shard, plan.columns, job.batch_rows)
        with read_ahead(rows, _BATCHES_AHEAD) as source:
            for batch in clock.time_each("read", source):
                if cancelled is not None and cancelled.is_set():
                    raise Cancelled
                with clock.time("predict"):
                    result = predict_batch(model, plan, batch, shard.source.uri, first_row)
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
        written, _ = write_batches(sink, uri, plan.output_schema, predicted(), _key_values(job, shard, threads))
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
        "headrace.model": job.model.digest,
        "headrace.input": shard.source.uri,
        "headrace.input_version": shard.source.version,
        "headrace.first_row": str(shard.first_row),
        "headrace.rows": str(shard.rows),
    }


def _key_values(job: Job, shard: Shard, threads: int) -> dict[str, str]:
    """What each prediction file says of itself: what it is, and what its bits depend on."""
    bits = {"headrace.batch_rows": str(job.batch_rows), "headrace.intra_op_threads": str(threads)}
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


@cache
def _shard_threads() -> ThreadPoolExecutor:
    """One pool for the process, however many DoFns a runner makes: a shard per core is in flight and no more."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="headrace-shard")


class _PredictShard(beam.DoFn):
    """Runners hand out elements one by one and bundles unevenly; the process-wide pool keeps all cores busy anyway."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pending: deque[Future[ShardResult]] = deque()
        self._cancelled = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._job,)

    def setup(self) -> None:
        started = time.perf_counter()
        self._model = load_shared(self._job.model, self._job.signature, self._job.loading)
        self._load_seconds = time.perf_counter() - started
        self._store = open_store(self._job.inputs[0], self._job.storage)
        self._sink = open_store(self._job.output, self._job.storage)

    def start_bundle(self) -> None:
        self._abandon()
        self._cancelled = threading.Event()
        count_load(self._load_seconds)

    def process(self, shard: Shard) -> Iterator[ShardResult]:
        self._pending.append(
            _shard_threads().submit(
                predict_shard, self._job, self._model, self._store, self._sink, shard, self._cancelled
            )
        )
        while len(self._pending) > 2 * cores():
            yield self._oldest()

    def finish_bundle(self) -> Iterator[Any]:
        while self._pending:
            yield GlobalWindows.windowed_value(self._oldest())

    def teardown(self) -> None:
        self._abandon()

    def _oldest(self) -> ShardResult:
        try:
            result = self._pending.popleft().result()
        except BaseException:
            self._abandon()
            raise
        count_result(result)
        return result

    def _abandon(self) -> None:
        self._cancelled.set()
        while self._pending:
            future = self._pending.popleft()
            if not future.cancel():
                future.exception()


class PredictShards(beam.PTransform):
    """PCollection[Shard] to PCollection[ShardResult]: each shard becomes one prediction file in the job's output."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def expand(self, shards: beam.PCollection[Shard]) -> beam.PCollection[ShardResult]:
        return shards | "Predict" >> beam.ParDo(_PredictShard(self._job)).with_output_types(ShardResult)


class _PredictBatch(beam.DoFn):
    def __init__(
        self, configure: Callable[[pa.Schema, Model], tuple[ColumnPlan, int]], ref: ModelRef, name: str
    ) -> None:
        self._configure, self._ref, self._signature = configure, ref, name

    def setup(self) -> None:
        started = time.perf_counter()
        self._model = load_shared(self._ref, self._signature)
        self._load_seconds = time.perf_counter() - started
        self._plans: dict[bytes, tuple[ColumnPlan, int]] = {}

    def start_bundle(self) -> None:
        count_load(self._load_seconds)

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        key = batch.schema.remove_metadata().serialize().to_pybytes()
        if key not in self._plans:
            self._plans[key] = self._configure(batch.schema, self._model)
        plan, rows = self._plans[key]
        for start in range(0, batch.num_rows, rows) or [0]:
            started = time.perf_counter()
            part = batch.slice(start, rows)
            result = predict_batch(self._model, plan, part, "A record batch", start)
            count_batch(part.num_rows, time.perf_counter() - started)
            yield result


class Predict(beam.PTransform):
    """PCollection[pa.RecordBatch] to PCollection[pa.RecordBatch]: the kept columns, then a column for each output.

    `model` is a URI, pinned now, or a `ModelRef`. `features` maps a tensor to its column or columns, `predictions` an output to
    its column's name; both default to equal names. `keep=None` keeps all columns that are no feature. `batch_rows` splits
    larger batches; "auto" is a pure function of schema and signature. Raises `ModelError`, `StorageError` and
    `InvalidRequest` when it is constructed, `ColumnError` and `NullFeature` where a batch does not fit.

        batches | Predict("gs://bucket/model", features={"pixels": "image"}, keep=["id"])
    """

    def __init__(
        self,
        model: str | ModelRef,
        *,
        signature: str = "serving_default",
        features: Mapping[str, str | Sequence[str]] | None = None,
        predictions: Mapping[str, str] | None = None,
        keep: Sequence[str] | None = None,
        batch_rows: int | str = "auto",
        options: StoreOptions = StoreOptions(),
    ) -> None:
        super().__init__()
        if not (batch_rows == "auto" or (isinstance(batch_rows, int) and batch_rows > 0)):
            raise InvalidRequest("batch_rows is out of range", expected="1 or more, or 'auto'", found=repr(batch_rows))
        self._ref = model if isinstance(model, ModelRef) else pin_model(model, options)
        self._signature = signature
        self._features = {
            tensor: (columns,) if isinstance(columns, str) else tuple(columns)
            for tensor, columns in (features or {}).items()
        }
        self._predictions = dict(predictions or {})
        self._keep = None if keep is None else tuple(keep)
        self._batch_rows = batch_rows

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        do_fn = _PredictBatch(self._configure, self._ref, self._signature)
        return batches | "Predict" >> beam.ParDo(do_fn).with_output_types(pa.RecordBatch)

    def _configure(self, schema: pa.Schema, model: Model) -> tuple[ColumnPlan, int]:
        signature = Signature(self._signature, model.inputs, model.outputs)
        plan = plan_columns(schema, signature, self._features, self._predictions, self._keep)
        return plan, self._batch_rows if isinstance(self._batch_rows, int) else auto_batch_rows(plan)[0]
