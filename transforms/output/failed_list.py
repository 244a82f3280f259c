"""The list of the shards that failed, in the manifest's folder: a Parquet file, which no `_SUCCESS` ever names. No Beam."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..jobs.job import ASIDE, MANIFEST_FOLDER, Job
from ..shards.shard import FailedShard
from ..storage import ObjectRef, Store, open_store
from .claims import CLAIM_KEY, remove_own

# Each column's type, and its value for a shard.
_COLUMNS: dict[str, tuple[pa.DataType, Callable[[FailedShard], Any]]] = {
    "output": (pa.string(), lambda failure: failure.shard.output),
    "input": (pa.string(), lambda failure: failure.shard.source.uri),
    "input_version": (pa.string(), lambda failure: failure.shard.source.version),
    "first_row": (pa.int64(), lambda failure: failure.shard.first_row),
    "rows": (pa.int64(), lambda failure: failure.shard.rows),
    "error": (pa.string(), lambda failure: type(failure.error).__name__),
    "reason": (pa.string(), lambda failure: failure.reason),
}
_NAME = re.compile(MANIFEST_FOLDER + r"/failed-(?P<claim>\d{8})-[0-9a-f]{16}\.pq")
_SUMMARY = b"headrace.summary"


@dataclass(frozen=True, slots=True)
class FailedSummary:
    """The list for a job that is done except for its failed shards: those and their rows, and what is done; `manifest` names
    parts of the latter, below the output folder.
    """

    shards: int
    rows: int
    failed_shards: int
    failed_rows: int
    manifest: tuple[str, ...]


def is_failed_list(name: str) -> bool:
    """Whether an object's name below the output folder is that of a list."""
    return _NAME.fullmatch(name) is not None


def failed_list_in(text: str) -> str | None:
    """The name that an error's text has."""
    found = _NAME.search(text)
    return found[0] if found else None


def write_failed_list(job: Job, failed: Sequence[FailedShard], shards: int, rows: int, manifest: Iterable[str]) -> str:
    """Its name below the output folder. The same shards with the same reasons make the same file; an earlier one is removed."""
    lost = sum(failure.shard.rows for failure in failed)
    summary = FailedSummary(shards, rows, len(failed), lost, tuple(manifest))
    columns = {name: pa.array(list(map(value, failed)), kind) for name, (kind, value) in _COLUMNS.items()}
    record = {
        b"headrace.job": json.dumps(job.record(), sort_keys=True).encode(),
        CLAIM_KEY.encode(): b"%d" % job.claim,
        _SUMMARY: json.dumps(asdict(summary)).encode(),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, metadata=record), sink, compression="zstd")
    data = sink.getvalue()
    name = f"{MANIFEST_FOLDER}/failed-{job.claim:08d}-{hashlib.sha256(data).hexdigest()[:16]}{ASIDE}"
    store = open_store(job.output, job.storage)
    store.put_same(f"{job.output}/{name}", data)
    for ref in store.list(f"{job.output}/{MANIFEST_FOLDER}/"):
        other = _NAME.fullmatch(ref.uri.removeprefix(f"{job.output}/"))
        if other is not None and other[0] != name and int(other["claim"]) <= job.claim:
            remove_own(store, ref)
    return name


def read_failed_list(store: Store, ref: ObjectRef, most: int) -> tuple[FailedSummary, list[dict[str, Any]]]:
    """The content and the first `most` rows of a list that this job has just written."""
    file = pq.ParquetFile(pa.BufferReader(store.read(ref)))
    said = json.loads(file.schema_arrow.metadata[_SUMMARY])
    summary = FailedSummary(**said | {"manifest": tuple(said["manifest"])})
    first = next(file.iter_batches(batch_size=most), None)
    return summary, [] if first is None else first.to_pylist()
