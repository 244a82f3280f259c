"""A column that feeds an input of serialized tf.train.Example, though nobody has named it for that, must hold such messages."""

from __future__ import annotations

from dataclasses import replace

from headrace.transforms.columns.plan import ColumnPlan
from headrace.transforms.jobs.job import Job
from headrace.transforms.nested_arrow import read_schema
from headrace.transforms.parquet.reader import read_batches, read_footer
from headrace.transforms.predicting.predictor import input_columns
from headrace.transforms.steps.plan_shards import shards_of_file
from headrace.transforms.storage import ObjectRef, open_store

from ..flags.request import Request

_ROWS = 16


def check_examples(request: Request, job: Job, columns: ColumnPlan, first: ObjectRef) -> None:
    """Looks at the first rows of the first file. Raises `ColumnError`. What --preprocess makes of them is not looked at."""
    plans = [plan.inputs for plan in columns.models if any(one.spec.example is not None for one in plan.inputs.inputs)]
    if not plans or job.preprocess is not None:
        return
    named = {tensor for written in request.features for tensor in (written, written.partition(".")[2])}
    unasked = [plan for plan in plans if plan.unasked_examples(named)]
    if not unasked:
        return
    store = open_store(first.uri, job.storage)
    shards = [one for one in shards_of_file(job, first, read_footer(store, first)) if one.rows]
    if not shards:
        return
    few = replace(shards[0], rows=min(_ROWS, shards[0].rows))
    for batch in read_batches(store, few, input_columns(job), _ROWS, read_schema(job.input_schema)):
        for plan in unasked:
            plan.check_held_examples(named, batch, first.uri)
