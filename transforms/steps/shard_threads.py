"""The threads that predict shards: one per core, for the whole process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

from ..predicting.devices import cores

T = TypeVar("T")


class ShardThreads:
    """`threads` threads, shared by all DoFns that a runner makes in this process.

    A runner counts as done what a DoFn has accepted, and can give no more of it to another worker. So `submit` accepts
    `threads + 1` pieces of work at most: those that run, and one that keeps a core busy while the next is on its way.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="headrace-shard")
        self._places = threading.Semaphore(threads + 1)

    def submit(self, work: Callable[..., T], *given: Any) -> Future[T]:
        """Waits for a place: until fewer than `threads + 1` pieces of work, of whichever DoFn, run or wait for a thread."""
        self._places.acquire()
        try:
            future = self._pool.submit(work, *given)
        except BaseException:
            self._places.release()
            raise
        # Called exactly once, also for a future that is cancelled before it runs.
        future.add_done_callback(lambda _: self._places.release())
        return future


@cache
def shard_threads() -> ShardThreads:
    """The threads of this process."""
    return ShardThreads(cores())
