"""The report's section on shards that failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..columns.wording import counted
from ..errors import row_span
from ..shards.shard import FailedShard
from ..storage.store import public_uri
from .account import Account
from .html import answer, cut, table_html, tail

_NAMED = 50
_LETTERS = 500


def failed_answer(failed: Sequence[FailedShard], account: Account) -> str:
    rows = sum(failure.shard.rows for failure in failed)
    shards = account.shards + len(failed)
    said = (
        f"{len(failed):,} of {counted(shards, 'shard')} failed: {counted(rows, 'row')} have no predictions, and there is no "
        "_SUCCESS. The same command computes only the missing shards."
    )
    return answer("Did it work?", "Not all", said, "bad")


def failed_section(failed: Sequence[FailedShard]) -> Iterator[str]:
    if not failed:
        return
    yield "<section>"
    yield "<h2>Shards that failed</h2>"
    if len(failed) > _NAMED:
        yield f"<p>The first {_NAMED} of {len(failed):,}. The list in the folder of the manifest has all of them.</p>"
    rows = [
        [
            tail(public_uri(failure.shard.source.uri)),
            row_span(failure.shard.first_row, failure.shard.end_row),
            cut(failure.reason, _LETTERS),
        ]
        for failure in failed[:_NAMED]
    ]
    yield table_html(["file", "rows", "reason"], rows, "cnc")
    yield "</section>"
