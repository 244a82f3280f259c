"""Progress of a job that runs in this process: a live display on a terminal or in a notebook, else lines, or JSON lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from . import log
from .progress_meter import Meter, describe, repeated

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
    meter, shown, spoke = Meter(), "", 0.0

    def show_change() -> None:
        nonlocal shown, spoke
        reading = meter.read()
        if (line := describe(reading)) != shown and time.monotonic() - spoke >= _LINE_EVERY_SECONDS:
            log.log_event("progress", line, **reading.fields())
            shown, spoke = line, time.monotonic()

    try:
        with repeated(show_change, 0.25):
            yield
    finally:
        last = meter.last()
        log.log_event("progress", describe(last), **last.fields())
