"""Some rows of a plan run here, as a job runs them on its workers, to measure what all of them will take. Nothing is kept."""

from __future__ import annotations

import os
import resource
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from headrace.transforms import progress
from headrace.transforms.errors import InvalidRequest, JobError
from headrace.transforms.jobs.job import Job
from headrace.transforms.predicting.devices import cores
from headrace.transforms.predicting.predictor import Predictor, load_predictors
from headrace.transforms.shards.measuring import timed_load
from headrace.transforms.shards.shard import Shard
from headrace.transforms.steps.predict_shard import predict_shard
from headrace.transforms.steps.termination import Cancelled
from headrace.transforms.storage import ObjectRef, Store, open_store
from headrace.transforms.storage.memory import MemoryStore
from headrace.transforms.storage.store import Writer

# The time for the measured rows, in addition to warming up and loading.
MOST_SECONDS = 60.0
# Rounds of so many rows on each core, ever more, until a round takes so many seconds, or has a whole batch.
_FIRST_ROWS, _GROWTH, _LONG_ROUND_SECONDS = 8, 8, 5.0
# Shards that rows are taken from, of a plan of any size.
_KEPT_SHARDS = 256


@dataclass(frozen=True, slots=True)
class Trial:
    """The measurements. All `cores` together predicted `rows` in `seconds`, after `warm_up_rows` on the same cores. The models
    were loaded before that, in `load_seconds`. `busy` is the share of the cores' time that this process used meanwhile.

    `output_bytes_per_row` are bytes of the prediction files. `loaded_bytes` is the memory of the process once its models are
    loaded, `peak_bytes` its peak since the start. `whole_batches` says whether the rows made at least one batch for each core,
    and `stopped` whether the time was over before all rows were done.
    """

    rows: int
    bad_rows: int
    seconds: float
    cores: int
    device: str
    busy: float
    warm_up_rows: int
    warm_up_seconds: float
    load_seconds: float
    output_bytes_per_row: float
    loaded_bytes: int
    peak_bytes: int
    whole_batches: bool
    stopped: bool

    @property
    def rows_per_second_per_core(self) -> float:
        return self.rows / self.seconds / self.cores


class EvenSample:
    """A sample of a plan's shards, spread evenly over any number of shards."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self._seen, self._step = 0, 1

    def watch(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        for shard in shards:
            if self._seen % self._step == 0:
                self.shards.append(shard)
                if len(self.shards) > _KEPT_SHARDS:
                    self.shards, self._step = self.shards[::2], self._step * 2
            self._seen += 1
            yield shard


def run_trial(job: Job, shards: Sequence[Shard], rows: int) -> Trial:
    """Predicts `rows` of the shards, in about equal parts on each core. Raises what a run raises for a row that cannot be
    predicted, `InvalidRequest` where there are no rows, and `JobError` where no batch ended in time.
    """
    parts = [part for shard in shards for part in shard.parts if part.rows and not part.drift]
    if not parts:
        raise InvalidRequest(f"--trial={rows} has nothing to run", expected="an input with rows", found="none")
    job = replace(job, output=f"memory://headrace-trial/{secrets.token_hex(8)}", claim=0)
    if job.on_error.dead_letters is not None:
        job = replace(job, on_error=replace(job.on_error, dead_letters=f"{job.output}/bad", most="100%"))
    (devices, predictors), process = timed_load(lambda: load_predictors(job))
    loaded, threads = _resident_bytes(), cores()
    runner = _Runner(job, predictors, _of_each(parts, threads))
    each = max(1, rows // threads)
    started, warmed, per_row = time.perf_counter(), 0, 0.0
    most = min(job.batch_rows, each)
    some = min(_FIRST_ROWS, most)
    while True:
        round_ = runner.run(some)
        warmed, per_row = warmed + round_.rows, round_.seconds * threads / max(1, round_.rows)
        if some >= most or round_.seconds > _LONG_ROUND_SECONDS:
            break
        some = min(some * _GROWTH, most)
    warm_up_seconds = time.perf_counter() - started
    # A batch cannot be stopped, so a slow model gets fewer rows from the start.
    fits = max(1, int(MOST_SECONDS / per_row)) if per_row else each
    measured = runner.run(min(each, fits), stop_after=MOST_SECONDS)
    if not measured.rows:
        raise JobError(
            f"Not one batch of the trial ended in {MOST_SECONDS:.0f} s",
            expected="a model and an input that predict a few rows in that time",
            cure="Choose a smaller --batch_size, or try it on a faster machine",
        )
    return Trial(
        measured.rows,
        measured.bad_rows,
        measured.seconds,
        threads,
        devices[0].kind,
        measured.cpu_seconds / measured.seconds / threads,
        warmed,
        warm_up_seconds,
        process.load_seconds,
        measured.written / max(1, measured.rows),
        loaded,
        max(_peak_bytes(), loaded),
        min(each, fits) >= job.batch_rows,
        measured.rows < each * threads and (measured.stopped or fits < each),
    )


@dataclass(frozen=True, slots=True)
class _Round:
    rows: int
    bad_rows: int
    seconds: float
    cpu_seconds: float
    written: int
    stopped: bool


class _Runner:
    """`work` are the shards of each thread."""

    def __init__(self, job: Job, predictors: Sequence[Predictor], work: Sequence[Sequence[Shard]]) -> None:
        self._job, self._predictors, self._work = job, predictors, work
        self._store = open_store(job.folder, job.storage)

    def run(self, rows: int, stop_after: float = threading.TIMEOUT_MAX) -> _Round:
        """Predicts at most `rows` rows of its shards on each thread."""
        before, sink, cancelled = progress.snapshot(), _NothingKept(), threading.Event()
        timer = threading.Timer(stop_after, cancelled.set)
        started, cpu = time.perf_counter(), time.process_time()
        timer.start()
        try:
            with ThreadPoolExecutor(len(self._work)) as pool:
                futures = [pool.submit(self._of_a_thread, i, rows, sink, cancelled) for i in range(len(self._work))]
                stopped = [self._ended(future, cancelled) for future in futures]
        finally:
            timer.cancel()
            store = open_store(self._job.output, self._job.storage)
            for ref in list(store.list(self._job.output)):  # dead letters, which no test of a plan is to keep
                store.delete(ref)
        seconds, after = time.perf_counter() - started, progress.snapshot()
        done, bad = after.rows_done - before.rows_done, after.bad_rows - before.bad_rows
        return _Round(done, bad, seconds, time.process_time() - cpu, sink.counters.bytes_written, any(stopped))

    def _of_a_thread(self, thread: int, rows: int, sink: Store, cancelled: threading.Event) -> None:
        predictor = self._predictors[thread % len(self._predictors)]
        for number, shard in enumerate(self._work[thread]):
            part = replace(shard, output=f"{thread}-{number}-{shard.output}", rows=min(shard.rows, rows))
            predict_shard(self._job, predictor, self._store, sink, part, cancelled)
            if not (rows := rows - part.rows):
                return

    @staticmethod
    def _ended(future: Future[None], cancelled: threading.Event) -> bool:
        """Whether the time ran out first. An error ends the other threads too."""
        try:
            future.result()
        except Cancelled:
            return True
        except BaseException:
            cancelled.set()
            raise
        return False


def _of_each(parts: Sequence[Shard], threads: int) -> list[list[Shard]]:
    """Deals shards to threads, neighbours together; where there are fewer shards than threads, some threads share them."""
    if len(parts) < threads:
        return [[parts[i % len(parts)]] for i in range(threads)]
    edges = [i * len(parts) // threads for i in range(threads + 1)]
    return [list(parts[a:b]) for a, b in pairwise(edges)]


class _NothingKept(MemoryStore):
    """Counts what is written, and forgets it."""

    def create(self, uri: str) -> Writer:
        return _Counted(self, uri)


class _Counted(Writer):
    def __init__(self, store: _NothingKept, uri: str) -> None:
        super().__init__(uri)
        self._store = store

    def write(self, data: Any) -> int:
        nbytes = memoryview(data).nbytes
        self._written += nbytes
        return nbytes

    def commit(self) -> ObjectRef:
        self._closed = True
        self._store.counters.add(bytes_written=self._written)
        return ObjectRef(self._uri, self._written, "trial")

    def abort(self) -> None:
        self._closed = True


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return _peak_bytes()


def _peak_bytes() -> int:
    """getrusage(2) has kilobytes, and bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
