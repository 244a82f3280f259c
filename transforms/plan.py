"""Globs to files to Shards. The plan is a pure function of the listing, the footers and the job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import pyarrow as pa

from transforms import progress
from transforms.errors import ColumnError, InvalidRequest, ObjectNotFound
from transforms.job import Job
from transforms.parquet import Footer, read_footer
from transforms.shard import Shard, common_folder, output_name, relative_stem, split_file
from transforms.storage import ObjectRef, Store, StoreOptions, open_store
from transforms.storage.base import public_uri, split_glob

_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Listing:
    """Files in the order of their outputs; how many were passed over."""

    files: tuple[ObjectRef, ...]
    hidden: int = 0
    empty: int = 0


def list_inputs(patterns: tuple[str, ...], options: StoreOptions) -> Listing:
    """Every file that a pattern matches, once. Passes over names that start with `_` or `.` below a pattern's literal
    folder, as Parquet readers do, and objects of zero bytes.

    Raises `ObjectNotFound` where a pattern matches nothing.
    """
    found: set[ObjectRef] = set()
    hidden: set[ObjectRef] = set()
    empty: set[ObjectRef] = set()
    for pattern in patterns:
        if pattern != public_uri(pattern):
            raise InvalidRequest(
                f"--input={public_uri(pattern)} has a query or a user, which would show in the output's names and records",
                cure="Give it without, or copy the file to a bucket.",
            )
        store, folder = open_store(pattern, options), split_glob(pattern)[0]
        matched = False
        for ref in store.glob(pattern):
            matched = True
            _check_name(ref)
            if any(segment[0] in "._" for segment in ref.uri.removeprefix(folder).split("/") if segment):
                hidden.add(ref)
            elif ref.size == 0:
                empty.add(ref)
            else:
                found.add(ref)
        if not matched:
            raise ObjectNotFound(
                f"No file matches --input={pattern}",
                expected="at least one Parquet file",
                found=_what_is_near(store, folder),
                cure="Mend the pattern (quote it in a shell; ** crosses folders), or write the files first",
            )
    if not found:
        raise ObjectNotFound(
            f"Nothing is left to read of --input={', '.join(patterns)}",
            expected="at least one Parquet file whose name starts with neither '_' nor '.'",
            found=f"{len(hidden)} hidden and {len(empty)} empty files",
            cure="Mend the pattern, or write the files first",
        )
    shared = common_folder(patterns)
    files = sorted(found, key=lambda ref: (f"{relative_stem(ref.uri, shared)}-{0:012d}-", ref))
    return Listing(tuple(files), len(hidden), len(empty))


def _check_name(ref: ObjectRef) -> None:
    try:
        ref.uri.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"An input file's name is no UTF-8: {ref.uri!a}",
            cure="Rename it: its output's name and the manifest could not tell of it",
        ) from error


def _what_is_near(store: Store, folder: str) -> str:
    near = [ref.uri for _, ref in zip(range(3), store.list(folder), strict=False)]
    return f"in {folder}: {', '.join(near)}, …" if near else f"nothing in {folder}"


def shards_of_file(job: Job, source: ObjectRef, footer: Footer) -> Iterator[Shard]:
    """Raises `ColumnError` where the file's columns are not those of the job."""
    check_schema(job, source, footer.schema)
    stem = relative_stem(source.uri, common_folder(job.inputs))
    return split_file(source, stem, footer.row_group_rows, footer.row_group_bytes, job.shard_bytes, job.fingerprint)


def check_schema(job: Job, source: ObjectRef, schema: pa.Schema) -> None:
    """Columns may come in another order, and others may be there too."""
    for field in pa.ipc.read_schema(pa.BufferReader(job.input_schema)):
        found = schema.field(field.name).type if field.name in schema.names else None
        if found != field.type:
            raise ColumnError(
                f"{source.uri} differs from the first input file in column {field.name!r}",
                expected=f"{field.name}: {field.type}",
                found=f"{field.name}: {found}" if found else f"columns {', '.join(schema.names)}",
                cure="Leave this file out of --input, or write it again with the same schema",
            )


def plan_shards(job: Job, files: Iterable[ObjectRef]) -> Iterator[Shard]:
    """`PlanShards` without Beam: footers are read by a few threads, little further ahead than the consumer takes."""
    shards = _shards_in_order(job, tuple(files))
    return shards if job.limit is None else _first_rows(job, shards, job.limit)


def _first_rows(job: Job, shards: Iterable[Shard], limit: int) -> Iterator[Shard]:
    """The last shard is cut, and named by what is left of it."""
    folder = common_folder(job.inputs)
    for shard in shards:
        rows = min(shard.rows, limit)
        stem = relative_stem(shard.source.uri, folder)
        name = output_name(stem, shard.source, shard.first_row, rows, job.fingerprint)
        yield replace(shard, output=name, rows=rows)
        limit -= rows
        if not limit:
            return


def _shards_in_order(job: Job, files: tuple[ObjectRef, ...]) -> Iterator[Shard]:
    store = open_store(job.inputs[0], job.storage)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        for start in range(0, len(files), _FOOTERS_AT_ONCE):
            some = files[start : start + _FOOTERS_AT_ONCE]
            for source, footer in zip(some, threads.map(lambda ref: read_footer(store, ref), some), strict=True):
                yield from shards_of_file(job, source, footer)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The one listing of the output folder: name below the folder -> object."""

    objects: dict[str, ObjectRef]


def list_outputs(folder: str, options: StoreOptions) -> Outputs:
    store = open_store(folder, options)
    return Outputs({ref.uri.removeprefix(f"{folder}/"): ref for ref in store.list(f"{folder}/")})


class _ListInputs(beam.DoFn):
    """One element per file; with a limit one element for all, since the first rows need the order."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, _: None) -> Iterator[tuple[ObjectRef, ...]]:
        files = list_inputs(self._job.inputs, self._job.storage).files
        if self._job.limit is not None:
            yield files
        else:
            yield from ((ref,) for ref in files)


class _ReadFooters(beam.DoFn):
    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, files: tuple[ObjectRef, ...]) -> Iterator[Shard]:
        for shard in plan_shards(self._job, files):
            progress.add(shards_planned=1, rows_planned=shard.rows)
            yield shard


class PlanShards(beam.PTransform):
    """PBegin to PCollection[Shard]: lists once, then reads the footers in parallel."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def expand(self, begin: Any) -> beam.PCollection[Shard]:
        return (
            begin
            | "Start" >> beam.Create([None])
            | "List" >> beam.ParDo(_ListInputs(self._job))
            | "Spread" >> beam.Reshuffle()
            | "Footers" >> beam.ParDo(_ReadFooters(self._job)).with_output_types(Shard)
        )
