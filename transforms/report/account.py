"""What became of a run's shards, in little: accounts of any of them merge. Its size does not grow with their number."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import NotParquet, ObjectChanged, ObjectNotFound
from ..jobs.job import Job
from ..output.dead_letters import COLUMNS as DEAD_LETTER_COLUMNS
from ..parquet.reader import read_footer
from ..shards.column_statistics import Column, decode, merge
from ..shards.measuring import STATISTICS, Process, ShardMeasurements
from ..shards.number_bins import Numbers
from ..shards.shard import ShardResult
from ..storage import ObjectRef, Store, open_store
from ..storage.store import public_uri

STAGES = ("load", "read", "predict", "write")
SLOWEST = 40
MOST_FOOTERS = 1000
MOST_DEAD_LETTER_FILES = 50
EXAMPLES = 5
_SPANS = 400
_MOST_PROCESSES = 1000
_MOST_REASONS = 50
_ROWS_OF_A_FILE = 10_000
_FOOTERS_AT_ONCE = 8
_REASON_LETTERS = 200
_URL = re.compile(r"https?://[^\s'\"]+")


@dataclass(slots=True)
class TimeLine:
    """Seconds of threads by stage, in spans of `width` seconds (a power of two) by their number since 1970."""

    width: float = 2.0**-6
    spans: dict[int, list[float]] = field(default_factory=dict)

    def add(self, began: float, ended: float, seconds: Sequence[float]) -> None:
        """`seconds` of each of `STAGES` between two times, spread evenly."""
        lasted = max(ended - began, 1e-6)
        while lasted / self.width > _SPANS:
            self._widen()
        first, last = math.floor(began / self.width), math.floor((began + lasted) / self.width)
        for span in range(first, last + 1):
            inside = min(began + lasted, (span + 1) * self.width) - max(began, span * self.width)
            held = self.spans.setdefault(span, [0.0] * len(STAGES))
            for i, one in enumerate(seconds):
                held[i] += one * inside / lasted
        self._bound()

    def merge(self, other: TimeLine) -> None:
        while self.width < other.width:
            self._widen()
        scale = round(self.width / other.width)
        for span, seconds in other.spans.items():
            held = self.spans.setdefault(span // scale, [0.0] * len(STAGES))
            for i, one in enumerate(seconds):
                held[i] += one
        self._bound()

    def _bound(self) -> None:
        while len(self.spans) > 1 and max(self.spans) - min(self.spans) >= _SPANS:
            self._widen()

    def _widen(self) -> None:
        self.width *= 2
        wider: dict[int, list[float]] = {}
        for span, seconds in self.spans.items():
            held = wider.setdefault(span // 2, [0.0] * len(STAGES))
            for i, one in enumerate(seconds):
                held[i] += one
        self.spans = wider


@dataclass(frozen=True, slots=True, order=True)
class Slow:
    """A shard that this run computed. `lasted` is from its begin to its end, `seconds` of read, predict and write."""

    lasted: float
    output: str
    began: float
    rows: int
    process: str
    seconds: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Bad:
    """A row in dead letters, as they tell of it."""

    where: str
    row: int
    stage: str
    error: str


@dataclass(slots=True)
class Account:
    """Shards and rows, those of them that this run computed, and what these took.

    `columns` are of `described` shards, of which `footers` were found done, and told by their own files.
    `reasons` count rows of `bad_looked_at` by stage and what is said of them; `began` and `ended` are since 1970.
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
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    batch_seconds: Numbers = field(default_factory=Numbers)
    devices: Counter[str] = field(default_factory=Counter)
    processes: dict[str, tuple[Process, int]] = field(default_factory=dict)
    time_line: TimeLine = field(default_factory=TimeLine)
    slowest: list[Slow] = field(default_factory=list)
    described: int = 0
    footers: int = 0
    columns: list[Column] = field(default_factory=list)
    bad_looked_at: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Bad] = field(default_factory=list)

    def merge(self, other: Account) -> None:
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.began, self.ended = min(self.began, other.began), max(self.ended, other.ended)
        self.seconds = [mine + more for mine, more in zip(self.seconds, other.seconds, strict=True)]
        self.batch_seconds.merge(other.batch_seconds)
        self.devices += other.devices
        for process, retries in other.processes.values():
            self._note_process(process, retries)
        self.time_line.merge(other.time_line)
        self.slowest = heapq.nlargest(SLOWEST, [*self.slowest, *other.slowest])
        merge(self.columns, other.columns)
        self.reasons = Counter(dict((self.reasons + other.reasons).most_common(_MOST_REASONS)))
        self.examples = [*self.examples, *other.examples][:EXAMPLES]

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
        told = result.told
        if (columns := _known_columns(told)) is not None:
            self.described += 1
            self.footers += not result.computed
            merge(self.columns, columns)
        if not result.computed or told is None:
            return
        self.computed_shards += 1
        self.computed_rows += result.shard.rows
        self.read_bytes += result.read_bytes
        self.written_bytes += result.output_bytes
        self.batches += result.batches
        self.batches_halved += result.batches_halved
        self.devices[result.device or "cpu"] += 1
        read, predict, write = (result.seconds[stage] for stage in STAGES[1:])
        self.seconds = [mine + more for mine, more in zip(self.seconds, (read, predict, write), strict=True)]
        self.batch_seconds.merge(told.batch_seconds)
        self.began, self.ended = min(self.began, told.began), max(self.ended, told.ended)
        self.time_line.add(told.began, told.ended, (0.0, read, predict, write))
        if told.process is not None:
            self._note_process(told.process, told.retries)
        slow = Slow(
            told.ended - told.began,
            result.shard.output,
            told.began,
            result.shard.rows,
            told.process.name if told.process else "",
            (read, predict, write),
        )
        if len(self.slowest) < SLOWEST:
            heapq.heappush(self.slowest, slow)
        else:
            heapq.heappushpop(self.slowest, slow)

    def _note_process(self, process: Process, retries: int) -> None:
        """Several threads of it may have waited for one load."""
        known, last = self.processes.get(process.name, (process, 0))
        if process.name in self.processes or len(self.processes) < _MOST_PROCESSES:
            longest = max(known.load_seconds, process.load_seconds)
            before = min(known.retries_before, process.retries_before)
            began = min(known.began, process.began)
            self.processes[process.name] = (
                replace(known, began=began, load_seconds=longest, retries_before=before),
                max(last, retries),
            )


_SUMS = (
    *("shards", "rows", "bad_rows", "output_bytes", "computed_shards", "computed_rows", "read_bytes", "written_bytes"),
    *("batches", "batches_halved", "filtered_rows", "described", "footers", "bad_looked_at"),
)


def account_of(job: Job, results: Iterable[ShardResult]) -> Account:
    """Of shards that this run found done, the footers of `MOST_FOOTERS` at most are read, evenly spread over them."""
    account, results = Account(), sorted(results, key=lambda result: result.shard)
    asked = _spread([result for result in results if result.told is None and not result.computed], MOST_FOOTERS)
    store = open_store(job.output, job.storage)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        read = list(threads.map(lambda result: _with_footer(job, store, result), asked))
    known = {result.shard.output: result for result in read}
    for result in results:
        account.add(known.get(result.shard.output, result))
    account.slowest = heapq.nlargest(SLOWEST, account.slowest)
    _look_at_dead_letters(job, account, [result.dead_letters for result in results if result.dead_letters])
    return account


def merged(accounts: Iterable[Account]) -> Account:
    whole = Account()
    for one in accounts:
        whole.merge(one)
    for process in whole.loads():
        ended = process.began + process.load_seconds
        whole.time_line.add(process.began, ended, (process.load_seconds, 0.0, 0.0, 0.0))
        whole.began = min(whole.began, process.began)
    return whole


def _spread(results: Sequence[ShardResult], most: int) -> Sequence[ShardResult]:
    if len(results) <= most:
        return results
    return [results[i * len(results) // most] for i in range(most)]


def _with_footer(job: Job, store: Store, result: ShardResult) -> ShardResult:
    """Where a file has gone since it was found, or was never whole, the job's own account of its files says so."""
    there = ObjectRef(f"{job.output}/{result.shard.output}", result.output_bytes, result.output_version)
    try:
        kept = read_footer(store, there).key_values.get(STATISTICS.encode())
    except (ObjectNotFound, ObjectChanged, NotParquet):
        return result
    return replace(result, told=ShardMeasurements(None if kept is None else kept.decode(errors="replace")))


def _known_columns(told: ShardMeasurements | None) -> list[Column] | None:
    """None also where a file holds something else under that name."""
    if told is None or told.columns is None:
        return None
    try:
        return decode(told.columns)
    except ValueError:
        return None


def _look_at_dead_letters(job: Job, account: Account, uris: Sequence[str]) -> None:
    folder = job.on_error.dead_letters
    if folder is None:
        return
    store = open_store(folder, job.storage)
    for uri in uris[:MOST_DEAD_LETTER_FILES]:
        for bad in _bad_rows(store, uri):
            account.bad_looked_at += 1
            account.reasons[bad.stage, _reason(bad.error)] += 1
            if len(account.examples) < EXAMPLES:
                account.examples.append(bad)
    account.reasons = Counter(dict(account.reasons.most_common(_MOST_REASONS)))


def _bad_rows(store: Store, uri: str) -> Iterator[Bad]:
    """Of one file, the first `_ROWS_OF_A_FILE` at most; none where it has gone."""
    try:
        with closing(store.open_arrow(store.stat(uri))) as opened:
            left = _ROWS_OF_A_FILE
            for batch in pq.ParquetFile(opened).iter_batches(columns=DEAD_LETTER_COLUMNS.names):
                for where, row, stage, error in zip(
                    *(batch.column(name)[:left].to_pylist() for name in DEAD_LETTER_COLUMNS.names), strict=True
                ):
                    yield Bad(public_uri(where), row, stage, without_secrets(error))
                left -= batch.num_rows
                if left <= 0:
                    return
    except (ObjectNotFound, ObjectChanged, pa.ArrowException):
        return


def _reason(error: str) -> str:
    """What is alike in messages of the same mistake: without numbers, and without the places that they name."""
    text = re.sub(r"\b\w+:///?\S+|(?<![\w.])/\S+", "…", error)
    text = re.sub(r"\d+", "#", text)
    return text[:_REASON_LETTERS]


def without_secrets(text: str) -> str:
    """With no user, password, query or fragment of a web address in it."""
    return _URL.sub(lambda found: public_uri(found[0]), text)
