"""Recent results, bounded: a store that lives long does not keep everything that it ever found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key, the newest of them up to `most` in all, and always the last one. Safe from many threads.

    `weight` gives a value's share of `most`; by default each counts as one.
    """

    def __init__(self, most: int, weight: Callable[[Value], int] = lambda _: 1) -> None:
        self._most, self._weight = most, weight
        self._lock = threading.Lock()
        self._kept: dict[Key, Value] = {}
        self._total = 0

    def get(self, key: Key) -> Value | None:
        return self._kept.get(key)

    def keep(self, key: Key, value: Value) -> None:
        with self._lock:
            self._drop(key)
            self._kept[key] = value
            self._total += self._weight(value)
            while self._total > self._most and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))

    def drop(self, key: Key) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        if (value := self._kept.pop(key, None)) is not None:
            self._total -= self._weight(value)
