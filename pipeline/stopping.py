"""Ctrl-C and SIGTERM: the first lets the job end in order, the second ends the process where it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from pipeline.log import tell_at_once
from transforms import progress

STOPPED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_Announce = Callable[[str], None]


def _announce_at_once(text: str) -> None:
    tell_at_once("stopping", text)


_announce: _Announce = _announce_at_once


@contextmanager
def announced_by(announce: _Announce) -> Iterator[None]:
    """While a display stands, it says that the job stops. `announce` is called in a signal's handler."""
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


def _stop(*_: object) -> NoReturn:
    for number in _SIGNALS:
        signal.signal(number, _end_now)
    _announce("Stopping. Once more ends it at once.")
    raise KeyboardInterrupt


def _end_now(*_: object) -> NoReturn:
    _announce("Ended at once.")
    # Nothing is lost by that: what is not committed was never visible.
    os._exit(STOPPED)


def stopped_text(*, overwrites: bool) -> str:
    """What is done, and how to go on. To overwrite again would begin anew."""
    now = progress.snapshot()
    done = f" {now.shards_done:,} of {now.shards_planned:,} shards are done." if now.shards_planned else ""
    same = "The same command without --overwrite" if overwrites else "The same command"
    return f"Stopped.{done} {same} goes on from what is done."
