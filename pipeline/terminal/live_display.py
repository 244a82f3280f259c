"""The live display of a job on a terminal. It redraws itself in place four times a second; output that is written meanwhile
appears above it. It changes no modes of the terminal: nothing is left behind, however the process ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.transforms.columns.wording import counted
from headrace.transforms.printable import printable

from .progress_meter import Meter, Reading, duration, mib
from .signals import announced_by

_TIMES_A_SECOND = 4
# A narrower terminal has no room for bars next to the numbers.
_BARS_FROM_COLUMNS = 76


class _Terminal(Console):
    @property  # type: ignore[misc]  # it is never set
    def size(self) -> ConsoleDimensions:
        """The terminal's own width: a variable COLUMNS may be from another one, and lines that are too long would pile up."""
        try:
            columns, lines = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            return super().size
        return ConsoleDimensions(columns, lines) if columns and lines else super().size

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
        """Leaves it be: a process that is killed could not show it again."""
        return False


class Display:
    """The terminal's display of a meter's numbers; `notice` is a last line of words."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._read = meter, meter.read
        self.notice = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        reading = self._read()
        lines = [("model", *_model(reading)), ("rows", *_rows(reading))]
        rest, style = _rest(reading), "yellow" if reading.bad_rows or reading.now.shards_failed else "dim"
        if options.max_width < _BARS_FROM_COLUMNS:
            for label, _, _, *numbers in lines:
                yield _line(f"{label:<7} {', '.join(filter(None, numbers))}")
            yield _line(f"shards  {_shards(reading)}")
            yield _line(f"        {rest}", style)
        else:
            yield _grid(lines, reading)
            yield _line(f"shards  {_shards(reading)}").append(f"   {rest}", style)
        if self.notice:
            yield _line(self.notice, "bold")

    def end(self) -> None:
        self._read = self._meter.last

    def announce(self, text: str) -> None:
        """Called in a signal's handler, the second time just before the process ends."""
        if self.notice:
            os.write(2, f"\n{printable(text)}\n".encode())
        self.notice = text


@contextmanager
def displayed(meter: Meter) -> Iterator[None]:
    console = _Terminal(stderr=True, highlight=False, markup=False, emoji=False)
    display = Display(meter)
    # Output to a file or a pipe must not be drawn on the terminal.
    live = Live(
        display,
        console=console,
        refresh_per_second=_TIMES_A_SECOND,
        redirect_stdout=sys.stdout.isatty(),
        vertical_overflow="crop",
    )
    with announced_by(display.announce), live:
        try:
            yield
        finally:
            display.end()


Row = tuple[str, float, float, str, str, str]


def _model(reading: Reading) -> tuple[float, float, str, str, str]:
    now, rate = reading.now, reading.model_bytes_per_second
    if not now.model_bytes_total:
        return 0, 1, "ready" if now.model_ready else "not yet asked for", "", ""
    size = f"{mib(now.model_bytes_total)} MiB"
    speed = f"{mib(rate)} MiB/s" if rate else ""
    if now.model_bytes < now.model_bytes_total:
        left = reading.model_seconds_left
        done = f"{mib(now.model_bytes)} of {size}"
        return now.model_bytes, now.model_bytes_total, done, speed, "" if left is None else f"{duration(left)} left"
    return 1, 1, size, "", "ready" if now.model_ready else "building the graph"


def _rows(reading: Reading) -> tuple[float, float, str, str, str]:
    now, done, left = reading.now, reading.rows_accounted, reading.seconds_left
    if not now.rows_planned:
        return 0, 1, "planning" if not now.shards_planned else "none", "", ""
    speed = f"{counted(round(reading.rows_per_second), 'row')}/s" if reading.rows_per_second else ""
    over = done >= now.rows_planned
    remaining = "" if left is None else f"{duration(left)} left"
    return done, now.rows_planned, f"{done:,} of {now.rows_planned:,}", speed, "all done" if over else remaining


def _shards(reading: Reading) -> str:
    now = reading.now
    found = f", {now.shards_found:,} of them found done" if now.shards_found else ""
    failed = f", {now.shards_failed:,} failed" if now.shards_failed else ""
    return f"{now.shards_done:,} of {now.shards_planned:,} done{found}, {now.shards_in_flight:,} in flight{failed}"


def _rest(reading: Reading) -> str:
    retries, letters = counted(reading.storage_retries, "retry", "retries"), counted(reading.bad_rows, "dead letter")
    return f"{retries}, {letters}, {duration(reading.seconds)}"


def _line(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _grid(rows: list[Row], reading: Reading) -> Table:
    """With room for the numbers to grow: the bars keep their place."""
    rows_planned, size = f"{reading.now.rows_planned:,}", mib(reading.now.model_bytes_total)
    most = max(len(f"{rows_planned} of {rows_planned}"), len(f"{size} of {size} MiB"))
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, width=6)
    grid.add_column(no_wrap=True, ratio=1)
    grid.add_column(no_wrap=True, justify="right", min_width=min(most, 28))
    grid.add_column(no_wrap=True, justify="right", min_width=12)
    grid.add_column(no_wrap=True, min_width=12)
    for label, done, total, amount, speed, left in rows:
        bar = ProgressBar(
            total=max(total, 1), completed=done, style="bright_black", complete_style="cyan", finished_style="green"
        )
        grid.add_row(label, bar, amount, Text(speed, style="dim"), Text(left, style="dim"))
    return grid
