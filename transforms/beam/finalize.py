"""The graph's last step: joins plan and results, writes the manifest in parts, and then runs `finish`.

A shard's measurements for the report, tens of kilobytes where it has many columns, are added up where the shard was predicted:
no runner moves them. Results are joined and sorted without them.
"""

from __future__ import annotations

import hashlib
import heapq
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypeAlias

import apache_beam as beam
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from ..errors import OutputIncomplete, row_span
from ..jobs.job import Job
from ..report.account import Account, add_safely
from ..shards.shard import FailedShard, Shard, ShardResult
from ..steps.finish import ManifestPart, finish, held_bytes, write_part
from ..steps.finish_failed import fail_for_shards
from .plan import GivenJob

PART_BYTES = 64 << 20
_SAMPLE = 10_000
FAILED = "failed"
_ACCOUNTS = "accounts"
# The number of accounts for the last step.
_KEYS = 16

# Bytes in all, and some of the outputs: the digest of each name, the name, and its bytes.
_Drawn: TypeAlias = tuple[int, list[tuple[bytes, str, int]]]

# What remains of a planned shard: its input, and its rows from first (inclusive) to end (exclusive).
_Planned: TypeAlias = tuple[str, int, int]


def _planned_by_name(shard: Shard) -> tuple[str, _Planned]:
    return shard.output, (shard.where, shard.first_row, shard.end_row)


def _result_by_name(result: ShardResult | FailedShard) -> tuple[str, ShardResult | FailedShard]:
    return result.shard.output, result


class _Account(beam.DoFn):
    """Pairs plan and results of one output's name: each planned shard has its result, or the error that it failed with."""

    def process(
        self, element: tuple[str, Iterable[_Planned | ShardResult | FailedShard]]
    ) -> Iterator[ShardResult | TaggedOutput]:
        name, both = element[0], list(element[1])
        results = [item for item in both if isinstance(item, ShardResult)]
        if not results:
            if failed := [item for item in both if isinstance(item, FailedShard)]:
                yield TaggedOutput(FAILED, failed[0])
                return
            where, first_row, end_row = next(item for item in both if isinstance(item, tuple))
            raise OutputIncomplete(
                f"No worker accounts for {name}",
                expected=f"{row_span(first_row, end_row)} of {where}",
                cure="Run the same command again; it computes what is missing",
            )
        yield results[0]


class _AddUp(beam.DoFn):
    """Results without their measurements, and one account of a bundle's. Its key is one of a few: several workers add up
    accounts.
    """

    def start_bundle(self) -> None:
        self._account, self._key = Account(), 0

    def process(self, result: ShardResult | FailedShard) -> Iterator[ShardResult | FailedShard]:
        if isinstance(result, FailedShard):
            yield result
            return
        add_safely(self._account, result)
        self._key = zlib.crc32(result.shard.output.encode(errors="surrogateescape")) % _KEYS
        yield replace(result, measurements=None)

    def finish_bundle(self) -> Iterator[Any]:
        if self._account.shards:
            self._account.settle()
            yield TaggedOutput(_ACCOUNTS, GlobalWindows.windowed_value((self._key, self._account)))
        self._account = Account()


class Accounts(beam.CombineFn):
    """Merges the accounts of bundles into one, which is the same in any order."""

    def create_accumulator(self) -> Account:
        return Account()

    def add_input(self, account: Account, more: Account) -> Account:
        account.merge(more)
        return account

    def merge_accumulators(self, accounts: Iterable[Account]) -> Account:
        total = Account()
        for account in accounts:
            total.merge(account)
        return total

    def compact(self, account: Account) -> Account:
        account.settle()
        return account

    extract_output = compact


class PartBegins(beam.CombineFn):
    """Takes names of outputs, each with a number of bytes, and gives the names that begin the second and later parts, for parts
    of about as many bytes. It draws a sample by the names' digests, which is therefore always the same.
    """

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes = part_bytes

    def create_accumulator(self) -> _Drawn:
        return 0, []

    def add_input(self, accumulator: _Drawn, named: tuple[str, int]) -> _Drawn:
        (name, nbytes), (total, drawn) = named, accumulator
        drawn.append((hashlib.sha256(name.encode(errors="surrogateescape")).digest(), name, nbytes))
        total += nbytes
        return (total, drawn) if len(drawn) < 2 * _SAMPLE else self.compact((total, drawn))

    def merge_accumulators(self, accumulators: Iterable[_Drawn]) -> _Drawn:
        totals, samples = zip(*accumulators, strict=True)
        return self.compact((sum(totals), list(chain.from_iterable(samples))))

    def compact(self, accumulator: _Drawn) -> _Drawn:
        total, drawn = accumulator
        return total, heapq.nsmallest(_SAMPLE, drawn)

    def extract_output(self, accumulator: _Drawn) -> list[str]:
        total, drawn = self.compact(accumulator)
        parts, sampled = -(-total // self._part_bytes), sum(nbytes for _, _, nbytes in drawn)
        begins, until, part = list[str](), 0, 0
        for name, nbytes in sorted((name, nbytes) for _, name, nbytes in drawn):
            begun, until = part, until + nbytes
            part = (until * parts - 1) // sampled
            if part > begun and until > nbytes:
                begins.append(name)
        return begins


def _to_part(result: ShardResult, begins: list[str]) -> tuple[int, ShardResult]:
    return bisect_right(begins, result.shard.output), result


class _WritePart(beam.DoFn):
    def process(self, part: tuple[int, Iterable[ShardResult]], job: Job) -> Iterator[ManifestPart]:
        yield write_part(job, *part)


class _Finish(beam.DoFn):
    def process(
        self,
        _: bytes,
        parts: list[ManifestPart],
        failed: list[FailedShard],
        accounts: list[tuple[int, Account]],
        job: Job,
    ) -> Iterator[dict[str, Any]]:
        added_up = [account for _, account in accounts]
        if failed:
            fail_for_shards(job, parts, failed, added_up)
        yield finish(job, parts, added_up)


class Finalize(beam.PTransform):
    """(PCollection[Shard], and any number of PCollection[ShardResult | FailedShard]) to the one element that `_SUCCESS` holds.
    No worker holds more of the results than about `part_bytes`, and their measurements in accounts of a bounded size. If a
    shard has failed, the job fails and writes no `_SUCCESS`.
    """

    def __init__(self, job: GivenJob, part_bytes: int = PART_BYTES) -> None:
        super().__init__()
        self._job, self._part_bytes = job, part_bytes

    def expand(self, joined: tuple[beam.PCollection[Any], ...]) -> Any:
        planned, *outcomes = joined
        results, accounts = self._added_up(outcomes)
        # Beam's own joins, combinations with a default, and Create are several steps each, and every step costs a small job
        # some ten milliseconds.
        by_name = (
            planned | "PlannedByName" >> beam.Map(_planned_by_name),
            *(part | f"ResultsByName{i}" >> beam.Map(_result_by_name) for i, part in enumerate(results)),
        )
        joined_by_name = by_name | "Both" >> beam.Flatten() | "Join" >> beam.GroupByKey()
        account = joined_by_name | "Account" >> beam.ParDo(_Account()).with_outputs(FAILED, main="accounted")
        accounted, failed = account.accounted, account[FAILED]
        sizes = accounted | "Sizes" >> beam.Map(lambda result: (result.shard.output, held_bytes(result)))
        begins = sizes | "Begins" >> beam.CombineGlobally(PartBegins(self._part_bytes)).without_defaults()
        parts = (
            accounted
            | "ToPart" >> beam.Map(_to_part, AsSingleton(begins, default_value=[]))
            | "Parts" >> beam.GroupByKey()
            | "WritePart" >> beam.ParDo(_WritePart(), self._job)
        )
        once = planned.pipeline | "Once" >> beam.Impulse()
        return once | "Finish" >> beam.ParDo(_Finish(), AsList(parts), AsList(failed), accounts, self._job)

    def _added_up(self, outcomes: Sequence[beam.PCollection[ShardResult | FailedShard]]) -> tuple[Sequence[Any], Any]:
        """Adds up each collection where it is made, before any step at which a runner may move elements."""
        if isinstance(self._job, Job) and self._job.report is None:
            return outcomes, []
        add_up = beam.ParDo(_AddUp()).with_outputs(_ACCOUNTS, main="results")
        split = [part | f"AddUp{i}" >> add_up for i, part in enumerate(outcomes)]
        bundles = [part[_ACCOUNTS] for part in split] | "Bundles" >> beam.Flatten()
        return [part.results for part in split], AsList(bundles | "Accounts" >> beam.CombinePerKey(Accounts()))
