"""Writes the report at its place, once the run is done, and compares it with an earlier one there."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from ..errors import AlreadyExists, HeadraceError, InvalidRequest, ObjectNotFound
from ..jobs.job import Job
from ..shards.column_statistics import Column
from ..shards.shard import FailedShard
from ..storage import open_store
from ..storage.store import public_uri
from .account import Account, merged
from .kept import Kept, embedded, read_report
from .page import Run, page
from .sampled_files import read_dead_letters, read_statistics

_MOST_KEPT_LETTERS = 400_000

_log = logging.getLogger(__name__)


def write_report(
    job: Job, manifest: Sequence[str], accounts: Iterable[Account], failed: Sequence[FailedShard] = ()
) -> str | None:
    """Its place, or None where it could not be written: the predictions are complete all the same, and the log says why."""
    assert job.report is not None
    try:
        account = merged(accounts)
        read_statistics(job, account)
        read_dead_letters(job, account)
        return _write(job, job.report, tuple(manifest), account, tuple(failed))
    except HeadraceError as error:
        _log.warning("The report could not be written: %s", error)
    except Exception:  # a fault of ours must not fail a job whose predictions are complete
        _log.warning("The report could not be written", exc_info=True)
    return None


def _write(job: Job, place: str, manifest: tuple[str, ...], account: Account, failed: tuple[FailedShard, ...]) -> str:
    store = open_store(place, job.storage)
    existing = store.find(place)
    earlier = None if existing is None else read_report(store, existing)
    if earlier is not None and earlier.manifest == manifest:  # a runner runs the last step again
        return place
    before, compared = earlier, "This is the first report here: there is no earlier run to compare with."
    if earlier is not None:
        compared = "The previous run is that of the report that this one replaced."
    if job.compare is not None:
        before, compared = _named(job, job.compare)
    lasted = account.ended - account.began
    kept = Kept(
        manifest,
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        job.model_digests,
        account.rows,
        account.bad_rows,
        account.computed_rows / lasted if account.computed_shards and lasted > 0 else None,
        tuple(_few(account.columns)),
    )
    data = page(Run(job, account, kept, before, compared, failed)).encode()
    if existing is not None:
        store.delete(existing)
    try:
        with store.create(place) as writer:
            writer.write(data)
            writer.commit()
    except AlreadyExists:  # an equal job, started at the same time, was first
        read_report(store, store.stat(place))
    return place


def _named(job: Job, place: str) -> tuple[Kept | None, str]:
    store = open_store(place, job.storage)
    try:
        found = read_report(store, store.stat(place))
    except (ObjectNotFound, InvalidRequest) as error:
        return None, f"The report to compare with could not be read: {error}"
    return found, f"The previous run is that of the report {public_uri(place)}."


def _few(columns: Iterable[Column]) -> Iterable[Column]:
    """As many as the page has room for."""
    left = _MOST_KEPT_LETTERS
    for column in columns:
        left -= len(embedded(column.dump()))
        if left < 0:
            return
        yield column
