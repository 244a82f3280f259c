"""The whole job as one expression."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, TaggedOutput

from headrace.transforms import progress
from headrace.transforms.beam.finalize import Finalize
from headrace.transforms.beam.metrics import count_result
from headrace.transforms.beam.plan import GivenJob, PlanShards
from headrace.transforms.beam.predict import PredictShards
from headrace.transforms.jobs.job import Job
from headrace.transforms.output.dead_letters import ListedDeadLetters, list_dead_letters
from headrace.transforms.output.manifest import Finished, list_finished
from headrace.transforms.shards.shard import WorkUnit
from headrace.transforms.steps.predict_shard import found_result


def build_graph(pipeline: beam.Pipeline, job: GivenJob) -> beam.PCollection[dict[str, object]]:
    """Plan, drop what stands in the output already, predict the rest, account for all of it."""
    units = pipeline | "Plan" >> PlanShards(job)
    shards = units | "Shards" >> beam.FlatMap(iter)
    finished = pipeline | "Output" >> beam.Impulse() | "ListOutput" >> beam.Map(_finished, job)
    # After the outputs: a shard's dead letters are committed before its output is, so that those of every output that was
    # listed are found, though another run commits shards meanwhile.
    dead = finished | "ListDeadLetters" >> beam.Map(_dead_letters, job)
    drop = beam.ParDo(_DropDone(), job, AsSingleton(finished), AsSingleton(dead))
    split = units | "Resume" >> drop.with_outputs("done", main="todo")
    computed = split.todo | "Spread" >> beam.Reshuffle() | "Predict" >> PredictShards(job)
    results = (split.done, computed) | "Results" >> beam.Flatten()
    return (shards, results) | "Finalize" >> Finalize(job)


def _finished(_: bytes, job: Job) -> Finished:
    return list_finished(job.output, job.storage)


def _dead_letters(_: Finished, job: Job) -> ListedDeadLetters:
    return list_dead_letters(job)


class _DropDone(beam.DoFn):
    """A name says which rows of which version under which job it holds: what stands there is not read again, but for
    the footers of files whose shards have dead letters.
    """

    def process(
        self, unit: WorkUnit, job: Job, finished: Finished, dead_letters: ListedDeadLetters
    ) -> Iterator[WorkUnit | TaggedOutput]:
        left = []
        for shard in unit:
            there = finished.find(shard.output)
            if there is None:
                left.append(shard)
                continue
            result = found_result(job, there, shard, dead_letters)
            progress.add(shards_done=1, shards_found=1, rows_found=shard.rows, bad_rows_found=result.bad_rows)
            count_result(result)
            yield TaggedOutput("done", result)
        if left:
            yield tuple(left)
