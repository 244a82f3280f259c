"""Ctrl-C and SIGTERM: the first lets the job end in order, the second ends the process where it is."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from headrace.transforms import progress
from headrace.transforms.steps.shard_log import running

from .log import log_at_once

STOPPED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ignored by default, and no other code sends it to a thread.
_WAKE = signal.SIGURG
_WAKE_EVERY_SECONDS, _WAKE_TIMES = 0.2, 25
_Announce = Callable[[str], None]


def _announce_at_once(text: str) -> None:
    log_at_once("stopping", text)


_announce: _Announce = _announce_at_once
# The shards that were being computed when the signal came.
_given_back: list[str] = []
_MOST_NAMED = 5


@contextmanager
def announced_by(announce: _Announce) -> Iterator[None]:
    """A live display shows that the job stops. `announce` is called in a signal's handler."""
    global _announce
    _announce = announce
    try:
        yield
    finally:
        _announce = _announce_at_once


def stop_on_signals() -> None:
    """The first raises `KeyboardInterrupt` in the main thread."""
    for number in _SIGNALS:
        signal.signal(number, _stop)
    _wake_on_signals()


def _wake_on_signals() -> None:
    """Python only notes a signal; the main thread has to run for its handler. While that waits for a lock, it is woken by a
    signal that finds it asleep, but not by one that came just before, or to another thread: Ctrl-C would do nothing until it
    is pressed again, and SIGTERM end in SIGKILL. So a thread hears of each signal and wakes the main thread.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.signal(_WAKE, lambda *_: None)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def keep_waking() -> None:
        # The closure keeps `writer` open.
        while writer.fileno() >= 0:
            if reader.recv(1)[0] not in _SIGNALS:
                continue
            for _ in range(_WAKE_TIMES):
                time.sleep(_WAKE_EVERY_SECONDS)
                signal.pthread_kill(main, _WAKE)

    main = threading.main_thread().ident or 0
    threading.Thread(target=keep_waking, name="headrace-signals", daemon=True).start()


def _stop(*_: object) -> NoReturn:
    global _given_back
    _given_back = running()
    for number in _SIGNALS:
        signal.signal(number, _end_now)
    _announce("Stopping. Once more ends it at once.")
    raise KeyboardInterrupt


def _end_now(*_: object) -> NoReturn:
    _announce("Ended at once.")
    # Nothing is lost by that: what is not committed was never visible.
    os._exit(STOPPED)


def stopped_text(*, overwrites: bool) -> str:
    """What is done, and how to resume. Overwriting again would start over."""
    now = progress.snapshot()
    done = f" {now.shards_done:,} of {now.shards_planned:,} shards are done." if now.shards_planned else ""
    same = "The same command without --overwrite" if overwrites else "The same command"
    return f"Stopped.{done}{_given_back_text(_given_back)} {same} goes on from what is done."


def _given_back_text(shards: list[str]) -> str:
    if not shards:
        return ""
    more = f" and {len(shards) - _MOST_NAMED:,} more" if len(shards) > _MOST_NAMED else ""
    return f" Given back unfinished: {', '.join(shards[:_MOST_NAMED])}{more}."
