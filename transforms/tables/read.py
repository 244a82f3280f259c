"""A table's version, by the library of its format."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from ..errors import InvalidRequest
from ..storage import StoreOptions, open_store
from .delta import read_delta
from .iceberg import read_iceberg
from .snapshot import TableInput, TableSnapshot, pin_snapshot

# For each format, the package that reads it, and how.
_READERS = {"delta": ("deltalake", read_delta), "iceberg": ("pyiceberg", read_iceberg)}


def read_snapshot(table: TableInput, options: StoreOptions) -> TableSnapshot:
    """Raises a `HeadraceError` where the version cannot be had, or its rows are others than its files hold."""
    package, read = _READERS[table.format]
    try:
        import_module(package)
    except ImportError as error:
        cure = f"pip install 'headrace[{table.format}]'"
        raise InvalidRequest(f"--input={table} needs {package}", found=str(error), cure=cure) from error
    store = open_store(table.uri, options)
    live = read(table, store)
    if strange := {scheme_of(uri) for uri in live.uris} - {scheme_of(table.uri)}:
        raise InvalidRequest(
            f"{table.name} has files in another store",
            expected=scheme_of(table.uri),
            found=", ".join(sorted(strange)),
            cure="Copy the table into one store by its own library: its log names its files where they were written",
        )
    return pin_snapshot(replace(table, uri=table.root), live, store)


def scheme_of(uri: str) -> str:
    return uri.partition("://")[0] if "://" in uri else "file"
