"""Ctrl-C and SIGTERM: the first lets the job end in order, the second ends the process where it is."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from transforms import progress

STOPPED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_on_signals() -> None:
    """The first raises `KeyboardInterrupt` in the main thread."""
    for number in _SIGNALS:
        signal.signal(number, _stop)


def _stop(*_: object) -> NoReturn:
    for number in _SIGNALS:
        signal.signal(number, _end_now)
    os.write(2, b"\nStopping. Once more ends it at once.\n")
    raise KeyboardInterrupt


def _end_now(*_: object) -> NoReturn:
    # Nothing is lost by that: what is not committed was never visible.
    os._exit(STOPPED)


def stopped_text(*, overwrites: bool) -> str:
    """What is done, and how to go on. To overwrite again would begin anew."""
    now = progress.snapshot()
    done = f" {now.shards_done:,} of {now.shards_planned:,} shards are done." if now.shards_planned else ""
    same = "The same command without --overwrite" if overwrites else "The same command"
    return f"Stopped.{done} {same} goes on from what is done."
