"""The graph's last step: every shard accounted for, then the manifest, then `_SUCCESS`."""

from __future__ import annotations

import hashlib
import heapq
import io
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.pvalue import AsList, AsSingleton

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
from ..output.claims import CLAIM_KEY, check_claim, claim_uri, discard, exists, prepare_mark, read_claim, remove_own
from ..output.dead_letters import check_dead_letters, first_examples, too_many_bad_rows, unnamed_dead_letters
from ..output.manifest import each_finished, manifest_dead_letters, manifest_versions, outputs_digest, part_claim
from ..parquet.reader import read_footer
from ..report.account import Account
from ..report.write import account_or_none, write_report
from ..shards.shard import Shard, ShardResult, parse_output_name
from ..storage import ObjectRef, Store, open_store
from ..storage.same import create_same
from .plan import GivenJob

_SAMPLE = 10_000

JOINED = pa.struct(
    [
        ("input", pa.string()),
        ("input_bytes", pa.int64()),
        ("input_version", pa.string()),
        ("rows", pa.int64()),
        ("bad_rows", pa.int64()),
        ("batch_splits", pa.list_(pa.struct([("row", pa.int64()), ("rows", pa.int64())]))),
    ]
)

MANIFEST_SCHEMA = pa.schema(
    [
        ("output", pa.string()),
        ("output_bytes", pa.int64()),
        ("output_version", pa.string()),
        ("output_crc32c", pa.uint32()),
        ("input", pa.string()),
        ("input_bytes", pa.int64()),
        ("input_version", pa.string()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("predicted_rows", pa.int64()),
        ("bad_rows", pa.int64()),
        ("dead_letters", pa.string()),
        ("batch_splits", pa.list_(pa.struct([("row", pa.int64()), ("rows", pa.int64())]))),
        ("intra_op_threads", pa.int32()),
        ("device", pa.string()),
        ("read_seconds", pa.float64()),
        ("predict_seconds", pa.float64()),
        ("write_seconds", pa.float64()),
        ("joined", pa.list_(JOINED)),
    ]
)


def manifest_table(results: Iterable[ShardResult]) -> pa.Table:
    """One row per output, in input order. Times are null where the output stood there before this run.

    `rows` of the input are `predicted_rows` in the output and `bad_rows` in the file `dead_letters`, a URI or null.
    `batch_splits` tells where batches were of other than the planned size; see
    `headrace.transforms.predicting.bisection`. Where an output joins files, `input` is the first of them, `rows` and
    `bad_rows` are of all, and `joined` are all of them in the order of their rows; else it is null.
    Raises `OutputIncomplete` where rows of a shard are in neither.
    """
    rows = []
    for result in sorted(results, key=lambda result: result.shard):
        shard = result.shard
        if result.predicted_rows + result.bad_rows != shard.rows:
            raise OutputIncomplete(
                f"{shard.output} does not account for every row of {shard.where}",
                expected=f"{shard.rows} rows",
                found=f"{result.predicted_rows} predicted and {result.bad_rows} bad",
                cure="Remove that file, and run the same command again",
            )
        rows.append(
            {
                "output": shard.output,
                "output_bytes": result.output_bytes,
                "output_version": result.output_version,
                "output_crc32c": result.output_crc32c,
                "input": shard.source.uri,
                "input_bytes": shard.source.size,
                "input_version": shard.source.version,
                "first_row": shard.first_row,
                "rows": shard.rows,
                "predicted_rows": result.predicted_rows,
                "bad_rows": result.bad_rows,
                "dead_letters": result.dead_letters,
                "batch_splits": _splits(result.batch_splits),
                "intra_op_threads": result.intra_op_threads,
                "device": result.device,
                **{f"{stage}_seconds": seconds for stage, seconds in result.seconds.items()},
                "joined": _joined(result) if shard.joined else None,
            }
        )
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def _joined(result: ShardResult) -> list[dict[str, Any]]:
    parts = result.shard.parts
    return [
        {
            "input": part.source.uri,
            "input_bytes": part.source.size,
            "input_version": part.source.version,
            "rows": part.rows,
            "bad_rows": bad,
            "batch_splits": _splits(splits),
        }
        for part, (bad, splits) in zip(parts, result.of_parts or ((0, ()),) * len(parts), strict=True)
    ]


def _splits(splits: Iterable[tuple[int, int]]) -> list[dict[str, int]] | None:
    return [{"row": row, "rows": rows} for row, rows in splits] or None


@dataclass(frozen=True, slots=True)
class ManifestPart:
    """A file of the manifest, by its name below the output folder; parts sort in the order of what they name."""

    number: int
    name: str
    shards: int
    rows: int
    bad_rows: int
    account: Account | None = None


def write_part(job: Job, number: int, results: Iterable[ShardResult]) -> ManifestPart:
    """The results whose names lie between those of the parts before and after."""
    results = list(results)
    table = manifest_table(results)
    sink = io.BytesIO()
    record = {b"headrace.job": json.dumps(job.record(), sort_keys=True).encode(), CLAIM_KEY.encode(): b"%d" % job.claim}
    pq.write_table(table.replace_schema_metadata(record), sink, compression="zstd")
    data = sink.getvalue()
    name = f"{MANIFEST_FOLDER}/part-{number:05d}-{job.claim:08d}-{hashlib.sha256(data).hexdigest()[:16]}{ASIDE}"
    create_same(open_store(job.output, job.storage), f"{job.output}/{name}", data)
    account = account_or_none(job, results)
    rows, bad_rows = (pc.sum(table[name]).as_py() for name in ("rows", "bad_rows"))
    return ManifestPart(number, name, table.num_rows, rows, bad_rows, account)


def finish(job: Job, parts: Iterable[ManifestPart]) -> dict[str, Any]:
    """Holds the manifest against the output folder, writes `_SUCCESS`, and returns what that holds.

    Where an equal run, started at the same time, was first, its manifest and its mark are the ones that stay. What is removed
    was listed while this run's claim was the newest. Raises `ClaimLost` where it is not any more, and leaves no mark then.
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
        "limit": job.limit,
    }
    mark = f"{job.output}/{SUCCESS}"
    try:
        check_claim(job, store)
        summary["digest"] = outputs_digest(job.output, store, names)
        superseded = check_complete(job, names)
        check_bad_rows(job, names, summary["rows"], summary["bad_rows"])
        _remove(job, store, superseded)  # before the mark, with which nobody may find a row twice
        summary = _mark_success(job, store, mark, summary)
    except ObjectNotFound as error:
        check_claim(job, store)
        summary = _mark_of_an_equal_job(store, mark, summary, error)
    if job.on_error.dead_letters is not None:
        _remove(job, store, list(unnamed_dead_letters(job, _named_dead_letters(job, summary["manifest"]))))
    parts_there = [
        (ref.uri.removeprefix(f"{job.output}/"), ref) for ref in store.list(f"{job.output}/{MANIFEST_FOLDER}/")
    ]
    unnamed = [ref for name, ref in parts_there if name not in summary["manifest"] and part_claim(name) <= job.claim]
    _remove(job, store, unnamed)
    if job.report is not None:
        write_report(job, summary["manifest"], [part.account for part in parts if part.account is not None])
    return summary


def _remove(job: Job, store: Store, listed: Sequence[ObjectRef]) -> None:
    """What was listed before the claim is looked at: nothing in it is of a newer claim then."""
    if not listed:
        return
    check_claim(job, store)
    for ref in listed:
        remove_own(open_store(ref.uri, job.storage), ref)


def finalize(job: Job, results: Iterable[ShardResult]) -> dict[str, Any]:
    """`Finalize` without Beam."""
    return finish(job, [write_part(job, 0, results)])


def check_complete(job: Job, parts: Sequence[str]) -> list[ObjectRef]:
    """What stands and is to be removed: files of inputs that changed or vanished, and what a run added that lost its claim.

    Raises `OutputIncomplete` where a file of the plan is gone or is another than was accounted for, `OutputConflict` where one
    stands that is none of it and may not go.
    """
    gone, stray, both, superseded = _Counted(), _Counted(), 0, list[ObjectRef]()
    is_superseded = _Superseded(job)
    for name, version, ref in _planned_and_standing(job, parts):
        if version is not None:
            if ref is None or ref.version != version:
                ref = _asked_for(job, name)  # a listing may lag behind
            if ref is None:
                gone.add(name)
            elif ref.version != version:
                _refuse_replaced(job, name, version, ref)
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
            f"{job.output}/{stray.first} is no part of this job, or of its input as it is now",
            expected=f"the {both} files of the plan",
            found=f"{stray.count} more",
            cure="Name another --output, or add --overwrite to replace the earlier output",
        )
    return superseded


def _asked_for(job: Job, name: str) -> ObjectRef | None:
    try:
        return open_store(job.output, job.storage).stat(f"{job.output}/{name}")
    except ObjectNotFound:
        return None


def _refuse_replaced(job: Job, name: str, version: str, ref: ObjectRef) -> None:
    check_claim(job, open_store(job.output, job.storage))
    raise OutputIncomplete(
        f"{job.output}/{name} was replaced since it was accounted for",
        expected=f"version {version}",
        found=f"version {ref.version}",
        cure="Run the same command again, and leave the output alone meanwhile",
    )


def _planned_and_standing(job: Job, parts: Sequence[str]) -> Iterator[tuple[str, str | None, ObjectRef | None]]:
    """Every name of the manifest or of the output folder: the version that the manifest has of it, and what stands there."""
    store = open_store(job.output, job.storage)
    refs = [store.stat(f"{job.output}/{part}") for part in parts]
    planned: Iterator[tuple[str, str | ObjectRef]] = manifest_versions(store, refs)
    both = heapq.merge(planned, each_finished(job.output, job.storage), key=itemgetter(0))
    for name, found in groupby(both, key=itemgetter(0)):
        there = [one for _, one in found]
        version = next((one for one in there if isinstance(one, str)), None)
        yield name, version, next((one for one in there if isinstance(one, ObjectRef)), None)


class _Superseded:
    """Whether a file that is none of the plan may go: it is this job's own, of an input that has changed or vanished, or a run
    wrote it that has lost its claim since. What it says of itself decides, not its name alone.
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
        fingerprint = said.get(b"headrace.fingerprint", b"").decode()
        if fingerprint[:8] != made.job:
            return False
        own = self._job.incremental and fingerprint == self._job.fingerprint
        return own or 0 < int(said.get(CLAIM_KEY.encode(), b"0")) < self._job.claim


def check_bad_rows(job: Job, parts: Iterable[str], rows: int, bad: int) -> None:
    """Holds the dead letters that the manifest names against what stands, and their number against the job's bound.

    Raises `OutputIncomplete`, and `TooManyBadRows`: also where not a single row was predicted, whatever the bound.
    """
    if job.on_error.dead_letters is None:
        return
    named = _named_dead_letters(job, parts)
    check_dead_letters(job, named)
    allowed = job.on_error.allowed(rows)
    if bad > allowed or 0 < rows == bad:
        examples = first_examples(open_store(job.on_error.dead_letters, job.storage), sorted(named.values()))
        raise too_many_bad_rows(job, f"among the job's {rows:,} rows", allowed if bad < rows else None, bad, examples)


def _named_dead_letters(job: Job, parts: Iterable[str]) -> dict[str, str]:
    store = open_store(job.output, job.storage)
    return dict(manifest_dead_letters(store, (store.stat(f"{job.output}/{part}") for part in parts)))


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
            cure="Run the same command again; it computes nothing that stands",
        ) from gone
    return there


def _mark_success(job: Job, store: Store, uri: str, summary: dict[str, Any]) -> dict[str, Any]:
    """What `_SUCCESS` holds then: an equal run's account of the same files may name another manifest of them.

    It is prepared first: whoever claims the folder takes what is prepared away, and then it cannot be published any more.
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
    if exists(store, claim_uri(job.output, job.claim + 1)):
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
    """Of the same files; the manifest may be another. Earlier versions wrote no claim and no digest."""
    keys = summary.keys() - {"manifest"}
    if there.get("claim") is None and not summary["claim"]:
        keys -= {"claim", "digest"}
    return all(there.get(key) == summary.get(key) for key in keys if key in summary)


class _Account(beam.DoFn):
    """Of plan and results of one output's name: each planned shard has its result."""

    def process(self, element: tuple[str, Iterable[Shard | ShardResult]]) -> Iterator[ShardResult]:
        name, both = element[0], list(element[1])
        planned = [one for one in both if isinstance(one, Shard)]
        results = [one for one in both if isinstance(one, ShardResult)]
        if not results:
            raise OutputIncomplete(
                f"No worker accounts for {name}",
                expected=f"rows {planned[0].first_row} to {planned[0].end_row} of {planned[0].where}",
                cure="Run the same command again; it computes what is missing",
            )
        yield results[0]


class PartBegins(beam.CombineFn):
    """Names of outputs to those that begin the second and later parts, so that each part has about as many outputs: by a
    sample, which is always the same since the names' digests draw it.
    """

    def __init__(self, part_rows: int) -> None:
        self._part_rows = part_rows

    def create_accumulator(self) -> tuple[int, list[tuple[bytes, str]]]:
        return 0, []

    def add_input(self, accumulator: tuple[int, list[tuple[bytes, str]]], name: str) -> Any:
        count, drawn = accumulator
        drawn.append((hashlib.sha256(name.encode()).digest(), name))
        return count + 1, drawn if len(drawn) < 2 * _SAMPLE else self.compact((count, drawn))[1]

    def merge_accumulators(self, accumulators: Iterable[tuple[int, list[tuple[bytes, str]]]]) -> Any:
        counts, samples = zip(*accumulators, strict=True)
        return self.compact((sum(counts), list(chain.from_iterable(samples))))

    def compact(self, accumulator: tuple[int, list[tuple[bytes, str]]]) -> Any:
        count, drawn = accumulator
        return count, heapq.nsmallest(_SAMPLE, drawn)

    def extract_output(self, accumulator: tuple[int, list[tuple[bytes, str]]]) -> list[str]:
        count, drawn = self.compact(accumulator)
        names = sorted(name for _, name in drawn)
        parts = -(-count // self._part_rows)
        return [names[i * len(names) // parts] for i in range(1, parts)]


def _to_part(result: ShardResult, begins: list[str]) -> tuple[int, ShardResult]:
    return bisect_right(begins, result.shard.output), result


class _WritePart(beam.DoFn):
    def process(self, part: tuple[int, Iterable[ShardResult]], job: Job) -> Iterator[ManifestPart]:
        yield write_part(job, *part)


class _Finish(beam.DoFn):
    def process(self, _: bytes, parts: list[ManifestPart], job: Job) -> Iterator[dict[str, Any]]:
        yield finish(job, parts)


class Finalize(beam.PTransform):
    """(PCollection[Shard], PCollection[ShardResult]) to the one element that `_SUCCESS` holds. No worker holds more of the
    manifest than one part.
    """

    def __init__(self, job: GivenJob, part_rows: int = 50_000) -> None:
        super().__init__()
        self._job, self._part_rows = job, part_rows

    def expand(self, joined: tuple[beam.PCollection[Shard], beam.PCollection[ShardResult]]) -> Any:
        planned, results = joined
        # Beam's own joins, combinations with a default, and Create are several steps each, of which every one costs a small
        # job some ten milliseconds.
        by_name = (
            planned | "PlannedByName" >> beam.Map(lambda shard: (shard.output, shard)),
            results | "ResultsByName" >> beam.Map(lambda result: (result.shard.output, result)),
        )
        joined_by_name = by_name | "Both" >> beam.Flatten() | "Join" >> beam.GroupByKey()
        accounted = joined_by_name | "Account" >> beam.ParDo(_Account())
        names = accounted | "Names" >> beam.Map(lambda result: result.shard.output)
        begins = names | "Begins" >> beam.CombineGlobally(PartBegins(self._part_rows)).without_defaults()
        parts = (
            accounted
            | "ToPart" >> beam.Map(_to_part, AsSingleton(begins, default_value=[]))
            | "Parts" >> beam.GroupByKey()
            | "WritePart" >> beam.ParDo(_WritePart(), self._job)
        )
        once = planned.pipeline | "Once" >> beam.Impulse()
        return once | "Finish" >> beam.ParDo(_Finish(), AsList(parts), self._job)
