"""The whole job as one expression."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, TaggedOutput

from transforms import progress
from transforms.finalize import Finalize
from transforms.job import Job
from transforms.plan import Outputs, PlanShards, list_outputs
from transforms.predict import PredictShards
from transforms.shard import Shard, ShardResult


def build_graph(pipeline: beam.Pipeline, job: Job) -> beam.PCollection[dict[str, object]]:
    """Plan, drop what stands in the output already, predict the rest, account for all of it."""
    shards = pipeline | "Plan" >> PlanShards(job)
    outputs = pipeline | "Output" >> beam.Create([job.output]) | "ListOutput" >> beam.Map(list_outputs, job.storage)
    split = shards | "Resume" >> beam.ParDo(_DropDone(), AsSingleton(outputs)).with_outputs("done", main="todo")
    computed = split.todo | "Spread" >> beam.Reshuffle() | "Predict" >> PredictShards(job)
    results = (split.done, computed) | "Results" >> beam.Flatten()
    return (shards, results) | "Finalize" >> Finalize(job)


class _DropDone(beam.DoFn):
    """A name says which rows of which version under which job it holds: what stands there is not read again."""

    def process(self, shard: Shard, outputs: Outputs) -> Iterator[Shard | TaggedOutput]:
        there = outputs.objects.get(shard.output)
        if there is None:
            yield shard
            return
        progress.add(shards_done=1, rows_found=shard.rows)
        yield TaggedOutput("done", ShardResult(shard, there.size, there.version, there.crc32c, computed=False))
