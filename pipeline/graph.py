"""The whole job as one expression."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, TaggedOutput

from transforms import progress
from transforms.finalize import Finalize
from transforms.job import Job
from transforms.manifest import Finished, list_finished
from transforms.plan import PlanShards
from transforms.predict import PredictShards
from transforms.shard import ShardResult, WorkUnit


def build_graph(pipeline: beam.Pipeline, job: Job) -> beam.PCollection[dict[str, object]]:
    """Plan, drop what stands in the output already, predict the rest, account for all of it."""
    units = pipeline | "Plan" >> PlanShards(job)
    shards = units | "Shards" >> beam.FlatMap(iter)
    finished = pipeline | "Output" >> beam.Create([job.output]) | "ListOutput" >> beam.Map(list_finished, job.storage)
    split = units | "Resume" >> beam.ParDo(_DropDone(job), AsSingleton(finished)).with_outputs("done", main="todo")
    computed = split.todo | "Spread" >> beam.Reshuffle() | "Predict" >> PredictShards(job)
    results = (split.done, computed) | "Results" >> beam.Flatten()
    return (shards, results) | "Finalize" >> Finalize(job)


class _DropDone(beam.DoFn):
    """A name says which rows of which version under which job it holds: what stands there is not read again."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, unit: WorkUnit, finished: Finished) -> Iterator[WorkUnit | TaggedOutput]:
        left = []
        for shard in unit:
            there = finished.find(shard.output)
            if there is None:
                left.append(shard)
                continue
            progress.add(shards_done=1, rows_found=shard.rows)
            result = ShardResult(
                shard, there.size, there.version, there.crc32c, computed=False, predicted_rows=shard.rows
            )
            yield TaggedOutput("done", result)
        if left:
            yield tuple(left)
