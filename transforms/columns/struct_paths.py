"""Members of structs by their dotted path."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

import pyarrow as pa

from ..nested_arrow import is_any_list, value_type


def known_name(name: str, known: Container[str]) -> str:
    """The name, or without blanks at its ends where only that is known: people put blanks after commas."""
    return name.strip() if name not in known and name.strip() in known else name


def path_of(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """The top-level column and the members of structs that the name leads through; a whole name wins over a path."""
    if schema.get_all_field_indices(name):
        return (name,)
    tops = (name[: dot.start()] for dot in re.finditer(r"\.", name))
    found = [(places[0], top) for top in tops if (places := schema.get_all_field_indices(top))]
    for place, top in sorted(found):
        if rest := _members(schema.field(place).type, name[len(top) + 1 :]):
            return (top, *rest)
    return None


def _members(kind: pa.DataType, name: str) -> tuple[str, ...] | None:
    while not pa.types.is_struct(kind):
        if not is_any_list(kind):
            return None
        kind = value_type(kind)
    if kind.get_field_index(name) >= 0:
        return (name,)
    for i in range(kind.num_fields):
        own = kind.field(i)
        unique = kind.get_field_index(own.name) >= 0
        if unique and name.startswith(f"{own.name}.") and (rest := _members(own.type, name[len(own.name) + 1 :])):
            return (own.name, *rest)
    return None


def member_type(kind: pa.DataType, path: Sequence[str]) -> pa.DataType:
    """The type that the path leads to from a top-level column of that type."""
    for member in path[1:]:
        while not pa.types.is_struct(kind):
            kind = value_type(kind)
        kind = kind.field(member).type
    return kind


def path_names(schema: pa.Schema) -> list[str]:
    """Columns, and members of those that are structs."""
    names = list(schema.names)
    for field in schema:
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{field.type.field(i).name}" for i in range(field.type.num_fields)]
    return names
