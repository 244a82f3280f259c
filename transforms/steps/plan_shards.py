"""Files to Shards. The plan is a pure function of the listing, the footers and the job. No Beam."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from operator import attrgetter

import pyarrow as pa

from ..columns.plan import MOST_READ_BYTES, is_auto, rows_within
from ..errors import ColumnError, NotParquet, ObjectChanged
from ..jobs.input_files import PassedOver, each_input, expand_lists, together
from ..jobs.job import Job
from ..output.claims import read_claim
from ..output.dead_letters import rows_of_another_schema
from ..parquet.arrow_types import read_alike
from ..parquet.reader import Footer, most_row_bytes, read_footer, repeated_columns
from ..shards.deleted_rows import NONE, Positions, deleted_in, live_rows, pack_positions
from ..shards.partition_types import fits
from ..shards.partitions import partition_values
from ..shards.shard import Shard, join_shards, output_name, relative_stem, source_digest, split_file
from ..storage import ObjectRef, open_store
from ..tables.columns import TableColumns

_FOOTERS_AT_ONCE = 16
# Enough to make little of what a runner spends on an element, and few enough to keep many workers busy.
MOST_FILES_A_UNIT = 64
# After a file of another schema, so many more shards are checked, to name others.
_CHECKED_ON = 64
_NAMED = 5

# The files of one output, with their footers.
_BeingRead = list[tuple[ObjectRef, Future[Footer]]]


def input_files(job: Job) -> Iterator[ObjectRef]:
    """In the order of their URIs; where the job is limited to its first rows, in the order of their outputs, which needs
    the whole listing at once. For a job that has claimed its output, the files that its claim names: one that appeared since
    is left for the next run. Raises `ObjectChanged` where one is missing or was rewritten.
    """
    files = _listed(job) if not job.claim else _claimed(job)
    if job.limit is None:
        return files
    return iter(sorted(files, key=lambda ref: (f"{_stem(job, ref.uri)}-{0:012d}-", ref)))


def _listed(job: Job) -> Iterator[ObjectRef]:
    if job.table is not None:
        return iter(job.table.refs())
    return each_input(expand_lists(job.inputs, job.storage), job.storage, PassedOver())


def _claimed(job: Job) -> Iterator[ObjectRef]:
    """What another run may keep or remove depends on the claim: a file that it does not name may have neither."""
    claim = read_claim(open_store(job.output, job.storage), job.output, job.claim)
    left, appeared = len(claim.sources), ""
    for files in together(_listed(job), job.joined_bytes):
        if claim.has_source(source_digest(*files)):
            left -= 1
            yield from files
        else:
            appeared = appeared or files[0].uri
    if left:
        raise ObjectChanged(
            f"Input files changed or vanished since the job claimed {job.output}",
            expected=f"the {len(claim.sources):,} that were listed then",
            found=f"{left:,} of them missing" + (f", and others such as {appeared}" if appeared else ""),
            cure="Run the same command again once nothing writes to the input. For inputs that change between runs, add "
            "--incremental",
        )


def _stem(job: Job, uri: str) -> str:
    """A table's folders say nothing that its columns do not, and where they do, readers would find a column twice."""
    return relative_stem(uri, job.folder if job.table is None else uri[: uri.rfind("/") + 1])


class _Splitter:
    """One file's footer to its shards; holds what is the same for all files."""

    def __init__(self, job: Job) -> None:
        self._job, self._fingerprint = job, job.fingerprint
        schema = job.schema
        self._sound: pa.Schema | None = None
        self._store = open_store(job.folder, job.storage)
        self._columns = frozenset(schema.names)
        self._fields = [field for field in schema if field.name not in job.partitions]
        self._table = TableColumns(job.table) if job.table is not None else None
        self._kinds = {field.name: field.type for field in schema if field.name in job.partitions}

    def shards(self, source: ObjectRef, footer: Footer) -> Iterator[Shard]:
        values = dict(partition_values(source.uri, self._job.folder)) if self._job.partitions else {}
        drift = self._drift_of_columns(source, footer.schema)
        drift = drift or self._drift_of_partitions(source, footer.schema, values)
        stem = _stem(self._job, source.uri)
        deleted = self._deleted(source, footer)
        rows, sizes = live_rows(footer.row_group_rows, deleted), footer.row_group_bytes
        # For a file that drifts, those that it has.
        keys = [key for key in self._job.partitions if key in values and key not in footer.schema.names]
        partitions = tuple((key, values[key]) for key in keys) or self._lacking(source, footer.schema)
        if drift:  # all that the file has is read then, under its own names
            partitions = tuple(partition for partition in partitions if partition[0] not in footer.schema.names)
        batch_rows = self._batch_rows(source, footer)
        renamed = self._renamed(footer.schema) if not drift else ()
        for shard in split_file(source, stem, rows, sizes, self._job.shard_bytes, self._fingerprint, partitions, drift):
            gone = deleted_in(footer.row_group_rows, shard.row_groups, deleted) if len(deleted) else deleted
            if batch_rows is not None or renamed or len(gone):
                shard = replace(shard, batch_rows=batch_rows, renamed=renamed, deleted=pack_positions(gone))
            yield shard

    def _batch_rows(self, source: ObjectRef, footer: Footer) -> int | None:
        """Rows per batch of a file with rows so large that the job's would hold too many bytes; None where they do not."""
        job = self._job
        if not is_auto(job.batch_rule) or job.jit_compile:
            return None
        groups = list(zip(footer.row_group_unpacked, footer.row_group_rows, strict=False))
        # Some programs record 0 there, or the compressed size: a sum within the file's bytes shows nothing.
        recorded = sum(footer.row_group_unpacked) > sum(footer.row_group_bytes)
        if recorded and all(nbytes * job.batch_rows <= MOST_READ_BYTES * rows for nbytes, rows in groups):
            return None
        names = self._columns.union(stored for _, stored in self._renamed(footer.schema))
        fits = rows_within(most_row_bytes(self._store, source, footer, names))
        return fits if fits < job.batch_rows else None

    def joined(self, parts: list[Shard]) -> Shard:
        return join_shards(parts, _stem(self._job, parts[0].source.uri), self._fingerprint)

    def first_rows(self, shard: Shard, rows: int) -> Shard:
        """Named by what is left of it."""
        stem = _stem(self._job, shard.source.uri)
        name = output_name(stem, shard.source, shard.first_row, rows, self._fingerprint)
        return replace(shard, output=name, rows=rows)

    def _deleted(self, source: ObjectRef, footer: Footer) -> Positions:
        deleted = self._job.table.deleted(source.uri) if self._job.table is not None else NONE
        if len(deleted) and (deleted[0] < 0 or deleted[-1] >= footer.rows):
            raise NotParquet(
                f"{source.uri} lacks rows that its table marks as deleted",
                expected=f"rows {deleted[0]} to {deleted[-1]}",
                found=f"{footer.rows} rows",
                cure="Fix the table: this is not the file that it names",
            )
        return deleted

    def _lacking(self, source: ObjectRef, schema: pa.Schema) -> tuple[tuple[str, str | None], ...]:
        """Columns of a table that the file lacks: partitions, whose values are in the log, and later ones, null there."""
        if self._job.table is None or self._table is None:
            return ()
        if not (names := self._columns.difference(self._table.stored_in(schema) or schema.names)):
            return ()
        values = self._job.table.values(source.uri)
        return tuple((name, values.get(name)) for name in sorted(names))

    def _renamed(self, schema: pa.Schema) -> tuple[tuple[str, str], ...]:
        if self._table is None:
            return ()
        stored = self._table.stored_in(schema) or {}
        return tuple((name, stored[name]) for name in sorted(self._columns & stored.keys()) if stored[name] != name)

    def _drift_of_columns(self, source: ObjectRef, schema: pa.Schema) -> tuple[str, ...]:
        """Columns may come in another order or in another type that is read alike, and there may be other columns.

        Raises `ColumnError` for a column that is there twice: dead letters could not hold its rows either.
        """
        if schema is self._sound:  # `read_footer` gives the same one again for files that are alike
            return ()
        table = self._table
        stored_in = None if table is None else table.stored_in(schema)
        if table is not None and stored_in is None:
            return f"{source.uri} does not say which columns of the table it has", "field ids", "names alone"
        for field in self._fields:
            name = field.name if stored_in is None else stored_in.get(field.name)
            if name is None:
                continue  # it is a constant there
            where = schema.get_all_field_indices(name)
            if len(where) > 1:
                raise repeated_columns(source.uri, schema.names)
            found = schema.field(where[0]).type if where else None
            same = table is None or table.has_same_members(field.name, schema.field(where[0]))
            if found is None or not read_alike(found, field.type) or not same:
                than = "the first input file" if table is None else "the table's schema"
                return (
                    f"{source.uri} differs from {than} in column {field.name!r}",
                    f"{field.name}: {field.type}",
                    f"{field.name}: {found}" if found else f"columns {', '.join(schema.names)}",
                )
        self._sound = schema
        return ()

    def _drift_of_partitions(
        self, source: ObjectRef, schema: pa.Schema, values: dict[str, str | None]
    ) -> tuple[str, ...]:
        for key in self._job.partitions:
            if key not in values or key in schema.names:
                return (
                    f"{source.uri} differs from the first input file in the partition column {key!r}",
                    f"a folder {key}=…, and no column of that name in the file",
                    f"a column {key!r} in the file" if key in values else "no such folder",
                )
            if not fits(values[key], kind := self._kinds[key]):
                return (
                    f"{source.uri} lies in a folder {key}=… of another type than those of the first input files",
                    f"{key}: {kind}",
                    f"{key}={values[key]}",
                )
        return ()


def shards_of_file(job: Job, source: ObjectRef, footer: Footer) -> Iterator[Shard]:
    return _Splitter(job).shards(source, footer)


def plan_shards(job: Job, files: Iterable[ObjectRef]) -> Iterator[Shard]:
    """Footers are read by a few threads, little further ahead than the consumer takes.

    Raises `ColumnError` where a file's columns are not those of the job, naming others of the next files that differ too, and
    `TooManyBadRows` where its rows may go to dead letters and are more than may.
    """
    splitter = _Splitter(job)
    shards = _shards_in_order(job, splitter, files)
    return _without_drift(job, shards if job.limit is None else _first_rows(splitter, shards, job.limit))


def _without_drift(job: Job, shards: Iterator[Shard]) -> Iterator[Shard]:
    """Or with as much of it as may go to dead letters, or may fail as shards of its own."""
    for shard in shards:
        if shard.drift and job.on_error.skip_shards and not job.compact:
            yield shard
            continue
        if shard.drift and (job.on_error.dead_letters is None or job.compact):
            raise _differ(job, [shard, *filter(attrgetter("drift"), islice(shards, _CHECKED_ON))])
        if shard.drift and shard.rows > (allowed := job.on_error.allowed(shard.rows)):
            raise rows_of_another_schema(job, shard, allowed)
        yield shard


def _differ(job: Job, shards: Iterable[Shard]) -> ColumnError:
    found = {shard.source.uri: shard.drift for shard in shards}
    (what, expected, was), *others = found.values()
    if others:
        names = [uri for uri in found if not what.startswith(uri)]
        more = f", … ({len(names):,} in all)" if len(names) > _NAMED else ""
        what += f", and {', '.join(names[:_NAMED])}{more} {'does' if len(names) == 1 else 'do'} too, in some column"
    these, them = ("these files", "them") if others else ("this file", "it")
    may = "; without --compact, which joins files of one schema, you may" if job.compact else ", or"
    cure = (
        f"Leave {these} out of --input, or write {them} again with the same schema (of a partition: or say "
        f"--partition_columns=none){may} let their rows go to dead letters: --on_error=dead_letter, with as many --max_bad_rows"
    )
    return ColumnError(what, expected=expected, found=was, cure=cure)


def _first_rows(splitter: _Splitter, shards: Iterable[Shard], limit: int) -> Iterator[Shard]:
    for shard in shards:
        rows = min(shard.rows, limit)
        yield splitter.first_rows(shard, rows)
        limit -= rows
        if not limit:
            return


def _shards_in_order(job: Job, splitter: _Splitter, files: Iterable[ObjectRef]) -> Iterator[Shard]:
    store = open_store(job.folder, job.storage)
    ahead: deque[_BeingRead] = deque()
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        reading = 0
        for sources in together(files, job.joined_bytes):
            ahead.append([(source, threads.submit(read_footer, store, source)) for source in sources])
            reading += len(sources)
            while reading >= _FOOTERS_AT_ONCE:
                reading -= len(ahead[0])
                yield from _shards_of_files(splitter, ahead.popleft())
        while ahead:
            yield from _shards_of_files(splitter, ahead.popleft())


def _shards_of_files(splitter: _Splitter, files: _BeingRead) -> Iterator[Shard]:
    """The shards of each file, or one shard of the files that share an output; files of another schema are not joined."""
    shards = chain.from_iterable(splitter.shards(source, footer.result()) for source, footer in files)
    if len(files) == 1:
        yield from shards
        return
    parts = list(shards)
    drifting = [part for part in parts if part.drift]
    yield from drifting or [splitter.joined(parts)]
