"""One version of a table as a list of files, pinned as they are now. Knows no format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from ..errors import InvalidRequest, ObjectNotFound
from ..nested_arrow import read_schema, with_fields
from ..parquet.arrow_types import as_read
from ..shards.deleted_rows import NONE, Positions, pack_positions, unpack_positions, without_rows
from ..storage.store import ObjectRef, Store

_INPUT = re.compile(r"(?P<format>delta|iceberg)\+(?P<uri>.+?)(?:@(?P<version>\d{1,19}))?", re.DOTALL)
_STATS_AT_ONCE = 32
# A job's list of files travels with each of its steps to the runner; Dataflow takes some tens of MiB in all.
MOST_PACKED_BYTES = 4 << 20
_PINNED = {"uri": pa.string(), "size": pa.int64(), "version": pa.string(), "crc32c": pa.uint32()}
_DELETED, _VALUE = "deleted", "value."


@dataclass(frozen=True, slots=True)
class TableInput:
    """`--input=FORMAT+URI[@VERSION]`. `uri` has no trailing slash; `version` is None for the newest."""

    format: str
    uri: str
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @property
    def root(self) -> str:
        """The table's folder. The URI of an Iceberg table may be that of its metadata file."""
        return re.sub(r"/metadata/[^/]+\.json(\.gz)?$", "", self.uri)

    @property
    def name(self) -> str:
        """The table without a version."""
        return f"{self.format}+{self.uri}"


def parse_table(given: str) -> TableInput | None:
    """None where an --input is not a table."""
    match = _INPUT.fullmatch(given)
    if match is None:
        return None
    version = int(match["version"]) if match["version"] else None
    return TableInput(match["format"], match["uri"].rstrip("/"), version)


@dataclass(frozen=True, slots=True)
class LiveFiles:
    """What a log records about one version. `uris` are the files', each once. `values` are columns with one text for each file:
    the value of each row in a file that lacks the column. `deleted` are rows of files, by URI, that the table no longer has.
    """

    version: int
    schema: pa.Schema
    uris: list[str]
    values: Mapping[str, pa.Array[Any]]
    deleted: Mapping[str, Positions]


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """One version of a table. `schema` is the Arrow IPC form of the table's, `files` a packed list; see `refs` and `values`."""

    format: str
    uri: str
    version: int
    schema: bytes
    files: bytes

    def __str__(self) -> str:
        return f"{self.format.capitalize()} table {self.uri}, version {self.version}"

    @property
    def name(self) -> str:
        return TableInput(self.format, self.uri).name

    def record(self) -> dict[str, Any]:
        return {"format": self.format, "uri": self.uri, "version": self.version}

    def arrow_schema(self) -> pa.Schema:
        """With all that the table says of its fields."""
        return read_schema(self.schema)

    def columns(self) -> pa.Schema:
        """The columns as they are read, by names and types alone: other metadata do not belong to a job."""
        return as_read(pa.schema(list(map(_bare, self.arrow_schema()))))

    def refs(self) -> list[ObjectRef]:
        """The files in the order of their URIs."""
        return list(_unpacked(self.files).refs)

    def values(self, uri: str) -> dict[str, str | None]:
        """The value of each row of that file in columns that the file lacks, as far as the log knows; text, null as None."""
        packed = _unpacked(self.files)
        at = packed.rows.get(uri)
        return {} if at is None else {name: column[at].as_py() for name, column in packed.values.items()}

    def deleted(self, uri: str) -> Positions:
        """The numbers of that file's rows that are marked as deleted."""
        packed = _unpacked(self.files)
        at = packed.rows.get(uri)
        return NONE if at is None else unpack_positions(packed.deleted[at].as_py())


def pin_snapshot(table: TableInput, live: LiveFiles, store: Store) -> TableSnapshot:
    """Raises `ObjectNotFound` where a file of the version is gone or the version has none, and `InvalidRequest` where the files
    are too many to travel with the job.
    """
    if not live.uris:
        raise ObjectNotFound(
            f"Version {live.version} of {table.name} has no rows",
            expected="at least one file",
            found="none",
            cure="Write rows first, or name another version: @VERSION",
        )
    order = sorted(range(len(live.uris)), key=live.uris.__getitem__)
    deleted = [live.deleted.get(live.uris[i], NONE) for i in order]
    pinned = _pinned(table, live, store, [live.uris[i] for i in order])
    refs = [without_rows(ref, rows) for ref, rows in zip(pinned, deleted, strict=True)]
    columns: dict[str, Any] = {
        name: pa.array([getattr(ref, name) for ref in refs], kind) for name, kind in _PINNED.items()
    }
    columns[_DELETED] = pa.array([pack_positions(rows) for rows in deleted], pa.binary())
    for name, values in live.values.items():
        columns[_VALUE + name] = values.take(pa.array(order)).cast(pa.string())
    packed = _packed(pa.table(columns))
    if len(packed) > MOST_PACKED_BYTES:
        raise InvalidRequest(
            f"Version {live.version} of {table.name} has too many files for one job",
            expected=f"a list of files of {MOST_PACKED_BYTES:,} bytes at most, packed",
            found=f"{len(packed):,} bytes for {len(refs):,} files, with the rows that are marked as deleted in them",
            cure="Compact the table (OPTIMIZE, rewrite_data_files), which makes every read of it faster",
        )
    return TableSnapshot(table.format, table.uri, live.version, live.schema.serialize().to_pybytes(), packed)


def _pinned(table: TableInput, live: LiveFiles, store: Store, uris: Iterable[str]) -> list[ObjectRef]:
    def pin(uri: str) -> ObjectRef:
        try:
            return store.stat(uri)
        except ObjectNotFound as error:
            raise ObjectNotFound(
                f"A file of version {live.version} of {table.name} is gone: {uri}",
                expected="all files that the version names",
                found=str(error),
                cure="It was cleaned up (VACUUM, expire_snapshots): name a newer version, or restore the file",
            ) from error

    with ThreadPoolExecutor(_STATS_AT_ONCE) as threads:
        return list(threads.map(pin, uris))


def _bare(field: pa.Field[Any]) -> pa.Field[Any]:
    return pa.field(field.name, with_fields(field.type, _bare), field.nullable)


@dataclass(frozen=True, slots=True)
class _Unpacked:
    refs: tuple[ObjectRef, ...]
    rows: Mapping[str, int]
    deleted: pa.ChunkedArray[Any]
    values: Mapping[str, pa.ChunkedArray[Any]]


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@lru_cache(2)  # a job's steps ask for each file, and each step has a copy of the job
def _unpacked(packed: bytes) -> _Unpacked:
    with pa.ipc.open_stream(packed) as reader:
        table = reader.read_all()
    refs = tuple(ObjectRef(*row) for row in zip(*(table[name].to_pylist() for name in _PINNED), strict=True))
    rows = {ref.uri: i for i, ref in enumerate(refs)}
    values = {name.removeprefix(_VALUE): table[name] for name in table.column_names if name.startswith(_VALUE)}
    return _Unpacked(refs, rows, table[_DELETED], values)
