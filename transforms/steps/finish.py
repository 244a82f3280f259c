"""A job's end: every file accounted for, then the manifest, then `_SUCCESS`. Plain functions, without Beam."""

from __future__ import annotations

import hashlib
import heapq
import io
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

import pyarrow.parquet as pq

from ..columns.wording import counted
from ..errors import (
    AccessDenied,
    AlreadyExists,
    NotParquet,
    ObjectChanged,
    ObjectNotFound,
    OutputConflict,
    OutputIncomplete,
)
from ..jobs.job import ASIDE, MANIFEST_FOLDER, SUCCESS, Job, stored_object
from ..output.claims import CLAIM_KEY, check_claim, claim_uri, discard, prepare_mark, read_claim, remove_own
from ..output.dead_letters import (
    EXAMPLES,
    UriDigests,
    check_dead_letters,
    first_examples,
    too_many_bad_rows,
    unnamed_dead_letters,
)
from ..output.manifest import each_finished, manifest_dead_letters, manifest_versions, outputs_digest, part_claim
from ..output.manifest_table import MANIFEST_SCHEMA, manifest_table
from ..parquet.reader import read_footer
from ..report.account import Account
from ..report.write import write_report
from ..shards.shard import ShardResult, parse_output_name
from ..storage import ObjectRef, Store, open_store

# The most that finishing takes of one worker's memory, however many shards there are: a part of the manifest, a few accounts
# for the report, and what reading and writing Parquet needs. `make bench-edges` shows it.
FINISHING_BYTES = 512 << 20
_ROWS_AT_ONCE = 10_000
_one_table = threading.Lock()
# Measured: 50,000 results, a file of the manifest made of them, and what that takes meanwhile.
_RESULT_BYTES, _JOINED_BYTES, _SPLIT_BYTES = 4096, 1024, 256


@dataclass(frozen=True, slots=True)
class ManifestPart:
    """A file of the manifest, by its name below the output folder; parts sort in the order of what they name."""

    number: int
    name: str
    shards: int
    rows: int
    bad_rows: int
    filtered_rows: int


def held_bytes(result: ShardResult) -> int:
    """About what `write_part` holds of it in memory, at the most."""
    files = len(result.shard.joined)
    splits = len(result.batch_splits) + sum(len(of_one) for *_, of_one in result.of_parts)
    deleted = sum(len(part.deleted) for part in (result.shard, *result.shard.joined))
    return _RESULT_BYTES + deleted + _JOINED_BYTES * files + _SPLIT_BYTES * splits


def write_part(job: Job, number: int, results: Iterable[ShardResult]) -> ManifestPart:
    """The results whose names are between those of the parts before and after."""
    results = sorted(results, key=attrgetter("shard"))
    record = {b"headrace.job": json.dumps(job.record(), sort_keys=True).encode(), CLAIM_KEY.encode(): b"%d" % job.claim}
    # One at a time in a process, whose memory then holds one table, however many cores it has.
    with _one_table:
        data = _parquet(results, record)
    name = f"{MANIFEST_FOLDER}/part-{number:05d}-{job.claim:08d}-{hashlib.sha256(data).hexdigest()[:16]}{ASIDE}"
    open_store(job.output, job.storage).put_same(f"{job.output}/{name}", data)
    rows, bad_rows = sum(result.shard.rows for result in results), sum(result.bad_rows for result in results)
    return ManifestPart(number, name, len(results), rows, bad_rows, sum(result.filtered_rows for result in results))


def _parquet(results: Sequence[ShardResult], record: dict[bytes, bytes]) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, MANIFEST_SCHEMA.with_metadata(record), compression="zstd") as writer:
        for first in range(0, max(1, len(results)), _ROWS_AT_ONCE):
            writer.write_table(manifest_table(results[first : first + _ROWS_AT_ONCE]))
    return sink.getvalue()


def finish(job: Job, parts: Iterable[ManifestPart], accounts: Iterable[Account] = ()) -> dict[str, Any]:
    """Compares the manifest with the output folder, writes `_SUCCESS`, and returns its content.

    If an equal run, started at the same time, was first, its manifest and its mark stay. Only files that were listed while this
    run's claim was the newest are removed. Raises `ClaimLost` where it no longer is, and then leaves no mark.
    """
    store, parts = open_store(job.output, job.storage), sorted(parts, key=lambda part: part.number)
    names = [part.name for part in parts]
    summary: dict[str, Any] = {
        "fingerprint": job.fingerprint,
        "claim": job.claim,
        "manifest": names,
        "shards": sum(part.shards for part in parts),
        "rows": sum(part.rows for part in parts),
        "bad_rows": sum(part.bad_rows for part in parts),
        "filtered_rows": sum(part.filtered_rows for part in parts),
        "limit": job.limit,
    }
    mark = f"{job.output}/{SUCCESS}"
    try:
        check_claim(job, store)
        summary["digest"] = outputs_digest(job.output, store, names)
        superseded = check_complete(job, names)
        check_bad_rows(job, names, summary["rows"], summary["bad_rows"])
        _remove(job, store, superseded)  # before the mark: with it, no row may be there twice
        summary = _mark_success(job, store, mark, summary)
    except ObjectNotFound as error:
        check_claim(job, store)
        summary = _mark_of_an_equal_job(store, mark, summary, error)
    if job.on_error.dead_letters is not None:
        named = UriDigests(_named_dead_letters(job, summary["manifest"]))
        _remove(job, store, list(unnamed_dead_letters(job, named)))
    there = {ref.uri.removeprefix(f"{job.output}/"): ref for ref in store.list(f"{job.output}/{MANIFEST_FOLDER}/")}
    unnamed = there.keys() - set(summary["manifest"])
    _remove(job, store, [ref for name, ref in there.items() if name in unnamed and part_claim(name) <= job.claim])
    if job.report is not None:
        write_report(job, summary["manifest"], accounts)
    return summary


def _remove(job: Job, store: Store, listed: Sequence[ObjectRef]) -> None:
    """Lists before it checks the claim: the listing then has nothing of a newer claim."""
    if not listed:
        return
    check_claim(job, store)
    for ref in listed:
        remove_own(open_store(ref.uri, job.storage), ref)


def check_complete(job: Job, parts: Sequence[str]) -> list[ObjectRef]:
    """Existing files that are to be removed: those of inputs that changed or vanished, and those added by a run that lost its
    claim.

    Raises `OutputIncomplete` where a file of the plan is gone or differs from the one accounted for, `OutputConflict` where a
    file is not part of the plan and may not be removed.
    """
    gone, stray, both, superseded = _Counted(), _Counted(), 0, list[ObjectRef]()
    store, is_superseded = open_store(job.output, job.storage), _Superseded(job)
    for name, version, ref in _planned_and_existing(job, parts):
        if version is not None:
            if ref is None or ref.version != version:
                ref = store.find(f"{job.output}/{name}")  # a listing may lag behind
            if ref is None:
                gone.add(name)
            elif ref.version != version:
                check_claim(job, store)
                raise OutputIncomplete(
                    f"{job.output}/{name} was replaced since it was accounted for",
                    expected=f"version {version}",
                    found=f"version {ref.version}",
                    cure="Run the same command again, and leave the output alone meanwhile",
                )
            else:
                both += 1
        elif ref is not None and is_superseded(name, ref):
            superseded.append(ref)
        elif ref is not None:
            stray.add(name)
    if gone.first is not None:
        raise OutputIncomplete(
            f"{job.output}/{gone.first} has vanished since it was written",
            expected=f"{both + gone.count} prediction files",
            found=str(both),
            cure="Run the same command again; it computes what is missing",
        )
    if stray.first is not None:
        raise OutputConflict(
            f"{job.output}/{stray.first} is not part of this job, or of its input as it is now",
            expected=f"the {both} files of the plan",
            found=f"{stray.count} more",
            cure="Name another --output, or add --overwrite to replace the earlier output",
        )
    return superseded


def _planned_and_existing(job: Job, parts: Sequence[str]) -> Iterator[tuple[str, str | None, ObjectRef | None]]:
    """Every name of the manifest or of the output folder: its version in the manifest, and the existing object."""
    store = open_store(job.output, job.storage)
    refs = [store.stat(f"{job.output}/{part}") for part in parts]
    planned: Iterator[tuple[str, str | ObjectRef]] = manifest_versions(store, refs)
    both = heapq.merge(planned, each_finished(job.output, job.storage), key=itemgetter(0))
    for name, found in groupby(both, key=itemgetter(0)):
        there = [item for _, item in found]
        version = next((item for item in there if isinstance(item, str)), None)
        yield name, version, next((item for item in there if isinstance(item, ObjectRef)), None)


class _Superseded:
    """Whether a file outside the plan may be removed: it is this job's own, of an input that has changed or vanished, or of a
    run that has since lost its claim. Its metadata decide, not its name alone.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._store = job, open_store(job.output, job.storage)
        self._claim = read_claim(self._store, job.output, job.claim) if job.claim else None

    def __call__(self, name: str, ref: ObjectRef) -> bool:
        made = parse_output_name(name)
        if made is None or not (self._job.incremental or self._job.claim):
            return False
        if self._claim is not None and self._claim.owns(made):
            return False
        try:
            said = read_footer(self._store, ref).key_values
        except NotParquet:  # it says nothing of itself
            return False
        except ObjectNotFound:  # a listing may lag behind: it is gone
            return True
        fingerprint = said.get(b"headrace.fingerprint", b"").decode()
        if fingerprint[:8] != made.job:
            return False
        own = self._job.incremental and fingerprint == self._job.fingerprint
        return own or 0 < int(said.get(CLAIM_KEY.encode(), b"0")) < self._job.claim


def check_bad_rows(job: Job, parts: Sequence[str], rows: int, bad: int) -> None:
    """Compares the dead letters that the manifest names with the existing ones, and their number with the job's bound.

    Raises `OutputIncomplete`, and `TooManyBadRows`: also where not a single row was predicted, whatever the bound.
    """
    if job.on_error.dead_letters is None:
        return
    check_dead_letters(job, lambda: _named_dead_letters(job, parts))
    allowed = job.on_error.allowed(rows)
    if bad > allowed or 0 < rows == bad:
        first = heapq.nsmallest(EXAMPLES, _named_dead_letters(job, parts))
        examples = first_examples(open_store(job.on_error.dead_letters, job.storage), first)
        among, most = f"among the job's {counted(rows, 'row')}", allowed if bad < rows else None
        raise too_many_bad_rows(job, among, most, bad, examples)


def _named_dead_letters(job: Job, parts: Iterable[str]) -> Iterator[str]:
    store = open_store(job.output, job.storage)
    for _, uri in manifest_dead_letters(store, (store.stat(f"{job.output}/{part}") for part in parts)):
        yield uri


class _Counted:
    def __init__(self) -> None:
        self.first: str | None = None
        self.count = 0

    def add(self, name: str) -> None:
        self.first = self.first or name
        self.count += 1


def _mark_of_an_equal_job(store: Store, uri: str, summary: dict[str, Any], gone: ObjectNotFound) -> dict[str, Any]:
    """Whoever was first has removed all parts of the manifest but its own."""
    try:
        there = stored_object(store, store.stat(uri))
    except ObjectNotFound:
        there = {}
    if not _says_the_same(there, summary):
        raise OutputIncomplete(
            "A part of the manifest has vanished since it was written",
            expected=", ".join(summary["manifest"]),
            found=str(gone),
            cure="Run the same command again; it computes only what is missing",
        ) from gone
    return there


def _mark_success(job: Job, store: Store, uri: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Returns the final content of `_SUCCESS`: an equal run's account of the same files may name another manifest of them.

    It is prepared first: the next run that claims the folder removes what is prepared, which then cannot be published.
    """
    prepared = prepare_mark(job, store, json.dumps(summary, indent=2).encode() + b"\n")
    try:
        check_claim(job, store)
        store.publish(prepared, uri)
    except AlreadyExists as error:
        check_claim(job, store)
        there = stored_object(store, store.stat(uri))
        if not _says_the_same(there, summary):
            raise OutputConflict(
                f"{uri} is the mark of another run",
                expected=f"claim {job.claim}, digest {summary['digest']}",
                found=f"claim {there.get('claim')}, digest {there.get('digest')}",
                cure="Look at what else writes to this folder, and run the same command again",
            ) from error
        return there
    finally:
        with suppress(AccessDenied):  # who may not remove it leaves it to the next run, whose claim takes it away
            discard(store, prepared.uri)
    if store.find(claim_uri(job.output, job.claim + 1)) is not None:
        _remove_own_mark(store, uri, summary)
        check_claim(job, store)
    return summary


def _remove_own_mark(store: Store, uri: str, summary: dict[str, Any]) -> None:
    try:
        there = store.stat(uri)
        if json.loads(store.read(there)) == summary:
            store.delete(there)
    except (ObjectNotFound, ObjectChanged):  # the run that claimed the folder has removed it
        return


def _says_the_same(there: dict[str, Any], summary: dict[str, Any]) -> bool:
    """Whether both are about the same files; manifests may differ. Earlier versions wrote no claim, digest or filtered rows."""
    keys, there = summary.keys() - {"manifest"}, {"filtered_rows": 0} | there
    if there.get("claim") is None and not summary["claim"]:
        keys -= {"claim", "digest"}
    return all(there.get(key) == summary.get(key) for key in keys if key in summary)
