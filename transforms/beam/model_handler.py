"""Beam's `RunInference` on our loader and core."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from apache_beam.pvalue import TaggedOutput

from ..columns.plan import check_choice, fixed_batch, known_row_nbytes, row_nbytes, rows_that_fit
from ..columns.rules import ColumnRules
from ..errors import DataError, HeadraceError, InvalidInferenceArgs, InvalidRequest, UnsupportedModel
from ..models.load import describe_for_job
from ..models.loading import Loading
from ..models.model import as_whole_array
from ..models.pin import pin_model
from ..models.ref import ModelRef
from ..models.spec import ModelSpec, Signature, TensorSpec
from ..nested_arrow import one_batch
from ..output.bad_rows import BadRow
from ..predicting.batch_predictor import BatchPredictor, BatchRequest, request_batches
from ..predicting.bisection import half
from ..predicting.devices import least_busy
from ..storage import StoreOptions
from ..storage.store import public_uri
from .inference_failures import Failure, failures_tag
from .metrics import NAMESPACE, count, time_stage
from .model_updates import load_replaceable
from .notebooks import let_beam_build_pipelines

let_beam_build_pipelines()

Row = Mapping[str, Any]
"""One row: an array (or a scalar) for each input of the model, without the batch dimension."""

# The memory of Python, Beam and TensorFlow, in addition to the model.
_BESIDE_THE_MODEL = 2 << 30


class StreamingModelHandler(ModelHandler[Row | pa.RecordBatch, PredictionResult, "_Served"]):
    """Gives `RunInference` a model that streams into memory, once per machine, and record batches without row objects.

        batches | RunInference(StreamingModelHandler("gs://bucket/model", keep=["id"]))

    An element is a `pa.RecordBatch`, and its `PredictionResult.inference` one of as many rows, as `Predict` makes it: that is
    the fast way. Or it is one row, `{input: array}`; then `inference` is `{output: array}`. A model with one input takes a
    bare array, or a number or text, for a row as well. `model` is a URI, pinned and
    described now, or a `ModelRef`; the arguments are those of `Predict`. `batch_rows` is how many rows are collected for a
    call. `resource_hints` of the step are, by default, the `min_ram` that the model asks for; `{}` gives none: on Dataflow any
    hint turns on right fitting, which excludes accelerators given as a service option.

    The arguments of Beam's own handlers mean what they mean there, in rows: `min_batch_size`, `max_batch_size`,
    `max_batch_duration_secs`, `element_size_fn`, `max_batch_weight` (which needs `element_size_fn`), `batch_length_fn`,
    `batch_bucket_boundaries`, `env_vars`. `large_model` and `model_copies` change nothing: all threads of a process share one
    model, and processes of a machine its weights with `loading=Loading(model_sharing="machine")`. A row that fails goes to
    `failed_inferences` alone under `with_exception_handling()`.

    With `RunInference(…, model_metadata_pcoll=…)` or `watch_model_pattern` the model is replaced by the one at the path that
    comes, pinned when a worker loads it; its signature must fit as the first one's did, and it may need the same custom
    objects. A SavedModel's saved_model.pb means its folder, since Beam's patterns match files alone. The old one's memory
    is freed.
    Raises `ModelError`, `StorageError`, `InvalidRequest`, and `ColumnError` for names that the model lacks, when it is
    constructed.
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
        batch_rows: int | str = "auto",
        rules: ColumnRules = ColumnRules(),
        storage: StoreOptions = StoreOptions(),
        loading: Loading = Loading(),
        resource_hints: Mapping[str, Any] | None = None,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
        max_batch_duration_secs: int | None = None,
        max_batch_weight: int | None = None,
        element_size_fn: Callable[[Any], int] | None = None,
        batch_length_fn: Callable[[Any], int] | None = None,
        batch_bucket_boundaries: list[int] | None = None,
        large_model: bool = False,
        model_copies: int | None = None,
        env_vars: Mapping[str, str] | None = None,
    ) -> None:
        del large_model, model_copies  # the weights are shared beneath: Beam would send every batch to another process
        _check_batching(min_batch_size, max_batch_size, max_batch_duration_secs, max_batch_weight, element_size_fn)
        super().__init__(
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
            max_batch_duration_secs=max_batch_duration_secs,
            element_size_fn=element_size_fn,
            batch_length_fn=batch_length_fn,
            batch_bucket_boundaries=batch_bucket_boundaries,
            env_vars=dict(env_vars or {}),
        )
        if max_batch_weight is not None:  # BatchElements has no such argument: sizes are weights there
            self._batching_kwargs["max_batch_size"] = max_batch_weight
        self._weighs = element_size_fn is not None
        self._request: BatchRequest = request_batches(
            signature, features, predictions, keep, batch_rows, rules, outputs, constants
        )
        self._ref = model if isinstance(model, ModelRef) else pin_model(model, storage)
        self._spec: ModelSpec = describe_for_job(self._ref, signature)
        check_choice(self._spec.signatures[signature], self._request.columns)
        self._loading, self._hints = loading, resource_hints
        self._path: str | None = None
        self._counted_by_beam = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_counted_by_beam": False}

    def load_model(self) -> _Served:
        """Beam keeps it for the process, and drops it when another takes its place."""
        devices, models = load_replaceable(self._ref, self._request.signature, self._loading, self._path)
        return _Served(self._request, devices, models)

    def update_model_path(self, model_path: str | None = None) -> None:
        self._path = model_path or self._path

    def run_inference(
        self,
        batch: Sequence[Row | pa.RecordBatch],
        model: _Served,
        inference_args: dict[str, Any] | None = None,
    ) -> list[PredictionResult | TaggedOutput]:
        """In the order of the elements. Raises what a `Predictor` raises, and `DataError` where rows do not fit together. Where
        exceptions are handled, the elements that fail are left out and go to `failed_inferences`.
        """
        self.validate_inference_args(inference_args)
        tag = failures_tag()
        started = time.perf_counter()
        # Without batching, Beam takes what is an element to us for a batch of its own.
        elements = [batch] if isinstance(batch, pa.RecordBatch) else list(batch)
        found = model.infer(elements, self._rows, tag is not None)
        failed = sum(_rows_in(element) for item in found if isinstance(item, Failure) for element in item.elements)
        rows = sum(map(_rows_in, elements))
        count(rows=rows - failed, bad_rows=failed, batches=1, batches_halved=0)
        time_stage("predict", time.perf_counter() - started)
        if self._counted_by_beam and self._path is None:
            # Beam adds the elements; it does not count what they hold after the first of their rows.
            Metrics.counter(NAMESPACE, "num_inferences").inc(rows - len(batch))
        return [TaggedOutput(tag, (item.elements, item.error)) if isinstance(item, Failure) else item for item in found]

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """At most so many rows in a call, whether they come one by one or in batches. Where Beam searches for a size itself, it
        makes a call without elements before a larger element. The user's arguments take precedence.
        """
        given, rows = self._batching_kwargs, self._rows
        most = given.get("max_batch_size", max(rows, given.get("min_batch_size", 0)))
        least = given.get("min_batch_size", 1 if self._weighs else min(rows, most))
        sizes = {"min_batch_size": least, "max_batch_size": most, "element_size_fn": partial(_rows_of, most=most)}
        return sizes | given

    @property
    def _rows(self) -> int:
        """Rows for one call of the model."""
        signature = self._spec.signatures[self._request.signature]
        if self._request.columns.rules.own_sizes(signature.inputs):
            return 1
        asked = None if self._weighs else self._batching_kwargs.get("max_batch_size")
        return fixed_batch(signature) or self._request.rows or asked or _auto_rows(signature)

    def get_num_bytes(self, batch: Sequence[Row | pa.RecordBatch]) -> int:
        return sum(map(_nbytes, [batch] if isinstance(batch, pa.RecordBatch) else batch))

    def get_metrics_namespace(self) -> str:
        """Beam calls it only where it counts in this namespace, and not where `RunInference` was given another."""
        self._counted_by_beam = True
        return NAMESPACE

    def get_resource_hints(self) -> dict[str, Any]:
        if self._hints is not None:
            return dict(self._hints)
        loading = self._loading.in_flight_bytes
        return {"min_ram": _BESIDE_THE_MODEL + self._spec.nbytes + self._spec.graph_memory + loading}

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        if inference_args:
            raise InvalidInferenceArgs(
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
    """What Beam keeps. With models by key it is in another process: only methods' arguments and results cross."""

    def infer(
        self, elements: Sequence[Row | pa.RecordBatch], most: int, narrow: bool = False
    ) -> list[PredictionResult | Failure]:
        """At most so many rows at once, unless the model is fixed to another number. `narrow`: a row that cannot be predicted
        is a `Failure` in its place, and the rows around it are predicted.
        """
        model = self.models[0]
        fixed = fixed_batch(Signature(self._request.signature, model.inputs, model.outputs))
        results: list[PredictionResult | Failure] = []
        rows: list[Row] = []

        def predict_rows() -> None:
            results.extend(_narrowed(rows, fixed, self) if narrow else _predict_rows(rows, fixed, self))
            rows.clear()

        for element in elements:
            if not isinstance(element, pa.RecordBatch):
                rows.append(element)
            if rows and (len(rows) == (fixed or most) or isinstance(element, pa.RecordBatch)):
                predict_rows()
            if isinstance(element, pa.RecordBatch):
                results.extend(self._of_batch(element, narrow))
        if rows:
            predict_rows()
        return results

    def _of_batch(self, batch: pa.RecordBatch, narrow: bool) -> Iterator[PredictionResult | Failure]:
        """The batch's rows that can be predicted, with their predictions, and each that cannot."""
        bad: list[BadRow] = []
        try:
            inference = _joined([part for parts, _ in self(batch, bad.append if narrow else None) for part in parts])
        except DataError as error:
            if not narrow:
                raise
            yield Failure.of([batch], error)
            return
        if bad:
            good = np.ones(batch.num_rows, bool)
            good[[bad_row.row for bad_row in bad]] = False
            batch = batch.filter(pa.array(good))
        if batch.num_rows or not bad:
            yield PredictionResult(batch, inference, public_uri(self.models[0].ref.uri))
        for bad_row in bad:
            yield Failure([bad_row.values], (DataError, bad_row.error, [bad_row.error]))


def _check_batching(
    least: int | None,
    most: int | None,
    duration: float | None,
    weight: int | None,
    element_size_fn: Callable[[Any], int] | None,
) -> None:
    sizes = {"min_batch_size": least, "max_batch_size": most, "max_batch_weight": weight}
    wrong = {name: value for name, value in sizes.items() if value is not None and value < 1}
    if duration is not None and duration <= 0:
        raise InvalidRequest("max_batch_duration_secs cannot be", expected="more than 0", found=str(duration))
    if wrong or (least is not None and most is not None and least > most):
        raise InvalidRequest(
            f"{' and '.join(wrong) or 'min_batch_size and max_batch_size'} cannot be",
            expected="1 or more, min_batch_size no larger than max_batch_size",
            found=", ".join(f"{name}={value}" for name, value in wrong.items()) or f"{least} and {most}",
        )
    if weight is not None and (element_size_fn is None or most is not None):
        alone = element_size_fn is None
        raise InvalidRequest(
            f"max_batch_weight is {'not enough by itself' if alone else 'one bound too many'}",
            expected="max_batch_weight with element_size_fn, which gives an element's weight, and without max_batch_size",
            found="no element_size_fn" if alone else f"max_batch_size={most}",
        )


def _rows_in(element: Any) -> int:
    return element.num_rows if isinstance(element, pa.RecordBatch) else 1


def _nbytes(element: Any) -> int:
    if isinstance(element, pa.RecordBatch):
        return int(element.nbytes)
    values = element.values() if isinstance(element, Mapping) else [element]
    return sum(np.asarray(value).nbytes for value in values)


def _rows_of(element: Row | pa.RecordBatch | tuple[Any, Row | pa.RecordBatch], most: int) -> int:
    if type(element) is tuple and len(element) == 2:  # a KeyedModelHandler's; a beam.Row is a tuple too
        element = element[1]
    return min(max(1, element.num_rows), most) if isinstance(element, pa.RecordBatch) else 1


def _auto_rows(signature: Signature) -> int:
    inputs = [row_nbytes(spec) for spec in signature.inputs.values()]
    outputs = known_row_nbytes(signature.outputs.values())
    return rows_that_fit(None if None in inputs else sum(size or 0 for size in inputs), outputs)[0]


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    try:
        return parts[0] if len(parts) == 1 else one_batch(parts)
    except pa.ArrowInvalid as error:
        raise DataError(
            "The predictions of a record batch are too large for one",
            expected="2 GiB of text, or as many values in lists, in each column",
            found=str(error),
            cure="Give smaller record batches",
        ) from error


def _array(value: Any, spec: TensorSpec | None) -> np.ndarray[Any, Any]:
    """Python's own numbers have no dtype: they take the input's, except where a fraction meets an input of whole numbers."""
    kinds = {int: ("float", "int", "uint"), float: ("float",)}.get(type(value))
    if spec is not None and kinds is not None and spec.dtype.rstrip("0123456789") in kinds:
        return np.asarray(value, spec.dtype)
    return as_whole_array(value)


def _stacked(values: list[Any], spec: TensorSpec | None) -> Any:
    """One array of all rows; rows of a ragged input stay as long as they are."""
    if spec is not None and spec.composite is not None:
        return values
    return np.stack([_array(value, spec) for value in values])


def _only_input(row: Any, inputs: Mapping[str, TensorSpec], uri: str) -> Row:
    """A bare array, or a number or text, for the only input that rows feed."""
    bare = isinstance(row, np.ndarray | np.generic | int | float | complex | str | bytes | list)
    if len(inputs) == 1 and (bare or hasattr(row, "numpy")):
        return {next(iter(inputs)): row}
    bare_too = ", or a bare array" if len(inputs) == 1 else ""
    raise DataError(
        f"An element for {uri} is neither a row nor a batch",
        expected=f"{{{', '.join(inputs)}}}, or a pyarrow.RecordBatch{bare_too}",
        found=type(row).__name__,
        cure="Map the elements first",
    )


def _narrowed(rows: Sequence[Row], fixed: int | None, predictor: BatchPredictor) -> list[PredictionResult | Failure]:
    """A call that fails is made again with each half, down to single rows."""
    try:
        return list(_predict_rows(rows, fixed, predictor))
    except DataError as error:
        if len(rows) == 1:
            return [Failure.of(list(rows), error)]
        left = half(len(rows))
        return _narrowed(rows[:left], fixed, predictor) + _narrowed(rows[left:], fixed, predictor)


def _predict_rows(rows: Sequence[Row], fixed: int | None, predictor: BatchPredictor) -> Iterator[PredictionResult]:
    """The rows in one call; a model that is fixed to a batch gets the last row again until there are enough."""
    model, full = predictor.models[0], fixed or len(rows)
    inputs = predictor.row_inputs
    fed = [row if isinstance(row, Mapping) else _only_input(row, inputs, model.ref.uri) for row in rows]
    padded = [*fed, *[fed[-1]] * (full - len(fed))]
    names = fed[0].keys()
    try:
        if other := [row for row in fed if row.keys() != names]:
            raise KeyError(f"{', '.join(names)}, and {', '.join(other[0])}")
        arrays = {name: _stacked([row[name] for row in padded], model.inputs.get(name)) for name in names}
        arrays |= predictor.constants(len(padded))
    except (KeyError, ValueError, OverflowError) as error:
        raise DataError(
            f"The rows of a batch for {model.ref.uri} differ in their inputs or in their shapes",
            expected="{" + ", ".join(inputs) + "}, each of one shape in all rows",
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
    whole = predictor.of_one_row
    found = {name: found[name][np.newaxis] if name in whole else found[name] for name in predictor.row_outputs}
    for name, values in found.items():
        if not isinstance(values, np.ndarray) or values.shape[:1] != (full,):
            raise UnsupportedModel(
                f"The output {name!r} of {model.ref.uri} has no value for each row",
                expected=f"a first dimension of {full}",
                found=str(list(values.shape)) if isinstance(values, np.ndarray) else type(values).__name__,
                cure="Leave it out (outputs=[...]), or choose another signature",
            )
    for k, row in enumerate(rows):
        yield PredictionResult(row, {name: values[k] for name, values in found.items()}, public_uri(model.ref.uri))
