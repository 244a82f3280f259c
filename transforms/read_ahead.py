"""An iterator that works ahead of its consumer by a bounded number of items, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


@contextmanager
def read_ahead(items: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """Yields `items` in order, at most `depth` of them waiting. An error of theirs is raised in its place.

    Leaving the block stops the thread and closes `items`, whether they were used up or not.
    """
    # A queue.Queue of bounded size is written in Python, and so runs under the interpreter's lock; these two are not.
    ready: SimpleQueue[object] = SimpleQueue()
    free: SimpleQueue[None] = SimpleQueue()
    for _ in range(depth):
        free.put(None)
    stopped = threading.Event()

    def run() -> None:
        last: object = _END
        try:
            for item in items:
                free.get()
                if stopped.is_set():
                    return
                ready.put(item)
        except BaseException as error:  # raised again by the consumer
            last = _Failure(error)
        finally:
            ready.put(last)
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def drain() -> Iterator[Item]:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            free.put(None)
            yield item  # type: ignore[misc]

    # In the consumer's context, which has the subject of its log lines.
    thread = threading.Thread(target=copy_context().run, args=(run,), name="headrace-read", daemon=True)
    thread.start()
    try:
        yield drain()
    finally:
        stopped.set()
        free.put(None)
        thread.join()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
