"""One record batch in, one out: the user's functions, the models, kept columns and predictions. No Beam, no files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from .. import progress
from ..columns.constant_inputs import plan_constants
from ..columns.inputs import OutputPlan, plan_inputs
from ..columns.plan import ColumnChoice, ColumnPlan, ModelPlan, fixed_batch, plan_columns, unknown_ranks, varying_batch
from ..columns.where import RowFilter
from ..errors import DataError, JobError, UnsupportedModel, row_span
from ..jobs.job import Job
from ..jobs.user_functions import AppliedFunction
from ..models.device_placement import on, placed
from ..models.formats import format_of
from ..models.loading import Loading
from ..models.model import Model, said
from ..models.process_cache import shared_model
from ..models.ref import ModelRef
from ..models.spec import Signature
from ..versions import check_versions
from .devices import Device, choose_devices, set_up_tensorflow

if TYPE_CHECKING:
    import tensorflow as tf

# Of a batch, to see what an output is.
_TRIED_ROWS = 16
Call = Callable[[Mapping[str, "tf.Tensor"]], "dict[str, tf.Tensor]"]


class BatchTooLarge(DataError):
    """Memory, of the host or of a device, does not hold this batch: a smaller one may fit."""


class BatchLimit:
    """How much fits into memory, as found out: batches of at most `rows`, None while none was too large. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.rows: int | None = None

    def lower(self, rows: int) -> None:
        with self._lock:
            self.rows = rows if self.rows is None else min(self.rows, rows)

    def restore(self, rows: int | None) -> None:
        """Takes back what a single row has lowered, which would fit no batch."""
        with self._lock:
            self.rows = rows


class Predictor:
    """Safe for many threads at once. `columns` are what it reads of a batch; `output_schema` is that of its results.

    `where` applies to its results: it selects the rows of the output, None for all.
    """

    def __init__(
        self,
        plan: ColumnPlan,
        models: Sequence[Model],
        *,
        preprocess: AppliedFunction | None = None,
        postprocess: AppliedFunction | None = None,
        where: str | None = None,
        jit_rows: int | None = None,
        device: str = "cpu",
    ) -> None:
        """`jit_rows`: compile with XLA, for batches of that many rows; the last batch is filled up to it. `device` is what
        kind of device the models, all on the same one, compute on.
        """
        self.device = device
        # The host processes batches before and after the model, in many threads at once.
        self._host = None if all(model.device is None for model in models) else "/device:CPU:0"
        self._plan, self._preprocess, self._postprocess = plan, preprocess, postprocess
        self.output_schema = postprocess.output_schema if postprocess else plan.output_schema
        self.where = None if where is None else RowFilter(where, self.output_schema)
        self.limit = BatchLimit()
        parts = zip(plan.models, models, strict=True)
        self._parts = [_Part(part, model, jit_rows, self.limit) for part, model in parts]

    @property
    def predictions(self) -> tuple[str, ...]:
        """The columns of `output_schema` that are not kept ones."""
        kept = frozenset(self._plan.keep)
        return tuple(name for name in self.output_schema.names if name not in kept)

    @property
    def traces(self) -> int:
        """How many graphs were traced to serve the batches so far; one for each compiled model is as it should be."""
        return sum(part.traces() for part in self._parts)

    def __call__(self, batch: pa.RecordBatch, where: str = "", first_row: int = 0) -> pa.RecordBatch:
        """`where` (the file) and `first_row` (the file's row at which the batch begins, from 0) are for messages.

        Raises `DataError`, its `stage` being "preprocess", "features", "model", "predictions" or "postprocess", and
        `BatchTooLarge` where memory is short.
        """
        with on(self._host):
            return self._predict(batch, where, first_row)

    def check_held_examples(self, named: Collection[str], batch: pa.RecordBatch, where: str) -> None:
        """As `InputPlan.check_held_examples`, for each model."""
        for part in self._parts:
            part.plan.inputs.check_held_examples(named, batch, where)

    def unfit(self, batch: pa.RecordBatch, where: str, first_row: int) -> dict[int, str]:
        """Rows of the batch, from 0, that no model can be fed with, and why: nulls, lists of another length, values that no
        cast may change, images that cannot be decoded. Raises `DataError` where a function fails on the batch.
        """
        found: dict[int, str] = {}
        with on(self._host):
            if self._preprocess is not None:
                batch = self._preprocess(batch, where, first_row)
            for part in reversed(self._parts):
                found |= part.plan.inputs.unfit(batch, where, first_row)
        return found

    def _predict(self, batch: pa.RecordBatch, where: str, first_row: int) -> pa.RecordBatch:
        stage = "preprocess"
        try:
            if self._preprocess is not None:
                batch = self._preprocess(batch, where, first_row)
            columns = [batch.column(name) for name in self._plan.keep]
            for part in self._parts:
                if not batch.num_rows:  # of unknown sizes within a row nothing could be said to the model
                    columns += [pa.nulls(0, field.type) for field in part.plan.outputs.fields]
                    continue
                stage = "features"
                tensors = part.plan.tensors(batch, where, first_row)
                stage = "model"
                results = part.run(tensors, batch.num_rows, where, first_row)
                stage = "predictions"
                columns += part.plan.outputs.columns(results, batch.num_rows)
            result = pa.RecordBatch.from_arrays(columns, schema=self._plan.output_schema)
            stage = "postprocess"
            return result if self._postprocess is None else self._postprocess(result, where, first_row)
        except DataError as error:
            if isinstance(error.__cause__, Exception) and _exhausted(error.__cause__):  # in a user's function
                error = BatchTooLarge(error.what, expected=error.expected, found=error.found, cure=error.cure)
            error.stage = stage
            raise error from error.__cause__
        except Exception as error:
            if not _about_data(error):
                raise
            failed = _failed(error, stage, batch.num_rows, where, first_row)
            failed.stage = stage
            raise failed from error


class _Part:
    """One model and its columns."""

    def __init__(self, plan: ModelPlan, model: Model, jit_rows: int | None, limit: BatchLimit) -> None:
        self.plan = plan
        self._jit_rows, self._limit = jit_rows, limit
        self._per_batch = {constant.spec.name for constant in plan.constants if not constant.by_row}
        self._of_one_row = plan.of_one_row
        self._model = model
        self._call: Call = model.call
        # A signature as it was loaded is one graph, whatever its inputs.
        self.traces: Callable[[], int] = lambda: 0
        if jit_rows is not None:
            self._call, self.traces = _compiled(model.call, model.ref.uri)
        self._call = placed(self._call, model.device)

    def run(self, tensors: Mapping[str, tf.Tensor], rows: int, where: str, first_row: int) -> Mapping[str, tf.Tensor]:
        full = self._full(rows)
        self._model.check_process()
        try:
            if full is None or rows == full:
                return _with_batch(self._call(tensors), self._of_one_row)
            by_row = tensors.keys() - self._per_batch
            filled = {name: _fill_up(tensor, full) if name in by_row else tensor for name, tensor in tensors.items()}
            return {name: _cut(tensor, full, rows) for name, tensor in self._call(filled).items()}
        except UnsupportedModel:
            raise
        except Exception as error:
            if self.plan.batch_rows not in (None, 1) and _exhausted(error):
                raise JobError(
                    f"Memory does not hold a batch of the model, at row {first_row} of {where}",
                    expected=f"memory for {full} rows, the batch that the model is fixed to",
                    found=f"{type(error).__name__}: {error}",
                    cure="Export the model with a batch dimension of None, or run it where there is more memory",
                ) from error
            if any(sign in str(error) for sign in _NO_ROW):
                raise UnsupportedModel(
                    f"{self._model.ref.uri} cannot predict any row",
                    expected="operations that run here",
                    found=_cause(error),
                    cure="Export the model again for serving, with operations that this build of TensorFlow has",
                ) from error
            raise _failed(error, "model", rows, where, first_row) from error

    def _full(self, rows: int) -> int | None:
        """The rows for a call of the model; a graph that was compiled again keeps serving smaller batches."""
        if self._jit_rows is None or self.plan.batch_rows is not None:
            return self.plan.batch_rows
        most = self._limit.rows
        return most if most is not None and rows <= most < self._jit_rows else self._jit_rows


def with_output_ranks(model: Model, choice: ColumnChoice, batch: pa.RecordBatch, where: str) -> ColumnChoice:
    """The choice with the ranks of outputs whose rank the signature lacks: the model predicts the first of the batch's rows
    that it can. Raises `DataError` where it can predict none of a few.
    """
    signature = choice.fed(Signature(model.signature, model.inputs, model.outputs))
    inputs, outputs = varying_batch(signature, choice)
    unknown, failed = unknown_ranks(outputs, choice), None
    if not unknown or not batch.num_rows:
        return choice
    fed = plan_inputs(batch.schema, inputs, dict(choice.features), rules=choice.rules, where=where)
    constants = plan_constants(model.inputs, dict(choice.constants))
    part = _Part(ModelPlan(fed, OutputPlan(()), fixed_batch(signature), constants), model, None, BatchLimit())
    for row in range(min(batch.num_rows, _TRIED_ROWS)):
        try:
            results = part.run(part.plan.tensors(batch.slice(row, 1), where, row), 1, where, row)
        except DataError as error:
            failed = failed or error
            continue
        return replace(choice, ranks=tuple((name, results[name].shape.rank) for name in unknown))
    assert failed is not None
    raise failed


def _exhausted(error: Exception) -> bool:
    import tensorflow as tf

    return isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError))


def _about_data(error: Exception) -> bool:
    """Whether Arrow or TensorFlow raises it between columns and tensors; our own mistakes do not count."""
    import tensorflow as tf

    return isinstance(error, (MemoryError, pa.ArrowException, tf.errors.OpError))


def _without_place(text: str) -> str:
    """TensorFlow's message without the place in the graph, whose numbers differ between processes."""
    return text.rpartition("<stack traces unavailable>")[2].partition("[[{{")[0].partition("[Op:")[0].strip()


# In errors for which the graph itself is to blame, whatever the values are.
_NO_ROW = (
    "Op type not registered",
    "OpKernel was registered",
    "No registered '",
    "callback 'pyfunc_",
    "Failed to bind all placeholders",
    "unresolved custom op",
)


def _cause(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return _without_place(said(error))
    return f"{type(error).__name__}: {_without_place(str(error))}"


def _failed(error: Exception, stage: str, rows: int, where: str, first_row: int) -> DataError:
    exhausted = _exhausted(error)
    subject = "the model" if stage == "model" else f"the batch's way from column to column (stage {stage})"
    if rows == 1:
        what = f"Row {first_row} (counted from 0) of {where} cannot be predicted: {subject} fails on it"
    else:
        what = f"{subject[0].upper()}{subject[1:]} fails on {row_span(first_row, first_row + rows)} of {where}"
    return (BatchTooLarge if exhausted else DataError)(
        what,
        expected="memory for a batch" if exhausted else "values that it can compute with",
        found=_cause(error),
        cure="Choose a smaller --batch_size, or run it where there is more memory"
        if exhausted
        else "Fix these rows, or let them go to dead letters: --on_error=dead_letter",
    )


_NOT_COMPILED = (
    "Detected unsupported operations when trying to compile",
    "tf2xla conversion failed",
    "Must be a compile-time",
)


def _compiled(call: Call, uri: str) -> tuple[Call, Callable[[], int]]:
    import tensorflow as tf

    compiled = tf.function(call, jit_compile=True, reduce_retracing=False)

    def run(tensors: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        try:
            return compiled(tensors)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if not any(sign in str(error) for sign in _NOT_COMPILED):
                raise
            raise UnsupportedModel(
                f"XLA cannot compile {uri}",
                expected="operations that XLA has",
                found=str(error).partition("{{")[0],
                cure="Leave --jit_compile out",
            ) from error

    return run, compiled.experimental_get_tracing_count


def _with_batch(results: Mapping[str, tf.Tensor], names: Collection[str]) -> Mapping[str, tf.Tensor]:
    """The results. Those of these names get a batch dimension of one row."""
    if not names:
        return results
    import tensorflow as tf

    return {name: tf.expand_dims(tensor, 0) if name in names else tensor for name, tensor in results.items()}


def _fill_up(tensor: tf.Tensor, rows: int) -> tf.Tensor:
    """The last row again, until there are as many: what a model computes of one row says nothing of another."""
    import tensorflow as tf

    have = int(tensor.shape[0])
    if not have:
        return tf.zeros((rows, *tensor.shape[1:]), tensor.dtype)
    return tf.concat([tensor, tf.repeat(tensor[-1:], rows - have, axis=0)], axis=0)


def _cut(tensor: tf.Tensor, filled: int, rows: int) -> tf.Tensor:
    return tensor[:rows] if tensor.shape.rank and tensor.shape[0] == filled else tensor


def load_shared(ref: ModelRef, signature: str, loading: Loading, device: Device) -> Model:
    """The process's one copy of the model on the device; the first caller loads it."""
    model = shared_model(ref, signature, loading.on(device.name), progress.ModelProgress())
    progress.model_ready()
    return model


def devices_for(models: Sequence[ModelRef], loading: Loading, *, whole_process: bool = False) -> tuple[Device, ...]:
    """The devices where this process has a replica of all models. `whole_process`: no other models run in it."""
    cpu_only = loading.device == "auto" and not all(format_of(ref).runs_on_gpu for ref in models)
    wanted = "cpu" if cpu_only else loading.device
    set_up_tensorflow(wanted, whole_process=whole_process)
    return choose_devices(wanted)


def load_predictors(job: Job) -> tuple[tuple[Device, ...], list[Predictor]]:
    """The job's devices, and for each a predictor with models of its own. Raises as `load_predictor`."""
    check_versions(dict(job.versions))
    devices = devices_for([model.ref for model in job.models], job.loading, whole_process=True)
    return devices, [load_predictor(job, device) for device in devices]


def load_predictor(job: Job, device: Device | None = None) -> Predictor:
    """The job's models loaded, once per process and device, and its functions found; on the first device if none is named.

    Raises `WorkerMismatch` where this process has other versions than the launcher, `InvalidRequest` other functions.
    """
    check_versions(dict(job.versions))
    device = device or devices_for([model.ref for model in job.models], job.loading, whole_process=True)[0]
    models = [load_shared(model.ref, model.signature, job.loading, device) for model in job.models]
    schema = job.schema
    written = () if job.postprocess else job.keep
    preprocess = job.preprocess.applied(schema, written) if job.preprocess else None
    plan = plan_columns(
        preprocess.output_schema if preprocess else schema,
        [
            (Signature(asked.signature, model.inputs, model.outputs), asked.columns)
            for asked, model in zip(job.models, models, strict=True)
        ],
        job.keep,
    )
    postprocess = job.postprocess.applied(plan.output_schema) if job.postprocess else None
    return Predictor(
        plan,
        models,
        preprocess=preprocess,
        postprocess=postprocess,
        where=job.where,
        jit_rows=job.batch_rows if job.jit_compile else None,
        device=device.kind,
    )
