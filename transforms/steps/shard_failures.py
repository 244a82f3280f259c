"""How a job handles a failed shard: it continues with the others, as far as its policy allows. No Beam."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from copy import copy

from .. import progress
from ..errors import DataError, TooManyFailedShards
from ..jobs.job import Job
from ..predicting.row_failures import blames_rows
from ..shards.shard import FailedShard, Shard

# Limits for further work in one process, once the first failed shard will fail the job.
MOST_FAILED = 10
GO_ON_SECONDS = 60.0

_log = logging.getLogger(__name__)


class ShardFailures:
    """The failures that one DoFn has met.

    A job that a failed shard will fail still continues with other shards: their outputs need not be made again. That
    is bounded, since a fix may change every prediction: it continues for `GO_ON_SECONDS`, or for as long as it had worked if
    that is longer, and until `MOST_FAILED` shards have failed. With `skip_shards` only their number is bounded.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._first: tuple[float, DataError] | None = None
        self._count = 0

    def add(self, job: Job, shard: Shard, error: BaseException) -> FailedShard:
        """Raises `error` where it is not of that shard alone, and where too many failed."""
        if not isinstance(error, DataError) or not blames_rows(error):
            raise error
        error = copy(error)  # without its traceback, which holds the shard's batches and its half-written file
        self._count += 1
        self._first = self._first or (self._clock(), error)
        if job.on_error.skip_shards:
            if self._count > job.on_error.most_shards:
                raise too_many_failed_shards(job, f"{self._count:,} in one worker process", error)
        elif self._count >= MOST_FAILED:
            raise self._first[1]
        then = "" if job.on_error.skip_shards else ", and fails then"
        _log.warning("Shard %s failed. The job goes on with others%s. %s", shard.output, then, error)
        progress.add(shards_failed=1)
        return FailedShard(shard, error)

    def check(self, job: Job) -> None:
        """Called before more work begins: raises the first failure where the job has continued for long enough."""
        if self._first is None or job.on_error.skip_shards:
            return
        failed, error = self._first
        if self._clock() - failed > max(GO_ON_SECONDS, failed - self._began):
            raise error


def too_many_failed_shards(job: Job, found: str, example: DataError) -> TooManyFailedShards:
    return TooManyFailedShards(
        "Too many shards failed",
        expected=f"{job.on_error.most_shards:,} at most (--max_failed_shards)",
        found=f"{found}; one of them: {example}",
        cure="Look at that first; what is done stays. To skip more shards, run the same command with another "
        "--max_failed_shards",
    )
