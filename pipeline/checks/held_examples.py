"""A column that feeds an input of serialized tf.train.Example must hold such messages, even if no flag names it for that."""

from __future__ import annotations

from dataclasses import replace

from headrace.transforms.columns.plan import ColumnPlan
from headrace.transforms.jobs.job import Job
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.predicting.predictor import input_columns
from headrace.transforms.steps.plan_shards import shards_of_file
from headrace.transforms.storage import ObjectRef, open_store

from ..flags.request import Request

_ROWS = 16


def check_examples(request: Request, job: Job, columns: ColumnPlan, first: ObjectRef) -> None:
    """Checks the first rows of the first file. Raises `ColumnError`. Does not check what --preprocess makes of them."""
    plans = [
        plan.inputs
        for plan in columns.models
        if any(model_input.spec.example is not None for model_input in plan.inputs.inputs)
    ]
    if not plans or job.preprocess is not None:
        return
    named = {tensor for written in request.features for tensor in (written, written.partition(".")[2])}
    unasked = [plan for plan in plans if plan.unasked_examples(named)]
    if not unasked:
        return
    store = open_store(first.uri, job.storage)
    shards = [shard for shard in shards_of_file(job, first, read_footer(store, first)) if shard.rows]
    if not shards:
        return
    few = replace(shards[0], rows=min(_ROWS, shards[0].rows))
    for batch in read_batches(store, few, input_columns(job), _ROWS, job.schema):
        for plan in unasked:
            plan.check_held_examples(named, batch, first.uri)
