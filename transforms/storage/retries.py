"""One way to try again, for every store: what may pass is tried as often, and after as long, as one policy says."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import StoreUnavailable
from .store import Counters

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to repeat requests after faults that may pass. Times are in seconds; a wait is drawn from the upper half of its
    bound.

    `read_timeout_s` bounds the silence before any byte. An answer's head must be complete after `head_timeout_s`. Its body must
    come with `least_bytes_per_s` on average, not counting the first `grace_s`: that is an overall deadline of each request.
    A server that is too slow for it is asked `slow_attempts` times.
    """

    attempts: int = 8
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    longest_retry_after_s: float = 120.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    head_timeout_s: float = 60.0
    grace_s: float = 60.0
    least_bytes_per_s: float = 8192.0
    slow_attempts: int = 2

    def wait_s(self, failures: int, retry_after_s: float) -> float:
        bound = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (failures - 1))
        return max(bound * random.uniform(0.5, 1.0), min(retry_after_s, self.longest_retry_after_s))  # noqa: S311


class MayPass(Exception):
    """A failure after which the same request may succeed. `attempts` is how many of this kind are worth it, where fewer."""

    def __init__(self, cause: str, retry_after_s: float = 0.0, attempts: int | None = None) -> None:
        super().__init__(cause)
        self.retry_after_s, self.attempts = retry_after_s, attempts


def retried(
    attempt: Callable[[], _T],
    policy: RetryPolicy,
    counters: Counters,
    gave_up: Callable[[int], str],
    *,
    cure: str = "Look at the network and at the store's status, then run again.",
) -> _T:
    """What `attempt` returns. It is called again after each `MayPass`. Other exceptions are final.

    Raises `StoreUnavailable` with the text of `gave_up` for so many attempts, from the last failure's own cause.
    """
    failures = 0
    while True:
        counters.add(requests=1, retries=1 if failures else 0)
        try:
            return attempt()
        except MayPass as error:
            failures += 1
            if failures >= min(policy.attempts, error.attempts or policy.attempts):
                raise StoreUnavailable(gave_up(failures), found=str(error), cure=cure) from error.__cause__ or error
            time.sleep(policy.wait_s(failures, error.retry_after_s))


def times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
