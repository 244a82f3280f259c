"""Progress of a job that runs in this process: a live display on a terminal or in a notebook, else lines, or JSON lines."""

from __future__ import annotations

import html
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from headrace.transforms.printable import printable

from . import log
from .progress_meter import Meter, Reading, describe

_LINE_EVERY_SECONDS, _DRAW_EVERY_SECONDS = 5.0, 0.5


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
    return _in_a_notebook(Meter()) if _is_in_notebook() else _lines()


@contextmanager
def repeated(work: Callable[[], None], every_seconds: float) -> Iterator[None]:
    """Until the context ends, in a thread of its own."""
    stop = threading.Event()

    def keep_working() -> None:
        while not stop.wait(every_seconds):
            work()

    thread = threading.Thread(target=keep_working, name="headrace-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


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


def _is_in_notebook() -> bool:
    """Whether this process is a notebook's kernel, and not IPython on a terminal."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def _in_a_notebook(meter: Meter) -> Iterator[None]:
    """One cell output that is drawn again and again."""
    from IPython.display import HTML, display

    handle = display(HTML(_html(meter.read())), display_id=True)
    try:
        with repeated(lambda: handle.update(HTML(_html(meter.read()))), _DRAW_EVERY_SECONDS):
            yield
    finally:
        handle.update(HTML(_html(meter.last())))


def _html(reading: Reading) -> str:
    """A bar of the rows that are accounted for, and the line that the command shows next to it."""
    planned = reading.now.rows_planned
    value = f' value="{reading.rows_accounted}" max="{planned}"' if planned else ""
    return f'<progress{value} style="width: 24em"></progress> {html.escape(printable(describe(reading)))}'
