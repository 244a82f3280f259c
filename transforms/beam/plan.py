"""The graph's first steps: the input listed once, and its footers read in parallel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from .. import progress
from ..jobs.input_files import join_small, together
from ..jobs.job import Job
from ..shards.shard import Shard
from ..steps.plan_shards import MOST_FILES_A_UNIT, input_files, plan_shards
from ..storage import ObjectRef
from .metrics import count

# A job as a step is given it: known when the graph is built, or found out by an earlier step, as in a template.
GivenJob: TypeAlias = Job | AsSingleton


class _ListInputs(beam.DoFn):
    """One element for each few files; with a limit one element for all, since the first rows need the order."""

    def process(self, _: bytes, job: Job) -> Iterator[tuple[ObjectRef, ...]]:
        files = input_files(job)
        if job.limit is not None:
            yield tuple(files)
        elif job.joined_bytes is not None:
            yield from together(files, job.joined_bytes)
        else:
            yield from join_small(files, job.shard_bytes, MOST_FILES_A_UNIT)


class _ReadFooters(beam.DoFn):
    def process(self, files: tuple[ObjectRef, ...], job: Job) -> Iterator[Shard]:
        for shard in plan_shards(job, files):
            progress.add(shards_planned=1, rows_planned=shard.rows)
            count(shards_planned=1, rows_planned=shard.rows)
            yield shard


class PlanShards(beam.PTransform):
    """PBegin to PCollection[Shard]: lists once, then reads the footers in parallel."""

    def __init__(self, job: GivenJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, begin: Any) -> beam.PCollection[Shard]:
        return (
            begin
            | "Start" >> beam.Impulse()
            | "List" >> beam.ParDo(_ListInputs(), self._job)
            | "Spread" >> beam.Reshuffle()
            | "Footers" >> beam.ParDo(_ReadFooters(), self._job)
        )
