"""Beam's `RunInference` on our loader and core."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from ..columns.plan import fixed_batch, known_row_nbytes, row_nbytes, rows_that_fit
from ..columns.rules import ColumnRules
from ..errors import DataError, HeadraceError, InvalidRequest, UnsupportedModel
from ..jobs.job import Loading
from ..models.load import describe_model, load_model
from ..models.model import whole_array
from ..models.ref import ModelRef, pin_model
from ..models.spec import ModelSpec, Signature
from ..predicting.batch_predictor import BatchPredictor, BatchRequest, request_batches
from ..predicting.devices import least_busy
from ..predicting.predictor import devices_for
from ..storage import StoreOptions
from ..storage.store import public_uri
from .metrics import NAMESPACE

Row = Mapping[str, Any]
"""One row: an array (or a scalar) for each input of the model, without the batch dimension."""

_GRAPH = re.compile(r"/saved_model\.pb(txt)?$")
# What Python, Beam and TensorFlow take beside the model.
_BESIDE_THE_MODEL = 2 << 30


class StreamingModelHandler(ModelHandler[Row | pa.RecordBatch, PredictionResult, "_Served"]):
    """Gives `RunInference` a model that streams into memory, once per machine, and record batches without row objects.

        batches | RunInference(StreamingModelHandler("gs://bucket/model", keep=["id"]))

    An element is a `pa.RecordBatch`, and its `PredictionResult.inference` one of as many rows, as `Predict` makes it: that is
    the fast way. Or it is one row, `{input: array}`; then `inference` is `{output: array}`. `model` is a URI, pinned and
    described now, or a `ModelRef`; the arguments are those of `Predict`. `batch_rows` is how many rows are collected for a
    call. `resource_hints` of the step are, by default, the `min_ram` that the model asks for; `{}` gives none: on Dataflow any
    hint turns on right fitting, which excludes accelerators given as a service option.

    With `RunInference(…, model_metadata_pcoll=…)` or `watch_model_pattern` the model is replaced by the one at the path that
    comes, pinned when a worker loads it; its signature must fit as the first one's did, and it may need the same custom
    objects. A SavedModel's saved_model.pb stands for its folder, since Beam's patterns match files alone. The old one's memory
    is freed.
    Raises `ModelError`, `StorageError` and `InvalidRequest` when it is constructed.
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
        rules: ColumnRules = ColumnRules(),
        options: StoreOptions = StoreOptions(),
        loading: Loading = Loading(),
        resource_hints: Mapping[str, Any] | None = None,
    ) -> None:
        # The weights are shared beneath: Beam's own sharing would send every batch to another process.
        super().__init__(large_model=False)
        self._request: BatchRequest = request_batches(signature, features, predictions, keep, batch_rows, rules)
        self._ref = model if isinstance(model, ModelRef) else pin_model(model, options)
        self._spec: ModelSpec = describe_model(self._ref, signature)
        self._loading, self._hints = loading, resource_hints
        self._path: str | None = None

    def load_model(self) -> _Served:
        """Beam keeps it for the process, and drops it when another takes its place."""
        ref = self._ref
        if self._path is not None:
            path = _GRAPH.sub("", self._path)
            ref = pin_model(path, ref.options, custom_objects=ref.custom_objects, unsafe=ref.unsafe)
        devices = devices_for([ref], self._loading)
        models = [
            load_model(ref, self._request.signature, device=device.name, **self._loading.how) for device in devices
        ]
        return _Served(self._request, devices, models)

    def update_model_path(self, model_path: str | None = None) -> None:
        self._path = model_path or self._path

    def run_inference(
        self,
        batch: Sequence[Row | pa.RecordBatch],
        model: _Served,
        inference_args: dict[str, Any] | None = None,
    ) -> list[PredictionResult]:
        """In the order of the elements. Raises what a `Predictor` raises, `DataError` where rows do not fit together."""
        del inference_args  # validate_inference_args has refused them
        # Without batching, Beam takes what is an element to us for a batch of its own.
        return model.infer([batch] if isinstance(batch, pa.RecordBatch) else list(batch), self._rows)

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """So many rows at most, whether they come one by one or in batches. Where Beam looks for a size of its own, it calls
        with no element at all before one that is larger than that.
        """
        most = self._rows
        return {"min_batch_size": most, "max_batch_size": most, "element_size_fn": partial(_rows_of, most=most)}

    @property
    def _rows(self) -> int:
        signature = self._spec.signatures[self._request.signature]
        return fixed_batch(signature) or self._request.rows or _auto_rows(signature)

    def get_num_bytes(self, batch: Sequence[Row | pa.RecordBatch]) -> int:
        return sum(
            element.nbytes
            if isinstance(element, pa.RecordBatch)
            else sum(np.asarray(value).nbytes for value in element.values())
            for element in ([batch] if isinstance(batch, pa.RecordBatch) else batch)
        )

    def get_metrics_namespace(self) -> str:
        return NAMESPACE

    def get_resource_hints(self) -> dict[str, Any]:
        if self._hints is not None:
            return dict(self._hints)
        return {"min_ram": _BESIDE_THE_MODEL + self._spec.nbytes + self._loading.in_flight_bytes}

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        if inference_args:
            raise InvalidRequest(
                "StreamingModelHandler takes no inference_args",
                expected="none: a signature's inputs are the elements' tensors or columns",
                found=", ".join(inference_args),
                cure="Leave them out",
            )

    def share_model_across_processes(self) -> bool:
        return False

    def __repr__(self) -> str:
        model = f"{public_uri(self._ref.uri)!r}, signature={self._request.signature!r}, sha256={self._ref.digest[:12]}"
        return f"StreamingModelHandler({model})"


class _Served(BatchPredictor):
    """What Beam keeps. With models by key it lies in another process, which only methods' arguments and results reach."""

    def infer(self, elements: Sequence[Row | pa.RecordBatch], most: int) -> list[PredictionResult]:
        """At most so many rows at once, unless the model is fixed to another number."""
        model = self.models[0]
        fixed = fixed_batch(Signature(self._request.signature, model.inputs, model.outputs))
        results: list[PredictionResult] = []
        rows: list[Row] = []

        def predict_rows() -> None:
            results.extend(_predict_rows(rows, fixed, self))
            rows.clear()

        for element in elements:
            if not isinstance(element, pa.RecordBatch):
                rows.append(element)
            if rows and (len(rows) == (fixed or most) or isinstance(element, pa.RecordBatch)):
                predict_rows()
            if isinstance(element, pa.RecordBatch):
                inference = _joined([part for parts, _ in self(element) for part in parts])
                results.append(PredictionResult(element, inference, public_uri(model.ref.uri)))
        if rows:
            predict_rows()
        return results


def _rows_of(element: Row | pa.RecordBatch | tuple[Any, Row | pa.RecordBatch], most: int) -> int:
    if type(element) is tuple and len(element) == 2:  # a KeyedModelHandler's; a beam.Row is a tuple too
        element = element[1]
    return min(max(1, element.num_rows), most) if isinstance(element, pa.RecordBatch) else 1


def _auto_rows(signature: Signature) -> int:
    inputs = [row_nbytes(spec) for spec in signature.inputs.values()]
    outputs = known_row_nbytes(signature.outputs.values())
    return rows_that_fit(None if None in inputs else sum(one or 0 for one in inputs), outputs)[0]


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    try:
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts)
    except pa.ArrowInvalid as error:
        raise DataError(
            "The predictions of a record batch are too large for one",
            expected="2 GiB of text, or as many values in lists, in each column",
            found=str(error),
            cure="Give smaller record batches",
        ) from error


def _predict_rows(rows: Sequence[Row], fixed: int | None, predictor: BatchPredictor) -> Iterator[PredictionResult]:
    """The rows in one call; a model that is fixed to a batch gets the last row again until there are enough."""
    model, full = predictor.models[0], fixed or len(rows)
    padded = [*rows, *[rows[-1]] * (full - len(rows))]
    if strange := [row for row in rows if not isinstance(row, Mapping)]:
        raise DataError(
            f"An element for {model.ref.uri} is neither a row nor a batch",
            expected="{" + ", ".join(model.inputs) + "}, or a pyarrow.RecordBatch",
            found=type(strange[0]).__name__,
            cure="Map the elements first",
        )
    names = rows[0].keys()
    try:
        if other := [row for row in rows if row.keys() != names]:
            raise KeyError(f"{', '.join(names)}, and {', '.join(other[0])}")
        arrays = {name: np.stack([whole_array(row[name]) for row in padded]) for name in names}
    except (KeyError, ValueError) as error:
        raise DataError(
            f"The rows of a batch for {model.ref.uri} differ in their inputs or in their shapes",
            expected="{" + ", ".join(model.inputs) + "}, each of one shape in all rows",
            found=f"{type(error).__name__}: {error}",
            cure="Make them alike, for instance by padding, or give record batches with rules=ColumnRules(pad=…)",
        ) from error
    with least_busy(predictor.devices) as i:
        try:
            found = predictor.models[i].predict(arrays)
        except HeadraceError:
            raise
        except Exception as error:
            raise DataError(
                f"{model.ref.uri} fails on a batch of {len(rows)} rows",
                expected="values that it can compute with",
                found=f"{type(error).__name__}: {error}",
                cure="Give record batches: they are narrowed down to the row",
            ) from error
    for name, values in found.items():
        if values.shape[:1] != (full,):
            raise UnsupportedModel(
                f"The output {name!r} of {model.ref.uri} has no value for each row",
                expected=f"a first dimension of {full}",
                found=str(list(values.shape)),
                cure="Choose another signature",
            )
    for k, row in enumerate(rows):
        yield PredictionResult(row, {name: values[k] for name, values in found.items()}, public_uri(model.ref.uri))
