"""The number of dimensions of outputs whose rank the model's signature lacks: one row is run before the job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headrace.transforms.columns.plan import ColumnChoice
from headrace.transforms.errors import UnsupportedModel
from headrace.transforms.jobs.job import Job
from headrace.transforms.jobs.user_functions import AppliedFunction
from headrace.transforms.models.load import load_model
from headrace.transforms.models.loading import Loading
from headrace.transforms.models.spec import ModelSpec
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.predicting.predictor import input_columns, with_output_ranks
from headrace.transforms.steps.plan_shards import shards_of_file
from headrace.transforms.storage import ObjectRef, open_store

_ROWS = 16
MOST_BYTES = 256 << 20
"""Of a model that the launcher loads for this."""

Ranks = tuple[tuple[str, int], ...]


def found_ranks(job: Job, specs: Sequence[ModelSpec], choices: Sequence[ColumnChoice], first: ObjectRef) -> list[Ranks]:
    """The ranks for each model. `job` was planned with any rank for outputs of unknown rank, and `choices` with none; `first`
    is its first file. Raises `UnsupportedModel` where no row can be run, or the model is too large for that.
    """
    store = open_store(first.uri, job.storage)
    shards = [one for one in shards_of_file(job, first, read_footer(store, first)) if one.rows]
    models = list(zip(job.models, specs, choices, strict=True))
    largest = max(spec.nbytes + spec.graph_nbytes for model, spec, _ in models if model.columns.ranks)
    if not shards or largest > MOST_BYTES:
        raise UnsupportedModel(
            "The model's signature does not say how many dimensions its outputs have",
            expected=f"a first file with rows, and a model of at most {MOST_BYTES >> 20} MiB: then one row is run to see it",
            found=f"a model of {largest:,} bytes" if shards else f"no rows in {first.uri}",
            cure="Export the model with shapes of known rank, or choose other outputs: --outputs=A,B (outputs=[…]).",
        )
    few = replace(shards[0], rows=min(_ROWS, shards[0].rows))
    schema = job.schema
    batch = next(iter(read_batches(store, few, input_columns(job), _ROWS, schema)))
    if job.preprocess is not None:
        batch = AppliedFunction(job.preprocess.load(), job.preprocess.name, schema)(batch, first.uri, 0)
    loading = Loading(model_sharing="process", device="cpu")
    return [
        with_output_ranks(load_model(model.ref, model.signature, loading=loading), choice, batch, first.uri).ranks
        if model.columns.ranks
        else ()
        for model, _, choice in models
    ]
