"""Folders of Delta, Iceberg and Hudi tables among the input: their Parquet files are not their rows.

A table's log names the files that hold its current rows. Files of earlier versions, and rows that are marked as deleted, are
next to them: https://github.com/delta-io/delta/blob/master/PROTOCOL.md, https://iceberg.apache.org/spec/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..errors import InvalidRequest
from ..storage.store import ObjectRef, Store, split_glob

_MARKS = (
    ("Delta", re.compile(r"_delta_log/(?:\d{20}\.(?:json|checkpoint\..*)|_last_checkpoint)")),
    ("Iceberg", re.compile(r"metadata/[^/]*\.metadata\.json(?:\.gz)?")),
    ("Hudi", re.compile(r"\.hoodie/hoodie\.properties")),
)
_READ = {"Delta": "delta", "Iceberg": "iceberg"}
_FOLDERS = ("_delta_log", "metadata", ".hoodie")


class Tables:
    """Searches for a table's own records during one pattern's listing, and above the pattern's folder, where that is within a
    table. A listing is in the order of URIs: all objects of a table are neighbours.
    """

    def __init__(self, store: Store, pattern: str) -> None:
        self._store, self._pattern = store, pattern
        self._folder = split_glob(pattern)[0]
        # A local walk does not enter folders in which nothing can match: their records are asked for by name.
        self._is_local = "://" not in pattern or pattern.startswith("file://")
        self._checked: set[str] = set()
        self._last = ""
        self._root: tuple[str, str, str] | None = None
        self._above = list(_above(store, split_glob(pattern)[0]))

    def note(self, ref: ObjectRef) -> None:
        """An object that does not match. Raises `InvalidRequest` where it is the record of a table whose file matched."""
        if (found := _table_of(ref.uri)) is not None:
            self._root = (*found, ref.uri)
            if self._last.startswith(found[1]):
                raise self._refused(self._last, *self._root)

    def watch(self, matching: Iterator[ObjectRef]) -> Iterator[ObjectRef]:
        """The files that match. Raises `InvalidRequest` where one is of a table."""
        for ref in matching:
            if self._above:
                raise self._refused(ref.uri, *self._above[0])
            if "/_delta_log/" in ref.uri:  # a checkpoint is a Parquet file too: a record, and none of the table's rows
                self.note(ref)
            else:
                if self._is_local:
                    self._check_folders(ref.uri)
                if self._root is not None and ref.uri.startswith(self._root[1]):
                    raise self._refused(ref.uri, *self._root)
                self._last = ref.uri
            yield ref

    def _check_folders(self, file: str) -> None:
        """Checks each folder from the pattern's down to the file's, once."""
        folders = {self._folder}
        for end in re.finditer("/", file[len(self._folder) :]):
            folders.add(file[: len(self._folder) + end.end()])
        for folder in sorted(folders - self._checked):
            if (found := _record_in(self._store, folder)) is not None:
                self._root = found
        self._checked = folders

    def _refused(self, file: str, kind: str, root: str, record: str) -> InvalidRequest:
        return InvalidRequest(
            f"--input={self._pattern} matches files of a {kind} table: {file}",
            expected="Parquet files that are rows as they are",
            found=f"{record}: rows that were deleted or replaced are in the files next to it too",
            cure=(f"Name it as a table: --input={_READ[kind]}+{root.rstrip('/')}. Or: " if kind in _READ else "")
            + "List its current files with its own library, and name that list: --input=@FILE (for a table without rows marked "
            "as deleted), or write it out as plain Parquet",
        )


def _table_of(uri: str) -> tuple[str, str] | None:
    """The format, and the table's folder with its trailing slash, where this is a record of one."""
    for kind, mark in _MARKS:
        folder = uri.rfind("/", 0, uri.rfind("/"))
        if mark.fullmatch(uri, folder + 1):
            return kind, uri[: folder + 1]
    return None


def _above(store: Store, folder: str) -> Iterator[tuple[str, str, str]]:
    """Tables whose partition, or folder of data, this is."""
    while True:
        parent, _, name = folder.rstrip("/").rpartition("/")
        if not ("=" in name or name == "data"):
            return
        folder = f"{parent}/"
        if (found := _record_in(store, folder)) is not None:
            yield found
            return


def _record_in(store: Store, folder: str) -> tuple[str, str, str] | None:
    """Format, folder and record of the table that this folder is."""
    for mark in _FOLDERS:
        for ref in store.list(f"{folder}{mark}/"):
            if (found := _table_of(ref.uri)) is not None and found[1] == folder:
                return (*found, ref.uri)
    return None
