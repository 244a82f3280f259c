"""One snapshot of an Iceberg table, by the library `pyiceberg`: https://iceberg.apache.org/spec/.

The library reads metadata and manifests through headrace's own stores. Which metadata file is the table's newest is what a
catalog knows; without one, it is the one of the highest number.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import HeadraceError, InvalidRequest, ObjectNotFound
from ..nested_arrow import value_field, with_fields
from ..shards.deleted_rows import Positions
from ..storage import Store
from .columns import NAMES
from .snapshot import LiveFiles, TableInput

if TYPE_CHECKING:
    from pyiceberg.table import FileScanTask, Table

# Names of tables with a catalog, and of those whose catalog is the folder.
_METADATA = re.compile(r"(?:(\d+)-.*|v(\d+)(?:\.gz)?)\.metadata\.json(?:\.gz)?")
_SCHEME = re.compile(r"^file:/+")


def read_iceberg(table: TableInput, store: Store) -> LiveFiles:
    """Raises `InvalidRequest` where there is no such table, or headrace cannot read it correctly, and `ObjectNotFound` where it
    has no such snapshot.
    """
    _decode_in_python()
    metadata = table.uri if table.root != table.uri else _newest_metadata(table, store)
    try:
        opened = _opened(metadata, store)
        snapshot = opened.current_snapshot() if table.version is None else opened.snapshot_by_id(table.version)
        if snapshot is None:
            raise _no_snapshot(table, metadata, opened)
        # The newest has the table's schema as it is, also where that was changed since it was written.
        current = opened.current_snapshot() == snapshot
        scan = opened.scan(snapshot_id=None if current else snapshot.snapshot_id)
        schema, tasks = scan.projection(), list(scan.plan_files())
        _check_parquet(table, tasks)
        uris = [_SCHEME.sub("/", task.file.file_path) for task in tasks]
        values, deleted = _values(opened, schema, tasks), _deleted(opened, tasks)
        return LiveFiles(snapshot.snapshot_id, _arrow_schema(opened, schema), uris, values, deleted)
    except HeadraceError:
        raise
    except (
        Exception
    ) as error:  # for damaged manifests, the library raises anything that its decoders do, even SystemError
        raise InvalidRequest(
            f"{table.uri} cannot be read as an Iceberg table",
            expected="metadata and manifests that the library pyiceberg reads, and no equality deletes",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}",
            cure="Rewrite the table's data files (rewrite_data_files), or write it out as plain Parquet",
        ) from error


def _decode_in_python() -> None:
    """pyiceberg 0.12's decoder in C trusts the lengths in an Avro file: a damaged manifest makes it read beyond its memory, and
    ends the process. The one in Python does not.
    """
    from pyiceberg.avro import decoder, file

    library: Any = file
    library.new_decoder = decoder.StreamingBinaryDecoder


def _newest_metadata(table: TableInput, store: Store) -> str:
    folder = f"{table.uri}/metadata/"
    found: dict[int, list[str]] = {}
    for ref in store.list(folder):
        if match := _METADATA.fullmatch(ref.uri.removeprefix(folder)):
            found.setdefault(int(match[1] or match[2]), []).append(ref.uri)
    if not found:
        near = next(iter(store.list(f"{table.uri}/")), None)
        raise InvalidRequest(
            f"{table.uri} is not an Iceberg table",
            expected=f"{folder}*.metadata.json",
            found=f"no such file, but {near.uri}" if near else "nothing there",
            cure="Name the table's folder, or its metadata file, as the catalog gives it: iceberg+gs://bucket/table",
        )
    newest = found[max(found)]
    if len(newest) > 1:
        raise InvalidRequest(
            f"{table.uri} has {len(newest)} metadata files of the highest number",
            expected="one, as no catalog is asked which of them counts",
            found=", ".join(newest),
            cure="Name the one that the catalog gives: --input=iceberg+.../metadata/….metadata.json",
        )
    return newest[0]


def _opened(metadata: str, store: Store) -> Table:
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.io import FileIO, InputFile
    from pyiceberg.serializers import FromInputFile
    from pyiceberg.table import StaticTable

    class Stored(InputFile):
        def __len__(self) -> int:
            return store.stat(self.location).size

        def exists(self) -> bool:
            return store.find(self.location) is not None

        def open(self, seekable: bool = True) -> Any:  # noqa: ARG002  # the library's name
            return io.BytesIO(store.read(store.stat(_SCHEME.sub("/", self.location))))

    class StoreIO(FileIO):
        def new_input(self, location: str) -> InputFile:
            return Stored(_SCHEME.sub("/", location))

        def new_output(self, location: str) -> Any:
            raise PermissionError(location)

        def delete(self, location: Any) -> None:
            raise PermissionError(location)

    files = StoreIO()
    read = FromInputFile.table_metadata(files.new_input(metadata))
    return StaticTable(("table",), read, metadata, files, NoopCatalog("none"))


def _no_snapshot(table: TableInput, metadata: str, opened: Table) -> ObjectNotFound:
    known = [str(snapshot.snapshot_id) for snapshot in opened.snapshots()]
    return ObjectNotFound(
        f"{table.uri} has no snapshot {table.version or 'yet'}",
        expected=f"one of {', '.join(known[-5:])}" if known else "a table with rows",
        found=f"{len(known)} snapshots in {metadata}",
        cure="Name another one, or none for the newest: old snapshots expire",
    )


def _check_parquet(table: TableInput, tasks: Iterable[FileScanTask]) -> None:
    for task in tasks:
        if task.file.file_format.value != "PARQUET":
            raise InvalidRequest(
                f"{table.name} has files of another format than Parquet",
                expected="Parquet files",
                found=f"{task.file.file_format.value}: {task.file.file_path}",
                cure="Rewrite the table's data files as Parquet",
            )


def _deleted(opened: Table, tasks: Iterable[FileScanTask]) -> dict[str, Positions]:
    """The rows that delete files and deletion vectors mark, by the files' URIs."""
    # Private to the library, which has no other way to read either without reading the rows too.
    from pyiceberg.io.pyarrow import _read_deletes

    read: dict[str, Any] = {}
    found: dict[str, Positions] = {}
    for task in tasks:
        marked = [np.empty(0, np.int64)]
        for file in task.delete_files:
            if file.file_path not in read:
                read[file.file_path] = _read_deletes(opened.io, file)
            if (positions := read[file.file_path].get(task.file.file_path)) is not None:
                marked.append(positions.to_numpy().astype(np.int64))
        if len(marked) > 1:
            found[_SCHEME.sub("/", task.file.file_path)] = np.unique(np.concatenate(marked))
    return found


def _arrow_schema(opened: Table, schema: Any) -> pa.Schema:
    """The schema with the fields' ids, and with the ids that names mean in files without ids."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    mapping = opened.name_mapping()
    names = {name: field.field_id for field in mapping.root for name in field.names} if mapping else None
    metadata: Any = {NAMES: json.dumps(names)} if names is not None else None
    return pa.schema([_narrow(field) for field in schema_to_pyarrow(schema)], metadata)


_NARROW: dict[pa.DataType, pa.DataType] = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}


def _narrow(field: pa.Field[Any]) -> pa.Field[Any]:
    """With offsets of 32 bits, as files have them."""
    kind = _NARROW.get(field.type, field.type)
    if pa.types.is_large_list(kind):
        kind = pa.list_(value_field(kind))
    return field.with_type(with_fields(kind, _narrow))


def _values(opened: Table, schema: Any, tasks: list[FileScanTask]) -> dict[str, pa.Array[Any]]:
    """The values of columns in files that lack them: the value that a file's partition gives, else the column's default:
    https://iceberg.apache.org/spec/#column-projection.
    """
    from pyiceberg.transforms import IdentityTransform

    specs = opened.specs()
    names = {field.field_id: field.name for field in schema.fields}
    kinds = {field.name: field.type for field in _arrow_schema(opened, schema)}
    found: dict[str, list[Any]] = {
        field.name: [field.initial_default] * len(tasks) for field in schema.fields if field.initial_default is not None
    }
    for i, task in enumerate(tasks):
        for at, field in enumerate(specs[task.file.spec_id].fields):
            if isinstance(field.transform, IdentityTransform) and (name := names.get(field.source_id)) is not None:
                found.setdefault(name, [None] * len(tasks))[i] = task.file.partition[at]
    return {name: _texts(name, values, kinds[name]) for name, values in found.items()}


def _texts(name: str, values: list[Any], kind: pa.DataType) -> pa.Array[Any]:
    """A partition of times is a number: of days, or of microseconds."""
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        raise NotImplementedError(f"a partition column or a default of {name!r}, of type {kind}")
    temporal = pa.types.is_temporal(kind) and all(value is None or isinstance(value, int) for value in values)
    stored: Any = (pa.int32() if kind.bit_width == 32 else pa.int64()) if temporal else kind
    return pa.array(values, stored).cast(kind).cast(pa.string())
