"""The graph's last step: plan and results joined, the manifest written in parts, and then what `finish` does."""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput

from ..errors import OutputIncomplete, row_span
from ..jobs.job import Job
from ..shards.shard import FailedShard, Shard, ShardResult
from ..steps.finish import ManifestPart, finish, write_part
from ..steps.finish_failed import fail_for_shards
from .plan import GivenJob

_SAMPLE = 10_000


FAILED = "failed"


class _Account(beam.DoFn):
    """Of plan and results of one output's name: each planned shard has its result, or what it failed on."""

    def process(
        self, element: tuple[str, Iterable[Shard | ShardResult | FailedShard]]
    ) -> Iterator[ShardResult | TaggedOutput]:
        name, both = element[0], list(element[1])
        planned = [one for one in both if isinstance(one, Shard)]
        results = [one for one in both if isinstance(one, ShardResult)]
        if not results:
            if failed := [one for one in both if isinstance(one, FailedShard)]:
                yield TaggedOutput(FAILED, failed[0])
                return
            raise OutputIncomplete(
                f"No worker accounts for {name}",
                expected=f"{row_span(planned[0].first_row, planned[0].end_row)} of {planned[0].where}",
                cure="Run the same command again; it computes what is missing",
            )
        yield results[0]


class PartBegins(beam.CombineFn):
    """Names of outputs to those that begin the second and later parts, so that each part has about as many outputs: by a
    sample, which is always the same since the names' digests draw it.
    """

    def __init__(self, part_rows: int) -> None:
        self._part_rows = part_rows

    def create_accumulator(self) -> tuple[int, list[tuple[bytes, str]]]:
        return 0, []

    def add_input(self, accumulator: tuple[int, list[tuple[bytes, str]]], name: str) -> Any:
        count, drawn = accumulator
        drawn.append((hashlib.sha256(name.encode()).digest(), name))
        return count + 1, drawn if len(drawn) < 2 * _SAMPLE else self.compact((count, drawn))[1]

    def merge_accumulators(self, accumulators: Iterable[tuple[int, list[tuple[bytes, str]]]]) -> Any:
        counts, samples = zip(*accumulators, strict=True)
        return self.compact((sum(counts), list(chain.from_iterable(samples))))

    def compact(self, accumulator: tuple[int, list[tuple[bytes, str]]]) -> Any:
        count, drawn = accumulator
        return count, heapq.nsmallest(_SAMPLE, drawn)

    def extract_output(self, accumulator: tuple[int, list[tuple[bytes, str]]]) -> list[str]:
        count, drawn = self.compact(accumulator)
        names = sorted(name for _, name in drawn)
        parts = -(-count // self._part_rows)
        return [names[i * len(names) // parts] for i in range(1, parts)]


def _to_part(result: ShardResult, begins: list[str]) -> tuple[int, ShardResult]:
    return bisect_right(begins, result.shard.output), result


class _WritePart(beam.DoFn):
    def process(self, part: tuple[int, Iterable[ShardResult]], job: Job) -> Iterator[ManifestPart]:
        yield write_part(job, *part)


class _Finish(beam.DoFn):
    def process(
        self, _: bytes, parts: list[ManifestPart], failed: list[FailedShard], job: Job
    ) -> Iterator[dict[str, Any]]:
        if failed:
            fail_for_shards(job, parts, failed)
        yield finish(job, parts)


class Finalize(beam.PTransform):
    """(PCollection[Shard], PCollection[ShardResult | FailedShard]) to the one element that `_SUCCESS` holds. No worker holds
    more of the manifest than one part. The job fails where a shard has failed, and has no `_SUCCESS` then.
    """

    def __init__(self, job: GivenJob, part_rows: int = 50_000) -> None:
        super().__init__()
        self._job, self._part_rows = job, part_rows

    def expand(self, joined: tuple[beam.PCollection[Shard], beam.PCollection[ShardResult | FailedShard]]) -> Any:
        planned, results = joined
        # Beam's own joins, combinations with a default, and Create are several steps each, of which every one costs a small
        # job some ten milliseconds.
        by_name = (
            planned | "PlannedByName" >> beam.Map(lambda shard: (shard.output, shard)),
            results | "ResultsByName" >> beam.Map(lambda result: (result.shard.output, result)),
        )
        joined_by_name = by_name | "Both" >> beam.Flatten() | "Join" >> beam.GroupByKey()
        account = joined_by_name | "Account" >> beam.ParDo(_Account()).with_outputs(FAILED, main="accounted")
        accounted, failed = account.accounted, account[FAILED]
        names = accounted | "Names" >> beam.Map(lambda result: result.shard.output)
        begins = names | "Begins" >> beam.CombineGlobally(PartBegins(self._part_rows)).without_defaults()
        parts = (
            accounted
            | "ToPart" >> beam.Map(_to_part, AsSingleton(begins, default_value=[]))
            | "Parts" >> beam.GroupByKey()
            | "WritePart" >> beam.ParDo(_WritePart(), self._job)
        )
        once = planned.pipeline | "Once" >> beam.Impulse()
        return once | "Finish" >> beam.ParDo(_Finish(), AsList(parts), AsList(failed), self._job)
