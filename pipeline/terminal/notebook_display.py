"""The progress of a job in a notebook: one cell output that is drawn again twice a second."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.transforms.printable import printable

from .progress_meter import Meter, Reading, describe, repeated

_EVERY_SECONDS = 0.5


def is_in_notebook() -> bool:
    """Whether this process is a notebook's kernel, and not IPython on a terminal."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def displayed_in_notebook(meter: Meter) -> Iterator[None]:
    """Shows the meter's numbers until the context ends, and how it ended."""
    from IPython.display import HTML, display

    handle = display(HTML(progress_html(meter.read())), display_id=True)
    try:
        with repeated(lambda: handle.update(HTML(progress_html(meter.read()))), _EVERY_SECONDS):
            yield
    finally:
        handle.update(HTML(progress_html(meter.last())))


def progress_html(reading: Reading) -> str:
    """A bar of the rows that are accounted for, and the line that the command shows next to it."""
    planned = reading.now.rows_planned
    value = f' value="{reading.rows_accounted}" max="{planned}"' if planned else ""
    return f'<progress{value} style="width: 24em"></progress> {html.escape(printable(describe(reading)))}'
