"""An iterator that works ahead of its consumer by a bounded number of items, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


@contextmanager
def read_ahead(items: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """Yields `items` in order, at most `depth` of them waiting. An error of theirs is raised in its place.

    Leaving the block stops the thread and closes `items`, whether they were used up or not.
    """
    ready: queue.Queue[object] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # raised again by the consumer
            put(_Failure(error))
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def drain() -> Iterator[Item]:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=run, name="headrace-read", daemon=True)
    thread.start()
    try:
        yield drain()
    finally:
        stopped.set()
        thread.join()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
