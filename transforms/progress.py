"""How far this process is. A local run shows it live, since Beam's in-process runner gives no word until it is done."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Bytes of the model; shards and rows of the plan. `rows_found` stood in the output already; `rows_done` were predicted
    or are among the `bad_rows`.
    """

    model_bytes: int = 0
    model_bytes_total: int = 0
    shards_planned: int = 0
    shards_done: int = 0
    rows_planned: int = 0
    rows_done: int = 0
    rows_found: int = 0
    bad_rows: int = 0
    model_ready: bool = False


_lock = threading.Lock()
_now = Snapshot()


def snapshot() -> Snapshot:
    return _now


def reset() -> None:
    global _now
    with _lock:
        _now = Snapshot()


def add(**amounts: int) -> None:
    global _now
    with _lock:
        _now = replace(_now, **{name: getattr(_now, name) + amount for name, amount in amounts.items()})


def model_progress(done: int, total: int) -> None:
    global _now
    with _lock:
        _now = replace(_now, model_bytes=done, model_bytes_total=total)


def model_ready() -> None:
    global _now
    with _lock:
        _now = replace(_now, model_ready=True)
