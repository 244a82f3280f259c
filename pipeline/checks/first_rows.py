"""What the first rows of the first file show before a job: whether a column holds serialized messages where an input takes
them, and the number of dimensions of outputs whose rank the model's signature lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from headrace.transforms.columns.plan import ColumnChoice, ColumnPlan
from headrace.transforms.errors import UnsupportedModel
from headrace.transforms.jobs.job import Job
from headrace.transforms.models.load import load_model
from headrace.transforms.models.loading import Loading
from headrace.transforms.models.spec import ModelSpec
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.predicting.predictor import with_output_ranks
from headrace.transforms.shards.shard import Shard
from headrace.transforms.steps.plan_shards import shards_of_file
from headrace.transforms.storage import ObjectRef, open_store

from ..flags.request import Request

_ROWS = 16
MOST_BYTES = 256 << 20
"""Of a model that the launcher loads to see its outputs."""

Ranks = tuple[tuple[str, int], ...]


def check_examples(request: Request, job: Job, columns: ColumnPlan, first: ObjectRef) -> None:
    """A column that feeds an input of serialized tf.train.Example must hold such messages, even if no flag names it for that.
    Raises `ColumnError`. Does not check what --preprocess makes of the rows.
    """
    named = {tensor for written in request.features for tensor in (written, written.partition(".")[2])}
    unasked = [plan.inputs for plan in columns.models if plan.inputs.unasked_examples(named)]
    if job.preprocess is None and unasked and (shard := _first_shard(job, first)) is not None:
        batch = _rows_of(job, shard)
        for inputs in unasked:
            inputs.check_held_examples(named, batch, first.uri)


def found_ranks(job: Job, specs: Sequence[ModelSpec], choices: Sequence[ColumnChoice], first: ObjectRef) -> list[Ranks]:
    """The ranks for each model: one row is run. `job` was planned with any rank for outputs of unknown rank, and `choices` with
    none; `first` is its first file. Raises `UnsupportedModel` where no row can be run, or the model is too large for that.
    """
    shard, models = _first_shard(job, first), list(zip(job.models, specs, choices, strict=True))
    largest = max(spec.nbytes + spec.graph_nbytes for model, spec, _ in models if model.columns.ranks)
    if shard is None or largest > MOST_BYTES:
        raise UnsupportedModel(
            "The model's signature does not say how many dimensions its outputs have",
            expected=f"a first file with rows, and a model of at most {MOST_BYTES >> 20} MiB: then one row is run to see it",
            found=f"a model of {largest:,} bytes" if shard else f"no rows in {first.uri}",
            cure="Export the model with shapes of known rank, or choose other outputs: --outputs=A,B (outputs=[…]).",
        )
    batch = _rows_of(job, shard)
    if job.preprocess is not None:
        batch = job.preprocess.applied(job.schema)(batch, first.uri, 0)
    loading = Loading(model_sharing="process", device="cpu")
    return [
        with_output_ranks(load_model(model.ref, model.signature, loading=loading), choice, batch, first.uri).ranks
        if model.columns.ranks
        else ()
        for model, _, choice in models
    ]


def _first_shard(job: Job, first: ObjectRef) -> Shard | None:
    """The first `_ROWS` rows of the file; None where it has no rows."""
    footer = read_footer(open_store(first.uri, job.storage), first)
    shard = next((shard for shard in shards_of_file(job, first, footer) if shard.rows), None)
    return None if shard is None else replace(shard, rows=min(_ROWS, shard.rows))


def _rows_of(job: Job, shard: Shard) -> pa.RecordBatch:
    store = open_store(shard.source.uri, job.storage)
    return next(read_batches(store, shard, job.schema.names, _ROWS, job.schema))
