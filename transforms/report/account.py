"""The outcome of a run's shards in a small, mergeable form: accounts merge, in any order, to the same result, equal to the bit.
An account's size does not grow with the number of shards.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..shards.column_statistics import Column, merge
from ..shards.measuring import Process, ShardMeasurements
from ..shards.number_bins import Numbers
from ..shards.shard import ShardResult

STAGES = ("load", "read", "predict", "write")
SLOWEST = 40
MOST_FOOTERS = 1000
MOST_DEAD_LETTER_FILES = 50
_SPANS = 400
_MOST_PROCESSES = 1000
NANOSECONDS = 10**9

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class TimeLine:
    """Nanoseconds of threads by stage, in spans of `width` seconds (a power of two) by their number since 1970."""

    width: float = 2.0**-6
    nanoseconds: dict[int, list[int]] = field(default_factory=dict)

    def add(self, began: float, ended: float, seconds: Sequence[float]) -> None:
        """`seconds` of each of `STAGES` between two times, spread evenly."""
        lasted = max(ended - began, 1e-6)
        while lasted / self.width > _SPANS:
            self._widen()
        total = [round(value * NANOSECONDS) for value in seconds]

        def until(span: int) -> list[int]:
            """The time spent before the span begins: differences of it add up, however wide spans are."""
            share = min(1.0, max(0.0, (span * self.width - began) / lasted))
            return [round(value * share) for value in total]

        first, last = math.floor(began / self.width), math.floor((began + lasted) / self.width)
        before = [0] * len(STAGES)
        for span in range(first, last + 1):
            after = total if span == last else until(span + 1)
            self._add(span, [more - less for more, less in zip(after, before, strict=True)])
            before = after
        self._bound()

    def _add(self, span: int, stages: Sequence[int]) -> None:
        held = self.nanoseconds.setdefault(span, [0] * len(STAGES))
        for i, value in enumerate(stages):
            held[i] += value

    def merge(self, other: TimeLine) -> None:
        while self.width < other.width:
            self._widen()
        scale = round(self.width / other.width)
        for span, stages in other.nanoseconds.items():
            self._add(span // scale, stages)
        self._bound()

    def _bound(self) -> None:
        while len(self.nanoseconds) > 1 and max(self.nanoseconds) - min(self.nanoseconds) >= _SPANS:
            self._widen()

    def _widen(self) -> None:
        self.width *= 2
        narrow, self.nanoseconds = self.nanoseconds, {}
        for span, stages in narrow.items():
            self._add(span // 2, stages)


@dataclass(frozen=True, slots=True, order=True)
class Slow:
    """A shard that this run computed. `lasted` is from its begin to its end, `seconds` of read, predict and write."""

    lasted: float
    output: str
    began: float
    rows: int
    seconds: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Bad:
    """A row in dead letters, as they record it."""

    where: str
    row: int
    stage: str
    error: str


@dataclass(frozen=True, slots=True, order=True)
class Unread:
    """A prediction file that was found done, in an order that is as good as chance."""

    digest: bytes
    output: str
    nbytes: int
    version: str


@dataclass(slots=True)
class Account:
    """Shards and rows, those that this run computed, and the time that these took.

    `columns` cover `described` shards; `footers` of these were found done, and their own files have the statistics. `unlike`
    are names of columns with more than one type. `unread` and `dead_letters` (output and URI) are files to read, a bounded
    number. `reasons` count rows of `bad_rows_read` by stage and message; `began` and `ended` are since 1970.
    """

    shards: int = 0
    rows: int = 0
    bad_rows: int = 0
    filtered_rows: int = 0
    output_bytes: int = 0
    computed_shards: int = 0
    computed_rows: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    batches: int = 0
    batches_halved: int = 0
    began: float = math.inf
    ended: float = -math.inf
    nanoseconds: list[int] = field(default_factory=lambda: [0, 0, 0])
    batch_seconds: Numbers = field(default_factory=Numbers)
    devices: Counter[str] = field(default_factory=Counter)
    processes: dict[str, tuple[Process, int]] = field(default_factory=dict)
    time_line: TimeLine = field(default_factory=TimeLine)
    slowest: list[Slow] = field(default_factory=list)
    described: int = 0
    footers: int = 0
    columns: list[Column] = field(default_factory=list)
    unlike: set[str] = field(default_factory=set)
    unread: list[Unread] = field(default_factory=list)
    dead_letters: list[tuple[str, str]] = field(default_factory=list)
    bad_rows_read: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Bad] = field(default_factory=list)

    def merge(self, other: Account) -> None:
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.began, self.ended = min(self.began, other.began), max(self.ended, other.ended)
        self.nanoseconds = [mine + more for mine, more in zip(self.nanoseconds, other.nanoseconds, strict=True)]
        self.batch_seconds.merge(other.batch_seconds)
        for process, retries in other.processes.values():
            self._note_process(process, retries)
        self.time_line.merge(other.time_line)
        self.unlike |= other.unlike | merge(self.columns, other.columns)
        self._bound()

    def settle(self) -> None:
        """Sorts and cuts everything: the result does not depend on the order of additions."""
        self._bound(1)
        self.columns = [column for column in self.columns if column.name not in self.unlike]
        self.devices = Counter(dict(sorted(self.devices.items())))
        self.processes = dict(sorted(self.processes.items()))
        self.batch_seconds.settle()
        for column in self.columns:
            for numbers in filter(None, (column.numbers, column.largest)):
                numbers.settle()
            column.values = None if column.values is None else dict(sorted(column.values.items()))

    def _bound(self, times: int = 2) -> None:
        """Bounded lists may grow to some `times` of their bounds before they are cut. An item that is cut is never
        among the first of a longer list: it does not matter when lists are cut.
        """
        if len(self.slowest) > times * SLOWEST or times == 1:
            self.slowest = heapq.nlargest(SLOWEST, self.slowest)
        if len(self.unread) > times * MOST_FOOTERS or times == 1:
            self.unread = heapq.nsmallest(MOST_FOOTERS, self.unread)
        if len(self.dead_letters) > times * MOST_DEAD_LETTER_FILES or times == 1:
            self.dead_letters = heapq.nsmallest(MOST_DEAD_LETTER_FILES, self.dead_letters)
        if len(self.processes) > times * _MOST_PROCESSES:
            self.processes = {name: self.processes[name] for name in heapq.nsmallest(_MOST_PROCESSES, self.processes)}

    @property
    def seconds(self) -> list[float]:
        """Seconds for read, predict and write."""
        return [value / NANOSECONDS for value in self.nanoseconds]

    @property
    def retries(self) -> int:
        """Requests to stores that were tried again where shards were predicted, until the last of them ended."""
        return sum(max(0, last - process.retries_before) for process, last in self.processes.values())

    def loads(self) -> Iterator[Process]:
        yield from (process for process, _ in self.processes.values())

    def add(self, result: ShardResult) -> None:
        self.shards += 1
        self.rows += result.shard.rows
        self.bad_rows += result.bad_rows
        self.filtered_rows += result.filtered_rows
        self.output_bytes += result.output_bytes
        if result.dead_letters is not None:
            self.dead_letters.append((result.shard.output, result.dead_letters))
        measured = result.measurements
        if measured is not None:
            self.describe(measured.columns, found_done=not result.computed)
        elif not result.computed:
            name = result.shard.output
            digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]
            self.unread.append(Unread(digest, name, result.output_bytes, result.output_version))
        if result.computed and measured is not None:
            self._add_computed(result, measured)
        self._bound()

    def describe(self, columns: Sequence[Column] | None, *, found_done: bool) -> None:
        """Adds what a shard's predictions are; nothing where that is not known."""
        if columns is not None:
            self.described += 1
            self.footers += found_done
            self.unlike |= merge(self.columns, columns)

    def _add_computed(self, result: ShardResult, measured: ShardMeasurements) -> None:
        self.computed_shards += 1
        self.computed_rows += result.shard.rows
        self.read_bytes += result.read_bytes
        self.written_bytes += result.output_bytes
        self.batches += result.batches
        self.batches_halved += result.batches_halved
        self.devices[result.device or "cpu"] += 1
        read, predict, write = (result.seconds[stage] for stage in STAGES[1:])
        spent = (read, predict, write)
        self.nanoseconds = [
            mine + round(more * NANOSECONDS) for mine, more in zip(self.nanoseconds, spent, strict=True)
        ]
        self.batch_seconds.merge(measured.batch_seconds)
        self.began, self.ended = min(self.began, measured.began), max(self.ended, measured.ended)
        self.time_line.add(measured.began, measured.ended, (0.0, read, predict, write))
        if measured.process is not None:
            self._note_process(measured.process, measured.retries)
        lasted, shard = measured.ended - measured.began, result.shard
        self.slowest.append(Slow(lasted, shard.output, measured.began, shard.rows, spent))

    def _note_process(self, process: Process, retries: int) -> None:
        """Several threads of it may have waited for one load."""
        known, last = self.processes.get(process.name, (process, 0))
        longest = max(known.load_seconds, process.load_seconds)
        before = min(known.retries_before, process.retries_before)
        began = min(known.began, process.began)
        noted = replace(known, began=began, load_seconds=longest, retries_before=before)
        self.processes[process.name] = noted, max(last, retries)


# Numbers, lists and counts that merge by adding them.
_SUMS = (
    *("shards", "rows", "bad_rows", "output_bytes", "computed_shards", "computed_rows", "read_bytes", "written_bytes"),
    *("batches", "batches_halved", "filtered_rows", "described", "footers", "bad_rows_read"),
    *("devices", "slowest", "unread", "dead_letters"),
)


def add_safely(account: Account, result: ShardResult) -> None:
    """A fault of ours in counting must not fail a job whose predictions are sound: the log says what the report lacks."""
    try:
        account.add(result)
    except Exception:
        _log.warning("The report lacks some of %s", result.shard.output, exc_info=True)


def merged(accounts: Iterable[Account]) -> Account:
    """Merges all accounts of a run, with the time for loading models."""
    total = Account()
    for account in accounts:
        total.merge(account)
    total.settle()
    for process in total.loads():
        ended = process.began + process.load_seconds
        total.time_line.add(process.began, ended, (process.load_seconds, 0.0, 0.0, 0.0))
        total.began = min(total.began, process.began)
    return total
