"""The whole job as one expression."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from headrace.transforms import progress
from headrace.transforms.beam.finalize import Finalize
from headrace.transforms.beam.metrics import count_result
from headrace.transforms.beam.plan import GivenJob, PlanShards
from headrace.transforms.beam.predict import PredictShards
from headrace.transforms.jobs.job import Job
from headrace.transforms.output.dead_letters import list_dead_letters
from headrace.transforms.output.manifest import each_finished
from headrace.transforms.shards.shard import Shard, WorkUnit
from headrace.transforms.steps.plan_shards import MOST_FILES_A_UNIT
from headrace.transforms.steps.predict_shard import found_result
from headrace.transforms.storage import ObjectRef

# An output that was listed: its size, version and checksum. Shorter than its reference, since one is made of each.
_Listed: TypeAlias = tuple[int, str, int | None]
_HAS_DEAD_LETTERS = True

# Beam's local runner holds all elements of a job in this process. Of one shard that many bytes: `make bench-edges`.
LOCAL_SHARD_BYTES = 12_000


def build_graph(pipeline: beam.Pipeline, job: GivenJob) -> beam.PCollection[dict[str, object]]:
    """Plans, drops what the output already holds, predicts the rest, and accounts for all of it.

    Planned and listed names are joined: no worker holds the whole listing, and footers are read at the same time.
    """
    shards = pipeline | "Plan" >> PlanShards(job)
    by_name = (
        shards | "PlanByName" >> beam.Map(_by_name),
        pipeline | "Output" >> beam.Impulse() | "ListOutput" >> beam.ParDo(_ListOutput(), job),
    )
    joined = by_name | "PlanAndOutput" >> beam.Flatten() | "JoinByName" >> beam.GroupByKey()
    split = joined | "Resume" >> beam.ParDo(_DropDone(), job).with_outputs("done", main="todo")
    computed = split.todo | "Spread" >> beam.Reshuffle() | "Predict" >> PredictShards(job)
    return (shards, split.done, computed) | "Finalize" >> Finalize(job)


def _by_name(shard: Shard) -> tuple[str, Shard]:
    return shard.output, shard


class _ListOutput(beam.DoFn):
    """Lists the outputs first, and then the dead letters. A shard's dead letters are committed before its output: the second
    listing has those of every listed output, even if another run commits shards meanwhile.
    """

    def process(self, _: bytes, job: Job) -> Iterator[tuple[str, _Listed | bool]]:
        for name, there in each_finished(job.output, job.storage):
            yield name, (there.size, there.version, there.crc32c)
        for name, _letters in list_dead_letters(job):
            yield name, _HAS_DEAD_LETTERS


class _DropDone(beam.DoFn):
    """A name identifies the rows, their version and the job. So listed outputs are not read again, except for the footers of
    files whose shards have dead letters. The remaining shards are grouped into units of work.
    """

    def start_bundle(self) -> None:
        self._unit: list[Shard] = []

    def process(
        self, named: tuple[str, Iterable[Shard | _Listed | bool]], job: Job
    ) -> Iterator[WorkUnit | TaggedOutput]:
        name, known = named[0], list(named[1])
        for shard in (item for item in known if isinstance(item, Shard)):
            there = next((item for item in known if isinstance(item, tuple)), None)
            if there is None:
                yield from self._to_do(shard, job)
                continue
            ref = ObjectRef(f"{job.output}/{name}", *there)
            result = found_result(job, ref, shard, _HAS_DEAD_LETTERS in known)
            progress.add(shards_done=1, shards_found=1, rows_found=shard.rows, bad_rows_found=result.bad_rows)
            count_result(result)
            yield TaggedOutput("done", result)

    def finish_bundle(self) -> Iterator[Any]:
        if self._unit:
            yield GlobalWindows.windowed_value(tuple(self._unit))
        self._unit = []

    def _to_do(self, shard: Shard, job: Job) -> Iterator[WorkUnit]:
        nbytes = sum(held.nbytes for held in self._unit)
        if self._unit and (nbytes + shard.nbytes > job.shard_bytes or len(self._unit) == MOST_FILES_A_UNIT):
            yield tuple(self._unit)
            self._unit = []
        self._unit.append(shard)
