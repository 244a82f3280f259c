"""The end of a job at once, as a runner with one bundle would bring it about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headrace.transforms.jobs.job import Job
from headrace.transforms.report.account import Account, add_safely
from headrace.transforms.shards.shard import ShardResult
from headrace.transforms.steps.finish import finish, write_part


def account_of(results: Iterable[ShardResult]) -> Account:
    """Merges results that were not merged before."""
    account = Account()
    for result in results:
        add_safely(account, result)
    account.settle()
    return account


def finalize(job: Job, results: Iterable[ShardResult]) -> dict[str, Any]:
    """One part of the manifest, then `finish`."""
    results = list(results)
    return finish(job, [write_part(job, 0, results)], [account_of(results)])
