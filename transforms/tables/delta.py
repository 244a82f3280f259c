"""One version of a Delta table, by the library `deltalake`: https://github.com/delta-io/delta/blob/master/PROTOCOL.md.

The library reads a copy of the part of the log that this version needs, in a temporary folder: so it works in every store that
headrace can list, with the same credentials as all else.
"""

from __future__ import annotations

import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from ..errors import InvalidRequest, ObjectNotFound
from ..shards.deleted_rows import Positions
from ..storage import ObjectRef, Store
from .snapshot import LiveFiles, TableInput

_LOG = "_delta_log/"
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.(?:parquet|\d{10}\.(\d{10})\.parquet|[0-9a-f-]{36}\.(?:json|parquet))")
_READS_AT_ONCE = 16
# Features of a table that a reader must know, as far as headrace reads such tables rightly.
_KNOWN_FEATURES = frozenset(
    ("timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "typeWidening", "typeWidening-preview", "deletionVectors")
)
_VECTORS = re.compile(r"(?:[A-Za-z0-9]+/)?deletion_vector_[0-9a-f-]{36}\.bin")
_WITH_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def read_delta(table: TableInput, store: Store) -> LiveFiles:
    """Raises `InvalidRequest` where there is no such table, or headrace cannot read it correctly, and `ObjectNotFound` where
    its log has no such version.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    with tempfile.TemporaryDirectory(prefix="headrace-delta-") as copy:
        version = _copy_log(table, store, Path(copy, _LOG))
        try:
            opened = DeltaTable(copy)
            if opened.version() != version:
                raise DeltaError(f"version {opened.version()} in place of {version}")
            features = set(opened.protocol().reader_features or ())
            _check_known(table, opened, features)
            if "deletionVectors" in features:
                _copy_vectors(table, store, Path(copy))
            added: Any = pa.table(opened.get_add_actions())
            # Paths in the log are those of a URI: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#add-file-and-remove-file
            uris = [_uri_of(table, unquote(path)) for path in added["path"].to_pylist()]
            values = {name: _texts(table, name, added["partition"]) for name in opened.metadata().partition_columns}
            schema: Any = opened.schema().to_arrow()
            deleted: dict[str, Positions] = {}
            if "deletionVectors" in features:
                deleted = _deleted(opened, copy, dict(zip(added["path"].to_pylist(), uris, strict=True)))
            return LiveFiles(version, pa.schema(schema), uris, values, deleted)
        except (DeltaError, OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise InvalidRequest(
                f"{table.uri} cannot be read as a Delta table",
                expected="a log that the library deltalake reads",
                found=f"{type(error).__name__}: {' '.join(str(error).split())}",
                cure="Fix the table, or write it out as plain Parquet",
            ) from error


def _uri_of(table: TableInput, path: str) -> str:
    if not _WITH_SCHEME.match(path):
        return f"{table.uri}/{path}"
    return re.sub(r"^file:/+", "/", path)


def _copy_log(table: TableInput, store: Store, folder: Path) -> int:
    """The last checkpoint at or before the version that is asked for, and the commits since. Returns the version."""
    commits, checkpoints, sidecars = _log_of(table, store)
    newest = max((*commits, *checkpoints))
    version = newest if table.version is None else table.version
    base = max((at for at in checkpoints if at <= version), default=-1)
    needed = range(base + 1, version + 1)
    if version > newest or any(at not in commits for at in needed):
        first = min((*checkpoints, 0) if 0 in commits else (*checkpoints, newest))
        raise ObjectNotFound(
            f"{table.uri} has no version {version} that can be read",
            expected=f"one of {first} to {newest}",
            found=str(version),
            cure="Name another one, or none for the newest: the log of old versions is cleaned up after a time",
        )
    wanted = [*checkpoints.get(base, ()), *(commits[at] for at in needed), *sidecars]
    if base in commits:
        wanted.append(commits[base])
    folder.mkdir(parents=True)
    (folder / "_sidecars").mkdir()

    def copy(ref: ObjectRef) -> None:
        (folder / ref.uri.rpartition(_LOG)[2]).write_bytes(store.read(ref))

    with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
        list(threads.map(copy, wanted))
    return version


def _log_of(
    table: TableInput, store: Store
) -> tuple[dict[int, ObjectRef], dict[int, list[ObjectRef]], list[ObjectRef]]:
    """Commits and whole checkpoints by their versions, and what checkpoints refer to."""
    commits: dict[int, ObjectRef] = {}
    checkpoints: dict[int, list[ObjectRef]] = {}
    of_several: dict[int, list[ObjectRef]] = {}
    sidecars = []
    log = f"{table.uri}/{_LOG}"
    for ref in store.list(log):
        name = ref.uri.removeprefix(log)
        if match := _COMMIT.fullmatch(name):
            commits[int(match[1])] = ref
        elif match := _CHECKPOINT.fullmatch(name):
            at = int(match[1])
            if match[2] is None:
                checkpoints[at] = [ref]
            else:
                of_several.setdefault(at, []).append(ref)
                if len(of_several[at]) == int(match[2]):
                    checkpoints.setdefault(at, of_several[at])
        elif re.fullmatch(r"_sidecars/[\w.-]+\.parquet", name):
            sidecars.append(ref)
    if not (commits or checkpoints):
        near = next(iter(store.list(f"{table.uri}/")), None)
        raise InvalidRequest(
            f"{table.uri} is not a Delta table",
            expected=f"a log, {log}00000000000000000000.json or later",
            found=f"no such log, but {near.uri}" if near else "nothing there",
            cure="Name the table's folder, as in delta+gs://bucket/table, or plain Parquet files without delta+",
        )
    return commits, checkpoints, sidecars


def _check_known(table: TableInput, opened: Any, features: set[str]) -> None:
    """Raises `InvalidRequest` for a table whose rows are others than its live files hold by the columns' names."""
    unknown = features - _KNOWN_FEATURES
    if opened.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        unknown.add("columnMapping")
    if unknown:
        raise _unknown(table, f"the feature {', '.join(sorted(unknown))}")


def _copy_vectors(table: TableInput, store: Store, copy: Path) -> None:
    """The files of deletion vectors, which are next to the data files."""
    for ref in store.list(f"{table.uri}/"):
        name = ref.uri.removeprefix(f"{table.uri}/")
        if _VECTORS.fullmatch(name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(store.read(ref))


def _deleted(opened: Any, copy: str, uris: dict[str, str]) -> dict[str, Positions]:
    """Deleted rows by the files' URIs; `uris` maps the log's paths to these. The library names files as if in the copy."""
    known = {f"{Path(copy).as_uri()}/{path}": uri for path, uri in uris.items()} | uris
    found: dict[str, Positions] = {}
    for batch in opened.deletion_vectors():
        marked: Any = pa.record_batch(batch)
        for name, kept in zip(marked["filepath"].to_pylist(), marked["selection_vector"], strict=True):
            selected = kept.values.to_numpy(zero_copy_only=False)
            found[known[name]] = np.flatnonzero(~selected.astype(np.bool_))
    return found


def _unknown(table: TableInput, found: str) -> InvalidRequest:
    return InvalidRequest(
        f"{table.name} has {found}, which headrace does not read",
        expected=f"a table of plain names and types, with no reader feature but {', '.join(sorted(_KNOWN_FEATURES))}",
        found=found,
        cure="Write the table out as plain Parquet, and name those files",
    )


def _texts(table: TableInput, name: str, partition: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    values: Any = partition.combine_chunks()
    column = values.field(name)
    if pa.types.is_binary(column.type) or pa.types.is_nested(column.type):
        raise _unknown(table, f"the partition column {name!r} of type {column.type}")
    return column.cast(pa.string())
