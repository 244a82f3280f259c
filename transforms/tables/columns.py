"""How a table's columns are found in its files: by their ids where the table has ids, else by their names."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from .snapshot import TableSnapshot

NAMES = "headrace.names"
"""In a schema's metadata: JSON of the ids that names mean in files without ids."""
_ID = b"PARQUET:field_id"


class TableColumns:
    def __init__(self, table: TableSnapshot) -> None:
        self._fields = list(table.arrow_schema())
        self._has_ids = any(_id_of(field) is not None for field in self._fields)
        names = (table.arrow_schema().metadata or {}).get(NAMES.encode())
        self._ids_of_names: dict[str, int] = json.loads(names) if names else {}
        self._last: tuple[pa.Schema, dict[str, str] | None] | None = None

    def stored_in(self, file: pa.Schema) -> dict[str, str] | None:
        """The file's names of the table's columns that it has. None where nothing identifies them."""
        if self._last is None or self._last[0] is not file:  # footers that are alike share a schema
            self._last = file, self._find(file)
        return self._last[1]

    def _find(self, file: pa.Schema) -> dict[str, str] | None:
        if not self._has_ids:
            return {field.name: field.name for field in self._fields if field.name in file.names}
        ids = {_id_of(field): field.name for field in file}
        if not ids.keys() - {None}:
            if not self._ids_of_names:
                return None
            ids = {self._ids_of_names.get(name): name for name in file.names}
        ids.pop(None, None)
        return {field.name: ids[_id_of(field)] for field in self._fields if _id_of(field) in ids}

    def has_same_members(self, column: str, file: pa.Field[Any]) -> bool:
        """Whether no field within the column is another field under an old name."""
        return _alike(next(field for field in self._fields if field.name == column), file)


def _id_of(field: pa.Field[Any]) -> int | None:
    value = (field.metadata or {}).get(_ID)
    return None if value is None else int(value)


def _alike(wanted: pa.Field[Any], found: pa.Field[Any]) -> bool:
    ids = _id_of(wanted), _id_of(found)
    if None not in ids and ids[0] != ids[1]:
        return False
    if wanted.type.num_fields != found.type.num_fields:  # the types show that
        return True
    return all(_alike(wanted.type.field(i), found.type.field(i)) for i in range(wanted.type.num_fields))
