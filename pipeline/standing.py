"""What the output folder holds already, and taking it: resume, refuse or overwrite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.preflight import Prepared
from transforms.errors import AlreadyExists, OutputConflict
from transforms.job import JOB_RECORD, MANIFEST_FOLDER, SUCCESS, Job, check_same_job, dump_record
from transforms.parquet import read_footer
from transforms.plan import list_outputs
from transforms.shard import common_folder, output_name, parse_output_name, relative_stem
from transforms.storage import ObjectRef, Store, open_store


@dataclass(frozen=True)
class Standing:
    """What the output folder holds of this job before it runs.

    `kept` is the record of the job that stands there, ours or one to be overwritten; `outputs` are the folder's objects by
    name below it; `done` is how many shards of this job stand there; `complete` says that nothing is left to do.
    """

    kept: dict[str, Any] | None
    outputs: dict[str, ObjectRef]
    done: int
    complete: bool


def examine_output(prepared: Prepared, *, overwrite: bool) -> Standing:
    """Raises `OutputConflict` where the folder holds anything that is no part of this job, unless it may be overwritten."""
    job = prepared.job
    store = open_store(job.output, job.storage)
    outputs = list_outputs(job.output, job.storage).objects
    kept = read_record(store, outputs.get(JOB_RECORD))
    if kept is None:
        if strange := sorted(name for name in outputs if name == SUCCESS or name.endswith(".parquet")):
            raise OutputConflict(
                f"{job.output} holds {strange[0]}, and no record of a job of headrace",
                expected="an empty folder, or one that headrace wrote",
                found=f"{len(strange)} Parquet files or marks without {JOB_RECORD}",
                cure="Name another --output; these files are not headrace's to remove",
            )
        return Standing(None, outputs, 0, False)
    if overwrite:
        return Standing(kept, outputs, 0, False)
    check_same_job(job.output, kept, job.record())
    _check_inputs_unchanged(prepared, store, outputs)
    done = [name for name in outputs if parse_output_name(name) is not None]
    return Standing(kept, outputs, len(done), _is_complete(prepared, store, outputs))


def read_record(store: Store, ref: ObjectRef | None) -> dict[str, Any] | None:
    if ref is None:
        return None
    try:
        record = json.loads(store.read(ref))
        digests = [model["digest"] for model in record["models"].values()]
        if not all(isinstance(text, str) for text in (record["fingerprint"], *digests)) or not digests:
            raise TypeError("fingerprint and digest are not text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputConflict(
            f"{ref.uri} is no record of a job",
            expected="JSON with a model and a fingerprint",
            found=f"{type(error).__name__}: {error}",
            cure="Name another --output",
        ) from error
    return dict(record)


def _check_inputs_unchanged(prepared: Prepared, store: Store, outputs: dict[str, ObjectRef]) -> None:
    job, fingerprint, folder = prepared.job, prepared.job.fingerprint, common_folder(prepared.job.inputs)
    sources: dict[str, list[ObjectRef]] = {}
    for source in prepared.listing.files:
        sources.setdefault(relative_stem(source.uri, folder), []).append(source)
    for name in sorted(outputs):
        made = parse_output_name(name)
        if made is None:
            continue
        candidates = sources.get(made.stem, [])
        rows = made.end_row - made.first_row
        if any(name == output_name(made.stem, source, made.first_row, rows, fingerprint) for source in candidates):
            continue
        if made.job != fingerprint[:8]:
            raise OutputConflict(
                f"{job.output}/{name} is the output of another job than the folder's record tells of",
                expected=f"files of job {fingerprint[:8]}",
                found=f"one of job {made.job}",
                cure="Name another --output, or add --overwrite to replace all of it",
            )
        kept = read_footer(store, outputs[name]).key_values
        was_uri, was_version = (
            kept.get(f"headrace.{key}".encode(), b"?").decode() for key in ("input", "input_version")
        )
        now = next((source for source in candidates if source.uri == was_uri), None)
        raise OutputConflict(
            f"{job.output}/{name} was made from an input that has {'been rewritten' if now else 'gone'} since: {was_uri}",
            expected=f"version {was_version} of it",
            found=f"version {now.version}"
            if now
            else f"no such file among the {len(prepared.listing.files)} that match",
            cure="Name another --output, or add --overwrite to predict everything again",
        )


def _is_complete(prepared: Prepared, store: Store, outputs: dict[str, ObjectRef]) -> bool:
    """`_SUCCESS` stands, its manifest covers exactly today's inputs, and every output that it names is there."""
    if SUCCESS not in outputs:
        return False
    try:
        parts = [str(part) for part in json.loads(store.read(outputs[SUCCESS]))["manifest"]]
    except (ValueError, KeyError, TypeError):  # a mark of somebody else's making
        return False
    if not parts or any(part not in outputs or not part.startswith(f"{MANIFEST_FOLDER}/") for part in parts):
        return False
    try:
        table = pa.concat_tables(
            pq.read_table(pa.BufferReader(store.read(outputs[part])), columns=["output", "input", "input_version"])
            for part in parts
        )
    except pa.ArrowException:  # damaged, as only another hand can: the next run writes it anew
        return False
    named = set(table["output"].to_pylist())
    standing = {name for name in outputs if parse_output_name(name) is not None}
    made_from = set(zip(table["input"].to_pylist(), table["input_version"].to_pylist(), strict=True))
    inputs = {(source.uri, source.version) for source in prepared.listing.files}
    covered = made_from <= inputs if prepared.job.limit is not None else made_from == inputs
    return named == standing and covered


def claim_output(prepared: Prepared, standing: Standing, *, overwrite: bool) -> None:
    """The first write of a job: takes `_SUCCESS` away, removes what is to be overwritten, and leaves the job's record.

    Raises `OutputConflict` where another job claimed the folder meanwhile.
    """
    job = prepared.job
    store = open_store(job.output, job.storage)
    replaced = list(_written_by_headrace(store, standing)) if overwrite and standing.kept is not None else []
    if SUCCESS in standing.outputs:
        store.delete(standing.outputs[SUCCESS])
    for ref in replaced:
        store.delete(ref)
    write_record(store, job)


def _written_by_headrace(store: Store, standing: Standing) -> Iterator[ObjectRef]:
    """What the folder's job wrote, and what another that ran at the same time left; the record comes last.

    Raises `OutputConflict` where a file only looks like that.
    """
    assert standing.kept is not None
    mine = str(standing.kept["fingerprint"])[:8]
    for name, ref in standing.outputs.items():
        made = parse_output_name(name)
        if made is not None and made.job != mine and not _says_its_name(store, ref, name, made.stem):
            raise OutputConflict(
                f"{ref.uri} looks like an output of headrace, and is none by its own account",
                expected="Parquet metadata that lead to that name",
                cure="Move it away, or name another --output",
            )
        if made is not None or name.startswith(f"{MANIFEST_FOLDER}/part-"):
            yield ref
    yield standing.outputs[JOB_RECORD]


def _says_its_name(store: Store, ref: ObjectRef, name: str, stem: str) -> bool:
    """Whether the file's own metadata lead to its name."""
    said = read_footer(store, ref).key_values
    try:
        uri, version, first_row, rows, fingerprint = (
            said[f"headrace.{key}".encode()].decode()
            for key in ("input", "input_version", "first_row", "rows", "fingerprint")
        )
        return name == output_name(stem, ObjectRef(uri, 0, version), int(first_row), int(rows), fingerprint)
    except (KeyError, ValueError):
        return False


def write_record(store: Store, job: Job) -> None:
    uri = f"{job.output}/{JOB_RECORD}"
    with store.create(uri) as writer:
        writer.write(dump_record(job.record()))
        try:
            writer.commit()
        except AlreadyExists:
            check_same_job(job.output, read_record(store, store.stat(uri)) or {}, job.record())
