"""The manifest's parts, read one by one: memory does not grow with the output. No Beam."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from ..errors import DataError, NotParquet
from ..jobs.job import MANIFEST_FOLDER
from ..parquet.reader import read_batches, read_footer
from ..shards.shard import Shard, parse_output_name
from ..storage import ObjectRef, Store, StoreOptions, open_store

_ROWS_AT_ONCE = 1 << 16
_PART = re.compile(MANIFEST_FOLDER + r"/(?:part-\d+|failed)-(?:(?P<claim>\d{8})-)?[0-9a-f]{16}(?:\.pq|\.parquet)")


def is_manifest(name: str) -> bool:
    """Whether headrace gives that name below the output folder to parts of the manifest and lists of failed shards."""
    return name.startswith((f"{MANIFEST_FOLDER}/part-", f"{MANIFEST_FOLDER}/failed-"))


def part_claim(name: str) -> int:
    """The claim under which a part of the manifest, or a list of failed shards, was written, by its name; 0 where an earlier
    version wrote it.
    """
    match = _PART.fullmatch(name)
    return int(match["claim"] or 0) if match else 0


def manifest_outputs(store: Store, parts: Iterable[ObjectRef]) -> Iterator[str]:
    """The names of all outputs, in order. Raises `NotParquet` where a part is damaged."""
    for table in _read_parts(store, parts, ["output"]):
        names: list[Any] = table["output"].to_pylist()
        yield from names


def manifest_versions(store: Store, parts: Iterable[ObjectRef]) -> Iterator[tuple[str, str]]:
    """Name and version of each output, in the order of the names. Raises `NotParquet` where a part is damaged."""
    for table in _read_parts(store, parts, ["output", "output_version"]):
        yield from zip(table["output"].to_pylist(), table["output_version"].to_pylist(), strict=True)


def outputs_digest(output: str, store: Store, parts: Iterable[str]) -> str:
    """SHA-256 (hex) of the lines `name TAB version` of all outputs that the manifest's parts name, sorted by name."""
    digest = hashlib.sha256()
    for name, version in manifest_versions(store, (store.stat(f"{output}/{part}") for part in parts)):
        digest.update(f"{name}\t{version}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def manifest_dead_letters(store: Store, parts: Iterable[ObjectRef]) -> Iterator[tuple[str, str]]:
    """Output and URI of each file of dead letters that is named. Raises `NotParquet` where a part is damaged."""
    for table in _read_parts(store, parts, ["output", "dead_letters"]):
        table = table.filter(table["dead_letters"].is_valid())
        yield from zip(table["output"].to_pylist(), table["dead_letters"].to_pylist(), strict=True)


def _read_parts(store: Store, parts: Iterable[ObjectRef], columns: list[str]) -> Iterator[pa.Table]:
    """As inputs are read, since an output folder may hold anybody's files: page by page, within what such bytes can hold."""
    for part in parts:
        with _as_manifest_error(part):
            footer = read_footer(store, part)
        for name in columns:
            if [field.type for field in footer.schema if field.name == name] != [pa.string()]:
                raise _no_part(
                    part, f"a column {name!r} of texts", footer.schema.to_string(show_schema_metadata=False)[:200]
                )
        shard = Shard("", part, 0, footer.rows, (0, len(footer.row_group_rows)), part.size)
        batches = read_batches(store, shard, columns, _ROWS_AT_ONCE)
        while True:
            with _as_manifest_error(part):
                if (batch := next(batches, None)) is None:
                    break
                batch.validate(full=True)  # texts that are not UTF-8
            if batch[0].null_count:
                raise _no_part(part, "a name in each row", "a row without one")
            yield pa.Table.from_batches([batch])


@contextmanager
def _as_manifest_error(part: ObjectRef) -> Iterator[None]:
    try:
        yield
    except (DataError, pa.ArrowException) as error:
        raise _no_part(part, "a manifest as headrace writes it", str(error)) from error


def _no_part(part: ObjectRef, expected: str, found: str) -> NotParquet:
    return NotParquet(
        f"{part.uri} cannot be read as a part of the manifest",
        expected=expected,
        found=found,
        cure="Run the same command again",
    )


def add_name(digest: hashlib._Hash, name: str) -> None:
    """Adds one of several names, in their order."""
    digest.update(name.encode(errors="surrogateescape") + b"\0")


def each_finished(folder: str, options: StoreOptions) -> Iterator[tuple[str, ObjectRef]]:
    """Each prediction file below the folder, by its name there, in the order of the names."""
    for ref in open_store(folder, options).list(f"{folder}/"):
        name = ref.uri.removeprefix(f"{folder}/")
        if parse_output_name(name) is not None:
            yield name, ref
