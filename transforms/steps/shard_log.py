"""The shard that a thread works on: part of each of its log lines, and known to the code that stops the process."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_MOST_FAILED = 10_000


@dataclass(frozen=True, slots=True)
class Work:
    """`attempt` counts from 1, in this process: a runner does not say how often another has tried."""

    shard: str
    attempt: int
    step: str

    def __str__(self) -> str:
        return f"shard {self.shard}, attempt {self.attempt}, step {self.step}"


_current: ContextVar[Work | None] = ContextVar("headrace_shard", default=None)
_lock = threading.Lock()
_running: dict[int, Work] = {}
_in_processes: Callable[[], Iterable[str]] = tuple
# Only of shards that failed here, and not of all of these for ever.
_failed: OrderedDict[str, int] = OrderedDict()
_marked = False


@contextmanager
def working_on(shard: str, step: str) -> Iterator[Work]:
    """Within the block, log lines of this thread, and of those that it gives its context, begin with the shard."""
    with _lock:
        work = Work(shard, 1 + _failed.get(shard, 0), step)
        _running[threading.get_ident()] = work
    token = _current.set(work)
    try:
        yield work
    except BaseException:
        with _lock:
            _failed[shard] = work.attempt
            _failed.move_to_end(shard)
            if len(_failed) > _MOST_FAILED:
                _failed.popitem(last=False)
        raise
    finally:
        _current.reset(token)
        with _lock:
            del _running[threading.get_ident()]


def running() -> list[str]:
    """The shards that this process and its worker processes work on. Without a lock, for a signal's handler may ask."""
    return sorted([*(work.shard for work in list(_running.values())), *_in_processes()])


def name_running_of_processes(shards: Callable[[], Iterable[str]]) -> None:
    """From now on, `shards` gives those that worker processes work on."""
    global _in_processes
    _in_processes = shards


def mark_log_lines() -> None:
    """Covers every logger's lines, with any formatter: Beam sends a worker's to its runner by a handler of its own."""
    global _marked
    with _lock:
        if _marked:
            return
        _marked = True
    make = logging.getLogRecordFactory()

    def marked(*given: Any, **named: Any) -> logging.LogRecord:
        record = make(*given, **named)
        work = _current.get()
        if work is not None:
            record.shard, record.attempt, record.step = work.shard, work.attempt, work.step
            prefix = f"[{work}] "
            record.msg = f"{prefix.replace('%', '%%') if record.args else prefix}{record.msg}"
        return record

    logging.setLogRecordFactory(marked)
