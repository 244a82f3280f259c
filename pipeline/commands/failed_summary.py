"""What a job prints on standard output when it is done except for its failed shards."""

from __future__ import annotations

from typing import Any

from headrace.transforms.columns.wording import counted
from headrace.transforms.errors import HeadraceError, ShardsFailed, row_span
from headrace.transforms.jobs.job import Job
from headrace.transforms.output.failed_list import failed_list_in, read_failed_list
from headrace.transforms.report.html import cut
from headrace.transforms.storage import open_store
from headrace.transforms.storage.store import public_uri

from ..checks.report_place import report_is_of, report_line
from ..terminal.answer import Answer

_IN_TEXT, _IN_DOCUMENT = 5, 1000
_REASON_LETTERS = 300


def report_failed(job: Job, error: ShardsFailed, seconds: float) -> Answer | None:
    """Reads the list that the error's text names; None where it has gone, as after an equal run."""
    name = failed_list_in(str(error))
    if name is None:
        return None
    store = open_store(job.output, job.storage)
    try:
        done, named = read_failed_list(store, store.stat(f"{job.output}/{name}"), _IN_DOCUMENT)
    except HeadraceError:
        return None
    document: dict[str, Any] = {
        "output": job.output,
        "complete": False,
        "rows": done.rows,
        "shards": done.shards,
        "failed_rows": done.failed_rows,
        "failed_shards": done.failed_shards,
        "failed_list": f"{job.output}/{name}",
        "failed": named,
        "seconds": round(seconds, 3),
        "report": None,
    }
    shards = counted(done.shards + done.failed_shards, "shard")
    rows = counted(done.rows + done.failed_rows, "row")
    lines = [
        f"NOT complete: {done.failed_shards:,} of {shards} failed; {done.failed_rows:,} of {rows} have no predictions",
        *(
            f"  {public_uri(entry['input'])}, {row_span(entry['first_row'], entry['first_row'] + entry['rows'])}: "
            f"{cut(entry['reason'], _REASON_LETTERS)}"
            for entry in named[:_IN_TEXT]
        ),
    ]
    if (more := done.failed_shards - _IN_TEXT) > 0:
        lines.append(f"  and {more:,} more")
    lines.append(f"Each failed shard, and why: {job.output}/{name}")
    if job.report is not None:
        written = report_is_of(job, (*done.manifest, name))
        document["report"] = public_uri(job.report) if written else None
        lines.append(report_line(job, written))
    return Answer(lines, document)
