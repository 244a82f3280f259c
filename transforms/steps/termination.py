"""A worker that is told to end: SIGTERM, as a spot machine gets 30 s before it goes, or the end of its launcher.

It may commit what it finishes in some seconds. The rest it gives back: uploads are aborted, the runner gets an error, and the
log names the shards.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from weakref import WeakSet

from .shard_log import running

# Beam's containers give a worker 5 s after SIGTERM.
_FINISH_SECONDS = 3.0
_ABORT_SECONDS, _LOG_SECONDS = 1.0, 0.5
_LOOK_EVERY_SECONDS = 0.02

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_ending = threading.Event()
_cancelled = False
_events: WeakSet[threading.Event] = WeakSet()
_installed = False


class Cancelled(Exception):
    """Another shard of the bundle has failed, or this process ends; the shard stops without leaving anything."""


def cancel_event() -> threading.Event:
    """Set by whoever made it, or once this process ends."""
    event = threading.Event()
    with _lock:
        _events.add(event)
        if _cancelled:
            event.set()
    return event


def check_not_ending() -> None:
    """Called before a shard begins. Raises `Cancelled`."""
    if _ending.is_set():
        raise Cancelled("this worker is about to end")


def end_shards(finish_seconds: float) -> list[str]:
    """No shard begins any more; those that run have so many seconds, and are then cancelled. Returns the latter."""
    global _cancelled
    _ending.set()
    _wait_for_shards(finish_seconds)
    given_back = running()
    with _lock:
        _cancelled = True
        events = list(_events)
    for event in events:
        event.set()
    _wait_for_shards(_ABORT_SECONDS)
    return given_back


def _wait_for_shards(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while running() and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_SECONDS)


def end_on_sigterm(finish_seconds: float = _FINISH_SECONDS) -> None:
    """From now on, unless this process has a handler of its own, as the launcher and Dask's workers have. Any thread may call.

    Python sets handlers in the main thread alone, which is the runner's. What faulthandler writes at the signal, to a pipe,
    wakes a thread.
    """
    global _installed
    with _lock:
        if _installed or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        _installed = True
    reader, writer = os.pipe()
    faulthandler.register(signal.SIGTERM, file=writer, all_threads=False, chain=False)
    threading.Thread(
        target=_end_once_heard, args=(reader, finish_seconds), name="headrace-sigterm", daemon=True
    ).start()


def _end_once_heard(reader: int, finish_seconds: float) -> None:
    os.read(reader, 1)
    shards = running()
    _log.warning(
        "SIGTERM: this worker ends. %s",
        f"It works on {', '.join(shards)}, for {finish_seconds:g} s more at most" if shards else "It works on no shard",
    )
    if given_back := end_shards(finish_seconds):
        _log.warning("SIGTERM: given back unfinished: %s", ", ".join(given_back))
    elif shards:
        _log.warning("SIGTERM: what it worked on is finished")
    time.sleep(_LOG_SECONDS)  # Beam sends log lines from a thread of its own
    faulthandler.unregister(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
