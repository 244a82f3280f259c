"""How far this process is, and worker processes that it started. A local run shows it live, since Beam's local runner gives no
word until it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Bytes of the models; shards and rows of the plan. `shards_found` of the `shards_done` existed before, with `rows_found`
    rows; `bad_rows_found` of these are in dead letters. `rows_done` were predicted by this run, or are its `bad_rows`.
    `storage_retries` are those of worker processes alone: the store counts this one's.
    """

    model_bytes: int = 0
    model_bytes_total: int = 0
    shards_planned: int = 0
    shards_done: int = 0
    shards_found: int = 0
    shards_in_flight: int = 0
    shards_failed: int = 0
    rows_planned: int = 0
    rows_done: int = 0
    rows_found: int = 0
    bad_rows: int = 0
    bad_rows_found: int = 0
    storage_retries: int = 0
    model_ready: bool = False


_lock = threading.Lock()
_now = asdict(Snapshot())
_model_bytes_counted = 0
_worker_processes: Callable[[], Sequence[Snapshot]] = tuple


def snapshot() -> Snapshot:
    """The sum over this process and its worker processes."""
    with _lock:
        numbers = [_now, *map(asdict, _worker_processes())]
    total = {name: sum(one[name] for one in numbers) for name in _now}
    return Snapshot(**(total | {"model_ready": any(one["model_ready"] for one in numbers)}))


def count_processes(snapshots: Callable[[], Sequence[Snapshot]]) -> None:
    """Until the next `reset`: `snapshots` gives what worker processes have counted."""
    global _worker_processes
    with _lock:
        _worker_processes = snapshots


def reset() -> None:
    global _model_bytes_counted, _worker_processes
    with _lock:
        _now.update(asdict(Snapshot()))
        _model_bytes_counted, _worker_processes = 0, tuple


def add(**amounts: int) -> None:
    with _lock:
        for name, amount in amounts.items():
            _now[name] += amount


class ModelProgress:
    """Adds a loader's progress with one model to that of others. Called by one thread at a time."""

    def __init__(self) -> None:
        self._done = self._total = 0

    def __call__(self, done: int, total: int) -> None:
        add(model_bytes=done - self._done, model_bytes_total=total - self._total)
        self._done, self._total = done, total


def model_ready() -> None:
    with _lock:
        _now["model_ready"] = True


def take_model_bytes() -> int:
    """Bytes of models that arrived since this was last asked."""
    global _model_bytes_counted
    with _lock:
        arrived: int = _now["model_bytes"]
        taken, _model_bytes_counted = arrived - _model_bytes_counted, arrived
    return taken
