"""Files that a report reads when all shards are accounted for: some of those found done, and some dead letters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import NotParquet, ObjectChanged, ObjectNotFound
from ..jobs.job import Job
from ..output.dead_letters import COLUMNS as DEAD_LETTER_COLUMNS
from ..parquet.reader import read_footer
from ..shards.column_statistics import Column
from ..shards.measuring import STATISTICS, known_columns
from ..storage import ObjectRef, Store, open_store
from ..storage.store import public_uri
from .account import Account, Bad, Unread
from .html import without_secrets

EXAMPLES = 5
_MOST_REASONS = 50
_ROWS_OF_A_FILE = 10_000
_FOOTERS_AT_ONCE = 8
_REASON_LETTERS = 200


def read_statistics(job: Job, account: Account) -> None:
    """Adds to the account what prediction files that were found done hold of their columns."""
    store = open_store(job.output, job.storage)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        for columns in threads.map(lambda unread: _columns_of(job, store, unread), account.unread):
            account.describe(columns, found_done=True)
    account.settle()


def _columns_of(job: Job, store: Store, unread: Unread) -> Sequence[Column] | None:
    """If a file has gone since it was found, or is damaged, the job's own account of its files reports that."""
    there = ObjectRef(f"{job.output}/{unread.output}", unread.nbytes, unread.version)
    try:
        kept = read_footer(store, there).key_values.get(STATISTICS.encode())
    except (ObjectNotFound, ObjectChanged, NotParquet):
        return None
    return known_columns(None if kept is None else kept.decode(errors="replace"))


def read_dead_letters(job: Job, account: Account) -> None:
    folder = job.on_error.dead_letters
    if folder is None:
        return
    store = open_store(folder, job.storage)
    for _, uri in account.dead_letters:
        for bad in _bad_rows(store, uri):
            account.bad_rows_read += 1
            account.reasons[bad.stage, _reason(bad.error)] += 1
            if len(account.examples) < EXAMPLES:
                account.examples.append(bad)
    account.reasons = Counter(dict(account.reasons.most_common(_MOST_REASONS)))


def _bad_rows(store: Store, uri: str) -> Iterator[Bad]:
    """The first rows of one file, at most `_ROWS_OF_A_FILE`; none where it has gone."""
    try:
        with closing(store.open_arrow(store.stat(uri))) as opened:
            left = _ROWS_OF_A_FILE
            for batch in pq.ParquetFile(opened).iter_batches(columns=DEAD_LETTER_COLUMNS.names):
                for where, row, stage, error in zip(
                    *(batch.column(name)[:left].to_pylist() for name in DEAD_LETTER_COLUMNS.names), strict=True
                ):
                    yield Bad(public_uri(where), row, stage, without_secrets(error))
                left -= batch.num_rows
                if left <= 0:
                    return
    except (ObjectNotFound, ObjectChanged, pa.ArrowException):
        return


def _reason(error: str) -> str:
    """The common part of messages of the same mistake: without numbers, and without the places that they name."""
    text = re.sub(r"\b\w+:///?\S+|(?<![\w.])/\S+", "…", error)
    text = re.sub(r"\d+", "#", text)
    return text[:_REASON_LETTERS]
