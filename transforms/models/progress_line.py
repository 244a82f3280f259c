"""A model on its way, on one line of standard error, for people who load it from Python."""

from __future__ import annotations

import os
import sys
import time

from ..printable import printable

_SECONDS_BETWEEN = 0.1
_BAR = 24


class ProgressLine:
    """Called with bytes arrived and bytes in all, by one thread at a time: a bar, both in MiB, MiB per second, seconds left.

    On a terminal the line is drawn again at most ten times a second; elsewhere only the last one is written.
    """

    def __init__(self, name: str) -> None:
        self._name, self._started, self._drawn = printable(name), time.monotonic(), 0.0

    def __call__(self, done: int, total: int) -> None:
        now, complete, terminal = time.monotonic(), done >= total, sys.stderr.isatty()
        if not complete and (not terminal or now - self._drawn < _SECONDS_BETWEEN):
            return
        self._drawn = now
        line = self._line(done, total, now - self._started)
        start = f"\r\x1b[2K{line[: _columns() - 1]}" if terminal else line
        sys.stderr.write(f"{start}\n" if complete else start)
        sys.stderr.flush()

    def _line(self, done: int, total: int, seconds: float) -> str:
        filled = _BAR * done // max(1, total)
        rate = done / seconds if seconds else 0.0
        parts = [f"{done / 2**20:,.1f} of {total / 2**20:,.1f} MiB", f"{rate / 2**20:,.1f} MiB/s"]
        parts.append(f"{seconds:,.1f} s" if done >= total else f"{(total - done) / rate:,.0f} s left" if rate else "")
        return f"{self._name} [{'#' * filled}{' ' * (_BAR - filled)}] {', '.join(filter(None, parts))}"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
