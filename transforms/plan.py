"""Files to Shards to units of work. The plan is a pure function of the listing, the footers and the job."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsSingleton

from transforms import progress
from transforms.errors import ColumnError
from transforms.job import Job
from transforms.listing import PassedOver, each_input, expand_lists
from transforms.metrics import count_planned
from transforms.parquet import Footer, read_footer
from transforms.shard import Shard, WorkUnit, output_name, partition_values, relative_stem, split_file
from transforms.storage import ObjectRef, StoreOptions, open_store

_FOOTERS_AT_ONCE = 16
# Enough to make little of what a runner spends on an element, and few enough to keep many workers busy.
_MOST_FILES_A_UNIT = 64

Part = TypeVar("Part", ObjectRef, Shard)
# A job as a step is given it: known when the graph is built, or found out by an earlier step, as in a template.
GivenJob: TypeAlias = Job | AsSingleton


def input_files(job: Job) -> Iterator[ObjectRef]:
    """In the order of their URIs; where the job is limited to its first rows, in the order of their outputs, which needs
    the whole listing at once.
    """
    files = each_input(expand_lists(job.inputs, job.storage), job.storage, PassedOver())
    if job.limit is None:
        return files
    return iter(sorted(files, key=lambda ref: (f"{relative_stem(ref.uri, job.folder)}-{0:012d}-", ref)))


def join_small(parts: Iterable[Part], size: Callable[[Part], int], most_bytes: int) -> Iterator[tuple[Part, ...]]:
    """Neighbours together, up to 64 and `most_bytes` in all; what is larger alone stays alone."""
    unit: list[Part] = []
    nbytes = 0
    for part in parts:
        if unit and (nbytes + size(part) > most_bytes or len(unit) == _MOST_FILES_A_UNIT):
            yield tuple(unit)
            unit, nbytes = [], 0
        unit.append(part)
        nbytes += size(part)
    if unit:
        yield tuple(unit)


class _Splitter:
    """One file's footer to its shards; holds what is the same for all files."""

    def __init__(self, job: Job) -> None:
        self._job, self._fingerprint = job, job.fingerprint
        schema: Any = pa.ipc.read_schema(pa.BufferReader(job.input_schema))
        self._fields = [field for field in schema if field.name not in job.partitions]

    def shards(self, source: ObjectRef, footer: Footer) -> Iterator[Shard]:
        self._check_schema(source, footer.schema)
        partitions = self._partitions(source, footer.schema)
        stem = relative_stem(source.uri, self._job.folder)
        rows, sizes = footer.row_group_rows, footer.row_group_bytes
        return split_file(source, stem, rows, sizes, self._job.shard_bytes, self._fingerprint, partitions)

    def first_rows(self, shard: Shard, rows: int) -> Shard:
        """Named by what is left of it."""
        stem = relative_stem(shard.source.uri, self._job.folder)
        name = output_name(stem, shard.source, shard.first_row, rows, self._fingerprint)
        return replace(shard, output=name, rows=rows)

    def _check_schema(self, source: ObjectRef, schema: pa.Schema) -> None:
        """Columns may come in another order, and others may be there too."""
        for field in self._fields:
            found = schema.field(field.name).type if field.name in schema.names else None
            if found != field.type:
                raise ColumnError(
                    f"{source.uri} differs from the first input file in column {field.name!r}",
                    expected=f"{field.name}: {field.type}",
                    found=f"{field.name}: {found}" if found else f"columns {', '.join(schema.names)}",
                    cure="Leave this file out of --input, or write it again with the same schema",
                )

    def _partitions(self, source: ObjectRef, schema: pa.Schema) -> tuple[tuple[str, str | None], ...]:
        if not self._job.partitions:
            return ()
        values = dict(partition_values(source.uri, self._job.folder))
        for key in self._job.partitions:
            if key not in values or key in schema.names:
                raise ColumnError(
                    f"{source.uri} differs from the first input file in the partition column {key!r}",
                    expected=f"a folder {key}=…, and no column of that name in the file",
                    found=f"a column {key!r} in the file" if key in values else "no such folder",
                    cure="Leave this file out of --input, or say --partition_columns=none",
                )
        return tuple((key, values[key]) for key in self._job.partitions)


def shards_of_file(job: Job, source: ObjectRef, footer: Footer) -> Iterator[Shard]:
    """Raises `ColumnError` where the file's columns are not those of the job."""
    return _Splitter(job).shards(source, footer)


def plan_shards(job: Job, files: Iterable[ObjectRef]) -> Iterator[Shard]:
    """Footers are read by a few threads, little further ahead than the consumer takes."""
    splitter = _Splitter(job)
    shards = _shards_in_order(job, splitter, files)
    return shards if job.limit is None else _first_rows(splitter, shards, job.limit)


def _first_rows(splitter: _Splitter, shards: Iterable[Shard], limit: int) -> Iterator[Shard]:
    for shard in shards:
        rows = min(shard.rows, limit)
        yield splitter.first_rows(shard, rows)
        limit -= rows
        if not limit:
            return


def _shards_in_order(job: Job, splitter: _Splitter, files: Iterable[ObjectRef]) -> Iterator[Shard]:
    store = open_store(job.folder, job.storage)
    ahead: deque[tuple[ObjectRef, Future[Footer]]] = deque()
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        for source in files:
            ahead.append((source, threads.submit(read_footer, store, source)))
            if len(ahead) == _FOOTERS_AT_ONCE:
                yield from _shards_of_the_first(splitter, ahead)
        while ahead:
            yield from _shards_of_the_first(splitter, ahead)


def _shards_of_the_first(splitter: _Splitter, ahead: deque[tuple[ObjectRef, Future[Footer]]]) -> Iterator[Shard]:
    source, footer = ahead.popleft()
    return splitter.shards(source, footer.result())


def plan_units(job: Job, files: Iterable[ObjectRef]) -> Iterator[WorkUnit]:
    """`PlanShards` without Beam: small shards together, up to `shard_bytes`."""
    return join_small(plan_shards(job, files), lambda shard: shard.nbytes, job.shard_bytes)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The one listing of the output folder: name below the folder -> object."""

    objects: dict[str, ObjectRef]


def list_outputs(folder: str, options: StoreOptions) -> Outputs:
    store = open_store(folder, options)
    return Outputs({ref.uri.removeprefix(f"{folder}/"): ref for ref in store.list(f"{folder}/")})


class _ListInputs(beam.DoFn):
    """One element for each few files; with a limit one element for all, since the first rows need the order."""

    def process(self, _: None, job: Job) -> Iterator[tuple[ObjectRef, ...]]:
        files = input_files(job)
        if job.limit is not None:
            yield tuple(files)
        else:
            yield from join_small(files, lambda ref: ref.size, job.shard_bytes)


class _ReadFooters(beam.DoFn):
    def process(self, files: tuple[ObjectRef, ...], job: Job) -> Iterator[WorkUnit]:
        for unit in plan_units(job, files):
            rows = sum(shard.rows for shard in unit)
            progress.add(shards_planned=len(unit), rows_planned=rows)
            count_planned(len(unit), rows)
            yield unit


class PlanShards(beam.PTransform):
    """PBegin to PCollection[WorkUnit], each a tuple of Shards: lists once, then reads the footers in parallel."""

    def __init__(self, job: GivenJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, begin: Any) -> beam.PCollection[WorkUnit]:
        return (
            begin
            | "Start" >> beam.Create([None])
            | "List" >> beam.ParDo(_ListInputs(), self._job)
            | "Spread" >> beam.Reshuffle()
            | "Footers" >> beam.ParDo(_ReadFooters(), self._job)
        )
