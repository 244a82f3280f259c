"""The end of a job with failed shards: no `_SUCCESS`. Plain functions, without Beam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from ..columns.wording import counted
from ..errors import DataError, ShardsFailed, TooManyFailedShards
from ..jobs.job import Job
from ..output.claims import check_claim
from ..output.failed_list import write_failed_list
from ..report.account import Account
from ..report.write import write_report
from ..shards.shard import FailedShard
from ..storage import open_store
from .finish import ManifestPart
from .shard_failures import too_many_failed_shards

_FIRST_LETTERS = 600


def fail_for_shards(
    job: Job, parts: Iterable[ManifestPart], failed: Iterable[FailedShard], accounts: Iterable[Account]
) -> NoReturn:
    """Raises the first shard's own error; under `skip_shards` `ShardsFailed` once all are listed and the report is written.

    Finished outputs stay as they are: removing files of inputs that changed or vanished waits for the run that completes the
    job, and so does the mark. Raises `ClaimLost` where another run has claimed the folder, and `TooManyFailedShards`.
    """
    store, parts = open_store(job.output, job.storage), sorted(parts, key=lambda part: part.number)
    failed = sorted(failed, key=lambda failure: failure.shard)
    check_claim(job, store)
    done, first = sum(part.shards for part in parts), failed[0].error
    if not job.on_error.skip_shards:
        raise _with_the_rest(first, len(failed) - 1, done)
    if not done:
        raise TooManyFailedShards(
            f"No shard of {job.output} could be predicted",
            expected="a shard that can be predicted",
            found=f"{counted(len(failed), 'failed shard')}; the first: {first}",
            cure="Fix what it fails on, and run the same command again",
        )
    if len(failed) > job.on_error.most_shards:
        raise too_many_failed_shards(job, f"{len(failed):,}, and {done:,} done", first)
    names, rows = [part.name for part in parts], sum(part.rows for part in parts)
    listed = write_failed_list(job, failed, done, rows, names)
    check_claim(job, store)
    if job.report is not None:
        write_report(job, [*names, listed], accounts, failed)
    shards = done + len(failed)
    what = f"{len(failed):,} of {counted(shards, 'shard')} failed, and {job.output} is not complete"
    raise ShardsFailed(
        what,
        expected="every shard predicted",
        found=f"{job.output}/{listed} lists what failed and why; the first: {failed[0].reason[:_FIRST_LETTERS]}",
        cure="Fix that, and run the same command again: it computes only the missing shards",
    )


def _with_the_rest(first: DataError, others: int, done: int) -> DataError:
    """The same error, which says too that the job's work is not lost."""
    if not done + others:
        return first
    more = f"{counted(others, 'other shard')} failed too. " if others else ""
    stays = f"{counted(done, 'shard')} of the job {'is' if done == 1 else 'are'} done and will not be computed again"
    cure = f"{first.cure.rstrip('.')}. {more}{stays}" if first.cure else f"{more}{stays}"
    return type(first)(first.what, expected=first.expected, found=first.found, cure=cure)
