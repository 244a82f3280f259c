"""The numbers of a running job: what this process counts, with the rates and what is left of the time that follow from it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace.transforms import progress
from headrace.transforms.columns.wording import counted
from headrace.transforms.storage.store import retries_so_far

_WINDOW_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Reading:
    """Rates are per second of the last moments, 0 where none is known yet; `seconds` since the job began."""

    now: progress.Snapshot
    seconds: float
    storage_retries: int
    model_bytes_per_second: float
    rows_per_second: float

    @property
    def rows_accounted(self) -> int:
        return self.now.rows_done + self.now.rows_found

    @property
    def bad_rows(self) -> int:
        return self.now.bad_rows + self.now.bad_rows_found

    @property
    def seconds_left(self) -> float | None:
        left = self.now.rows_planned - self.rows_accounted
        return left / self.rows_per_second if self.rows_per_second and self.now.rows_planned else None

    @property
    def model_seconds_left(self) -> float | None:
        left = self.now.model_bytes_total - self.now.model_bytes
        return left / self.model_bytes_per_second if self.model_bytes_per_second else None

    def fields(self) -> dict[str, Any]:
        """The numbers, by their names in transforms/beam/metrics.py if they are there."""
        now, left = self.now, self.seconds_left
        return {
            "seconds": round(self.seconds, 3),
            "model_bytes": now.model_bytes,
            "model_bytes_total": now.model_bytes_total,
            "model_ready": now.model_ready,
            "shards_planned": now.shards_planned,
            "shards": now.shards_done - now.shards_found,
            "shards_found_done": now.shards_found,
            "shards_in_flight": now.shards_in_flight,
            "shards_failed": now.shards_failed,
            "rows_planned": now.rows_planned,
            "rows": now.rows_done - now.bad_rows,
            "rows_found_done": now.rows_found,
            "bad_rows": now.bad_rows,
            "storage_retries": self.storage_retries,
            "rows_per_second": round(self.rows_per_second, 1),
            "seconds_left": None if left is None else round(left, 1),
        }


class Meter:
    """Begins to count when it is made; `read` is asked now and then, by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started, self._retries = clock, clock(), retries_so_far()
        self._model, self._rows = _Rate(), _Rate()

    def read(self) -> Reading:
        return self._reading(_Rate.of)

    def last(self) -> Reading:
        """As `read`, with the rates of all the time since there was anything to count."""
        return self._reading(_Rate.overall)

    def _reading(self, rate: Callable[[_Rate, float, int], float]) -> Reading:
        now, at = progress.snapshot(), self._clock()
        retries = retries_so_far() - self._retries + now.storage_retries
        speeds = rate(self._model, at, now.model_bytes), rate(self._rows, at, now.rows_done)
        return Reading(now, at - self._started, retries, *speeds)


class _Rate:
    """The rate at which an amount grows: since it was last 0, but no further back than the window."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None

    def of(self, at: float, amount: int) -> float:
        if not amount:
            self._seen.clear()
        self._seen.append((at, amount))
        self._first = self._first if amount and self._first else self._seen[0]
        while len(self._seen) > 2 and self._seen[0][0] < at - _WINDOW_SECONDS:
            self._seen.popleft()
        return self._since(*self._seen[0], at, amount)

    def overall(self, at: float, amount: int) -> float:
        return self._since(*(self._first or (at, amount)), at, amount)

    def _since(self, then: float, before: int, at: float, amount: int) -> float:
        return (amount - before) / (at - then) if at > then else 0.0


def describe(reading: Reading) -> str:
    """One line: the plan, the model until it is ready, then rows."""
    now = reading.now
    if not now.shards_planned:
        return f"planning, {reading.seconds:.0f} s"
    parts = [
        f"{now.shards_done:,} of {counted(now.shards_planned, 'shard')}",
        f"{reading.rows_accounted:,} of {counted(now.rows_planned, 'row')}",
    ]
    if now.model_bytes_total and (now.model_bytes < now.model_bytes_total or not now.model_ready):
        rate = f", {mib(reading.model_bytes_per_second)} MiB/s" if reading.model_bytes_per_second else ""
        parts.insert(0, f"model {mib(now.model_bytes)} of {mib(now.model_bytes_total)} MiB{rate}")
    if now.rows_found:
        parts.append(f"{now.rows_found:,} found done")
    if reading.bad_rows:
        parts.append(f"{reading.bad_rows:,} to dead letters")
    if now.shards_failed:
        parts.append(f"{counted(now.shards_failed, 'shard')} failed")
    if reading.rows_per_second:
        parts.append(f"{counted(round(reading.rows_per_second), 'row')}/s")
        if left := reading.seconds_left:
            parts.append(f"{left:,.0f} s left")
    return ", ".join(parts)


def mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.1f}"


def duration(seconds: float) -> str:
    """As a person reads it: 41 s, 3 min 20 s, 2 h 05 min."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600:,} h {rounded % 3600 // 60:02d} min"
