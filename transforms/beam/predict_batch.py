"""What `Predict` does on workers: a model for the process, and record batches through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.shared import Shared

from .. import progress
from ..argument_names import argument_names
from ..columns.where import RowFilter
from ..models.loading import Loading
from ..models.ref import ModelRef
from ..nested_arrow import one_batch
from ..output.bad_rows import BadRow
from ..output.dead_letters import dead_letter_schema, dead_letters
from ..predicting.batch_predictor import BatchPredictor, BatchRequest
from ..predicting.predictor import devices_for, load_shared
from .metrics import count, time_stage
from .model_updates import load_replaceable

if TYPE_CHECKING:
    from apache_beam.ml.inference.base import ModelMetadata

DEAD_LETTERS = "dead_letters"


class Predicting(beam.DoFn):
    """A DoFn with the process's one copy of a model. Counts what it loads and predicts. `replaceable`: elements come with the
    `ModelMetadata` that counts for them, or None for the first model.
    """

    def __init__(self, request: BatchRequest, ref: ModelRef, loading: Loading, replaceable: bool = False) -> None:
        self._request, self._ref, self._loading, self._replaceable = request, ref, loading, replaceable
        self._shared = Shared()

    def setup(self) -> None:
        self._path: str | None = None
        self._load_seconds: float | None = None
        if not self._replaceable:
            self._load()

    def start_bundle(self) -> None:
        self._count_load()

    def replaces(self, update: ModelMetadata | None) -> bool:
        """Whether a model is to be loaded before the element that came with this update is predicted."""
        return self._replaceable and self._path != (update.model_id if update is not None else "")

    def replace(self, update: ModelMetadata | None) -> None:
        """The process's threads load a model once; what was loaded before is freed when no thread uses it any more."""
        self._path = update.model_id if update is not None else ""
        self._load()
        self._count_load()

    def _load(self) -> None:
        started = time.perf_counter()
        if self._replaceable:
            self._predict = self._shared.acquire(self._replacement, self._path)
        else:
            devices = devices_for([self._ref], self._loading)
            models = [load_shared(self._ref, self._request.signature, self._loading, device) for device in devices]
            self._predict = BatchPredictor(self._request, devices, models)
        self._load_seconds = time.perf_counter() - started

    def _replacement(self) -> BatchPredictor:
        loaded = load_replaceable(self._ref, self._request.signature, self._loading, self._path)
        return BatchPredictor(self._request, *loaded)

    def _count_load(self) -> None:
        if self._load_seconds is not None:
            time_stage("load", self._load_seconds)
        self._load_seconds = None
        count(model_bytes=progress.take_model_bytes())

    def predicted(
        self, batch: pa.RecordBatch, on_bad: Callable[[BadRow], None] | None, where: str = "a record batch"
    ) -> Iterator[list[pa.RecordBatch]]:
        """The predictions, in batches of the size that the request says."""
        started = time.perf_counter()
        for results, bisection in self._predict(batch, on_bad, where=where):
            count(
                rows=bisection.predicted_rows,
                bad_rows=bisection.bad_rows,
                batches=bisection.batches,
                batches_halved=bisection.halved,
            )
            time_stage("predict", time.perf_counter() - started)
            yield results
            started = time.perf_counter()


class PredictBatch(Predicting):
    def __init__(
        self,
        request: BatchRequest,
        ref: ModelRef,
        loading: Loading,
        dead_letters: bool,
        replaceable: bool = False,
        where: str | None = None,
    ) -> None:
        super().__init__(request, ref, loading, replaceable)
        self._dead_letters, self._where = dead_letters, where
        self._filter: tuple[pa.Schema, RowFilter] | None = None

    def process(
        self, batch: pa.RecordBatch, update: ModelMetadata | None = None
    ) -> Iterator[pa.RecordBatch | TaggedOutput]:
        if self.replaces(update):
            self.replace(update)
        if self._dead_letters:
            dead_letter_schema(batch.schema)
        bad: list[BadRow] = []
        for results in self.predicted(batch, bad.append if self._dead_letters else None):
            for result in map(self._filtered, results):
                if batch.num_rows and not result.num_rows:
                    continue
                # Beam's coder sends the whole array behind a slice: each piece would send all kept columns again.
                yield one_batch([result]) if result.num_rows < batch.num_rows else result
        if bad:
            yield TaggedOutput(DEAD_LETTERS, dead_letters(sorted(bad, key=lambda bad_row: bad_row.row)))

    def _filtered(self, result: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that `where` keeps. Batches may be of different schemas, as of a model that replaces another."""
        if self._where is None:
            return result
        if self._filter is None or not self._filter[0].equals(result.schema):
            with argument_names():
                self._filter = result.schema, RowFilter(self._where, result.schema)
        kept = self._filter[1](result)
        count(filtered_rows=result.num_rows - kept.num_rows)
        return kept
