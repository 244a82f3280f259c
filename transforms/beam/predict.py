"""RecordBatch to RecordBatch (`Predict`), and Shard to committed file (`PredictShards`), on one core."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints import with_input_types, with_output_types

from .. import progress
from ..argument_names import argument_names
from ..columns.plan import check_choice
from ..columns.rules import ColumnRules
from ..columns.where import parse_where
from ..errors import DataError, InvalidRequest, TooManyFailedShards
from ..jobs.job import Job
from ..models.load import describe_for_job
from ..models.loading import Loading
from ..models.pin import pin_model
from ..models.ref import ModelRef
from ..predicting.batch_predictor import request_batches
from ..predicting.devices import least_busy
from ..predicting.predictor import load_predictors
from ..shards.measuring import timed_load
from ..shards.shard import FailedShard, Shard, ShardResult, WorkUnit
from ..steps.predict_shard import predict_shard
from ..steps.shard_failures import ShardFailures
from ..steps.shard_log import mark_log_lines, working_on
from ..steps.shard_threads import shard_threads
from ..steps.termination import cancel_event, check_not_ending, end_on_sigterm
from ..storage import StoreOptions, open_store
from ..storage.store import public_uri, take_retries
from .metrics import count, count_result, time_stage
from .model_updates import check_update, update_input
from .notebooks import let_beam_build_pipelines
from .plan import GivenJob
from .predict_batch import DEAD_LETTERS, PredictBatch

if TYPE_CHECKING:
    from apache_beam.ml.inference.base import ModelMetadata

let_beam_build_pipelines()


class _PredictShard(beam.DoFn):
    """Runners hand out elements one by one and bundles unevenly; the process-wide pool keeps all cores busy anyway.

    `process` returns once the last shard of its element has a place in the pool: the rest of the bundle stays with the
    runner, which can give it to another worker. Results leave as they come, in any order, and so do shards that failed because
    of their own rows; the job's last step applies its policy to these.

    The model is loaded in `setup`, unless an earlier step determines the job, as in a template.
    """

    def __init__(self, job: Job | None, step: str) -> None:
        self._job, self._step = job, step
        self._pending: deque[tuple[Job, Shard, Future[ShardResult]]] = deque()
        self._cancelled = cancel_event()
        self._ready = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._job, self._step)

    def setup(self) -> None:
        mark_log_lines()
        end_on_sigterm()
        if self._job is not None:
            self._load(self._job)

    def start_bundle(self) -> None:
        self._abandon()
        self._cancelled = cancel_event()

    def process(self, unit: WorkUnit, job: Job) -> Iterator[ShardResult | FailedShard]:
        if not self._ready:
            self._load(job)
        for shard in unit:
            with self._ended_in_order():
                self._failures.check(job)
            future = shard_threads().submit(self._on_a_device, job, shard, self._cancelled)
            self._pending.append((job, shard, future))
            count(shards_started=1)
            yield from self._done()

    def _load(self, job: Job) -> None:
        (self._devices, self._predictors), self._process = timed_load(lambda: load_predictors(job))
        self._traces_counted, self._load_counted = 0, False
        self._failures = ShardFailures()
        self._store = open_store(job.folder, job.storage)
        self._sink = open_store(job.output, job.storage)
        self._ready = True

    def _on_a_device(self, job: Job, shard: Shard, cancelled: threading.Event) -> ShardResult:
        progress.add(shards_in_flight=1)
        try:
            check_not_ending()
            with working_on(shard.output, self._step), least_busy(self._devices) as i:
                result = predict_shard(job, self._predictors[i], self._store, self._sink, shard, cancelled)
        finally:
            progress.add(shards_in_flight=-1)
        if result.measurements is None:
            return result
        return replace(result, measurements=replace(result.measurements, process=self._process))

    def finish_bundle(self) -> Iterator[Any]:
        while self._pending:
            yield GlobalWindows.windowed_value(self._result(*self._pending.popleft()))
        if not self._ready:  # an empty bundle
            return
        if not self._load_counted:
            time_stage("load", self._process.load_seconds)
        self._load_counted = True
        traces = sum(predictor.traces for predictor in self._predictors)
        count(
            model_bytes=progress.take_model_bytes(),
            traces=traces - self._traces_counted,
            storage_retries=take_retries(),
        )
        self._traces_counted = traces

    def teardown(self) -> None:
        self._abandon()

    def _done(self) -> Iterator[ShardResult | FailedShard]:
        for entry in [entry for entry in self._pending if entry[2].done()]:
            self._pending.remove(entry)
            yield self._result(*entry)

    def _result(self, job: Job, shard: Shard, future: Future[ShardResult]) -> ShardResult | FailedShard:
        with self._ended_in_order():
            try:
                result = future.result()
            except Exception as error:
                failed = self._failures.add(job, shard, error)
                count(shards_failed=1)
                return failed
        count_result(result)
        return result

    @contextmanager
    def _ended_in_order(self) -> Iterator[None]:
        """An exception within ends the bundle. Running shards may finish, unless its cause is not the data."""
        try:
            yield
        except (DataError, TooManyFailedShards):
            with self._ended_in_order():
                while self._pending:
                    self._pending.popleft()[2].exception()
            raise
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._cancelled.set()
        while self._pending:
            future = self._pending.popleft()[2]
            if not future.cancel():
                future.exception()


class PredictShards(beam.PTransform):
    """PCollection[WorkUnit] to PCollection[ShardResult | FailedShard]: each shard becomes one prediction file in the job's
    output, or fails by its own rows.
    """

    def __init__(self, job: GivenJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, units: beam.PCollection[WorkUnit]) -> beam.PCollection[ShardResult | FailedShard]:
        known = self._job if isinstance(self._job, Job) else None
        predict = beam.ParDo(_PredictShard(known, f"{self.label}/Predict"), self._job)
        return units | "Predict" >> predict.with_output_types(ShardResult | FailedShard)

    def display_data(self) -> dict[str, Any]:
        if not isinstance(self._job, Job):
            return {}
        models = [(model.ref, model.signature) for model in self._job.models]
        return _shown(models, self._job.batch_rows, self._job.loading)


@with_input_types(pa.RecordBatch)
@with_output_types(pa.RecordBatch)
class Predict(beam.PTransform):
    """PCollection[pa.RecordBatch] to PCollection[pa.RecordBatch]: the kept columns, then a column for each output.

    `model` is a URI, pinned now, or the `ModelRef` that `pin_model` gives: of a config.json with weights, with custom
    objects, or with code of its own. `features` maps a tensor to its column or columns, `predictions` an output
    to its column's name; both default to equal names. `outputs` are those that become columns, `None` all that have a row for
    each row. `constants` are values of inputs that are the same for every row. `top_k` asks for an output's best classes in
    place of its column: {"scores": 5}, or "5:labels.txt" for their labels, a line for each class. `where` is a condition on the
    columns of the result, as "scores_score > 0.9": other rows are left out and counted as `filtered_rows`.

    `keep=None` keeps all columns that are not features. `batch_rows` splits
    larger batches; "auto" is a pure function of schema and signature; a batch that does not fit into memory is halved, and so
    are those after it. `rules` say what may be done to values, `loading` how the model reaches which device.

    A row that cannot be predicted fails the pipeline, or with `on_error="dead_letter"` goes to a second collection, as a
    record batch of its columns and those that `headrace.transforms.output.dead_letters` describes; the result is
    then a tuple of both, `.predictions` and `.dead_letters`. Their number has no bound: count the latter.

    A batch keeps its timestamp, windows and pane. `update_model` replaces the model while the pipeline runs: by a side input
    of Beam's `ModelMetadata`, whose `model_id` is the path of the model for the windows that it is in ("" for the first one),
    or by a pattern of files: the newest one counts; saved_model.pb stands for its folder. Each process pins the model when
    it loads it; its signature must fit as the first one's did.

    Raises `ModelError`, `StorageError`, `InvalidRequest`, and `ColumnError` for names that the model lacks, when it is
    constructed; `ColumnError` and `NullFeature` where a batch does not fit.

        batches | Predict("gs://bucket/model", features={"pixels": "image"}, keep=["id"])
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelRef,
        *,
        signature: str = "serving_default",
        features: Mapping[str, str | Sequence[str]] | None = None,
        predictions: Mapping[str, str] | None = None,
        keep: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        constants: Mapping[str, Any] | None = None,
        top_k: Mapping[str, int | str] | None = None,
        batch_rows: int | str = "auto",
        rules: ColumnRules = ColumnRules(),
        on_error: str = "fail",
        storage: StoreOptions = StoreOptions(),
        loading: Loading = Loading(),
        update_model: beam.PCollection[ModelMetadata] | str | None = None,
        where: str | None = None,
    ) -> None:
        super().__init__()
        check_update(update_model)
        if where is not None:
            with argument_names():
                parse_where(where)
        self._request = request_batches(
            signature, features, predictions, keep, batch_rows, rules, outputs, constants, top_k, storage
        )
        if on_error not in ("fail", "dead_letter"):
            values = "'fail' or 'dead_letter'"
            raise InvalidRequest("on_error does not take this value", expected=values, found=repr(on_error))
        self._dead_letters = on_error == "dead_letter"
        self._ref = model if isinstance(model, ModelRef) else pin_model(model, storage)
        check_choice(describe_for_job(self._ref, signature).signatures[signature], self._request.columns)
        self._loading, self._update_model, self._where = loading, update_model, where

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Any:
        update = update_input(self._update_model, batches.pipeline)
        do_fn = PredictBatch(self._request, self._ref, self._loading, self._dead_letters, bool(update), self._where)
        predict = beam.ParDo(do_fn, *update).with_output_types(pa.RecordBatch)
        if not self._dead_letters:
            return batches | "Predict" >> predict
        return batches | "Predict" >> predict.with_outputs(DEAD_LETTERS, main="predictions")

    def display_data(self) -> dict[str, Any]:
        rows = self._request.rows or "auto"
        return _shown([(self._ref, self._request.signature)], rows, self._loading)


def _shown(models: Sequence[tuple[ModelRef, str]], rows: int | str, loading: Loading) -> dict[str, Any]:
    """Display data of a step for a runner's page; a key may have one value."""
    items = {
        "model": ("Model", [public_uri(ref.uri) for ref, _ in models]),
        "digest": ("SHA-256 of the model", [ref.digest for ref, _ in models]),
        "signature": ("Signature", [signature for _, signature in models]),
        "batch_rows": ("Rows per batch", [str(rows)]),
        "device": ("Device", [loading.device]),
    }
    return {key: DisplayDataItem(", ".join(values), label=label) for key, (label, values) in items.items()}
