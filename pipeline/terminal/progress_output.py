"""Progress of a job that runs in this process: a live display on a terminal or in a notebook, else lines, or JSON lines."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from . import log
from .progress_meter import Meter, Reading, describe

_LINE_EVERY_SECONDS = 5.0


def is_live(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a live display can be shown there, and a user is likely to watch it."""
    return stream.isatty() and environ.get("TERM", "dumb") not in ("", "dumb", "unknown") and not environ.get("CI")


def watched() -> AbstractContextManager[None]:
    """Shows this process's progress until the context ends, and how it ended."""
    if log.is_json():
        return _lines()
    if is_live(sys.stderr, os.environ):
        # Loads rich, which no other way of showing needs.
        from .live_display import displayed

        return displayed(Meter())
    from .notebook_display import displayed_in_notebook, is_in_notebook

    return displayed_in_notebook(Meter()) if is_in_notebook() else _lines()


@contextmanager
def _lines() -> Iterator[None]:
    stop, meter = threading.Event(), Meter()

    def show(reading: Reading) -> str:
        line = describe(reading)
        log.log_event("progress", line, **reading.fields())
        return line

    def keep_showing() -> None:
        shown, spoke = "", 0.0
        while not stop.wait(0.25):
            reading = meter.read()
            if describe(reading) != shown and time.monotonic() - spoke >= _LINE_EVERY_SECONDS:
                shown, spoke = show(reading), time.monotonic()
        show(meter.last())

    thread = threading.Thread(target=keep_showing, name="headrace-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
