"""Arrow's types as Parquet files have them: how they are read, and which differ only in what a file says of Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class StoredColumns:
    """A file's schema as Arrow gives it, and as it is read; for each leaf of a Parquet schema, in its order, the column that it
    is part of and its type.
    """

    stored: pa.Schema
    schema: pa.Schema
    leaves: tuple[tuple[str, pa.DataType], ...]


def as_read(schema: pa.Schema) -> pa.Schema:
    """The schema with plain strings within structs: pyarrow 25 cannot write slices of views there. And with dictionaries that
    can be joined: those of many row groups may hold more values than one group's narrow indices can name.
    """
    kinds = {i: _plain(kind) for i, kind in enumerate(schema.types) if kind.num_fields or pa.types.is_dictionary(kind)}
    if all(kind == schema.types[i] for i, kind in kinds.items()):
        return schema
    fields = [field.with_type(kinds[i]) if i in kinds else field for i, field in enumerate(schema)]
    return pa.schema(fields, schema.metadata)


def _plain(kind: pa.DataType, *, in_struct: bool = False) -> pa.DataType:
    def field(of: pa.Field) -> pa.Field:
        return of.with_type(_plain(of.type, in_struct=in_struct or pa.types.is_struct(kind)))

    if pa.types.is_dictionary(kind) and kind.index_type.bit_width < 32:
        return pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
    if in_struct and (pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)):
        return pa.string() if pa.types.is_string_view(kind) else pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field(member) for member in kind])
    if pa.types.is_map(kind):
        return pa.map_(field(kind.key_field), field(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(field(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(field(kind.value_field))
    return kind


def leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    """The types of a column's leaves, in the order of a Parquet schema."""
    if isinstance(kind, pa.BaseExtensionType):
        yield from leaves(kind.storage_type)
    elif pa.types.is_nested(kind):
        for i in range(kind.num_fields):
            yield from leaves(kind.field(i).type)
    else:
        yield kind


def nests_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) and any(map(pa.types.is_dictionary, leaves(kind)))


def may_be_long(kind: pa.DataType) -> bool:
    """Whether a leaf's values may each be long, of which a file may hold one for many rows. A dictionary holds it once too."""
    if isinstance(kind, pa.BaseExtensionType):
        return may_be_long(kind.storage_type)
    return not (pa.types.is_primitive(kind) or pa.types.is_dictionary(kind) or pa.types.is_decimal(kind))


def depth(kind: pa.DataType) -> int:
    """Of nesting, without recursion: it may be as deep as it is hostile."""
    levels, level = 0, [kind]
    while level := [one.field(i).type for one in level for i in range(one.num_fields)]:
        levels += 1
    return levels
