"""Arrow's types as Parquet files have them: how they are read, and which differ only in what a file says of Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..nested_arrow import (
    BINARIES,
    TEXTS,
    child,
    flat,
    is_any_list,
    is_list,
    lengths,
    list_size,
    members,
    value_field,
    value_type,
    with_fields,
)


@dataclass(frozen=True, slots=True)
class StoredColumns:
    """A file's schema as Arrow gives it, and as it is read; for each leaf of a Parquet schema, in its order, the column that it
    is part of and its type.

    `nested` are the leaves that are a part of their column only, `long` those whose values may be long, `texts` those that are
    dictionaries of texts, and `apart` the columns of which Arrow can read only one row group at a time.
    """

    stored: pa.Schema
    schema: pa.Schema
    leaves: tuple[tuple[str, pa.DataType], ...]
    nested: frozenset[int]
    long: frozenset[int]
    texts: frozenset[int]
    apart: frozenset[str]

    @classmethod
    def of(cls, stored: pa.Schema) -> StoredColumns:
        columns = [(field, leaf) for field in stored for leaf in leaves(field.type)]
        of_each = tuple((field.name, leaf) for field, leaf in columns)
        return cls(
            stored,
            as_read(stored),
            of_each,
            frozenset(i for i, (field, leaf) in enumerate(columns) if field.type != leaf),
            # A column that is a dictionary itself holds that once, however many rows name its values.
            frozenset(i for i, (_, kind) in enumerate(of_each) if may_be_long(kind)),
            frozenset(i for i, (_, kind) in enumerate(of_each) if is_dictionary_of_texts(kind)),
            frozenset(field.name for field in stored if nests_dictionary(field.type)),
        )


def as_read(schema: pa.Schema) -> pa.Schema:
    """The schema with plain strings within structs: pyarrow 25 cannot write slices of views there. And with dictionaries that
    can be joined: those of many row groups may hold more values than one group's narrow indices can name.
    """
    kinds = {i: _plain(kind) for i, kind in enumerate(schema.types) if kind.num_fields or pa.types.is_dictionary(kind)}
    if all(kind == schema.types[i] for i, kind in kinds.items()):
        return schema
    fields = [field.with_type(kinds[i]) if i in kinds else field for i, field in enumerate(schema)]
    metadata: Any = schema.metadata
    return pa.schema(fields, metadata)


_WITHOUT_VIEWS: dict[pa.DataType, pa.DataType] = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def _plain(kind: pa.DataType, *, in_struct: bool = False) -> pa.DataType:
    def field(of: pa.Field[Any]) -> pa.Field[Any]:
        return of.with_type(_plain(of.type, in_struct=in_struct or pa.types.is_struct(kind)))

    if pa.types.is_dictionary(kind) and kind.index_type.bit_width < 32:
        return pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
    if in_struct and kind in _WITHOUT_VIEWS:
        return _WITHOUT_VIEWS[kind]
    return with_fields(kind, field)


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


def is_dictionary_of_texts(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) and kind.value_type in _STORED_TEXTS


def may_be_long(kind: pa.DataType) -> bool:
    """Whether a leaf's values may be long: a file, like a dictionary, may hold one value once for many rows."""
    if isinstance(kind, pa.BaseExtensionType):
        return may_be_long(kind.storage_type)
    return not (pa.types.is_primitive(kind) or pa.types.is_dictionary(kind) or pa.types.is_decimal(kind))


_STORED_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def depth(kind: pa.DataType) -> int:
    """The depth of nesting, without recursion: a hostile type may be very deep."""
    levels, level = 0, [kind]
    while level := [nested.field(i).type for nested in level for i in range(nested.num_fields)]:
        levels += 1
    return levels


def read_alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether every value of the one type is one of the other: Parquet stores both alike, or the other is wider."""
    if found == wanted or pa.types.is_null(found):
        return True
    if isinstance(found, pa.BaseExtensionType) or isinstance(wanted, pa.BaseExtensionType):
        own = isinstance(found, pa.BaseExtensionType) and isinstance(wanted, pa.BaseExtensionType)
        return not own and read_alike(_stored(found), _stored(wanted))
    if pa.types.is_dictionary(found) or pa.types.is_dictionary(wanted):
        return read_alike(_values(found), _values(wanted))
    if pa.types.is_map(found) or pa.types.is_map(wanted):
        return pa.types.is_map(found) and pa.types.is_map(wanted) and _members_alike(found, wanted)
    if pa.types.is_struct(found) and pa.types.is_struct(wanted):
        return (
            found.names == wanted.names and len(set(found.names)) == len(found.names) and _members_alike(found, wanted)
        )
    if pa.types.is_fixed_size_list(wanted):
        # Only Arrow knows of a length; `as_type` asks each row's.
        same = is_list(found) or (pa.types.is_fixed_size_list(found) and list_size(found) == list_size(wanted))
        return same and read_alike(value_type(found), value_type(wanted))
    if is_list(wanted):
        return is_any_list(found) and read_alike(value_type(found), value_type(wanted))
    return _plain_alike(found, wanted)


def _stored(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _values(kind: pa.DataType) -> pa.DataType:
    return value_type(kind) if pa.types.is_dictionary(kind) else kind


def _members_alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    return all(read_alike(found.field(i).type, wanted.field(i).type) for i in range(found.num_fields))


_FLOAT_BITS = {16: 11, 32: 24, 64: 53}
_UNITS = ("s", "ms", "us", "ns")


def _plain_alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    types = pa.types
    if wanted in TEXTS:
        return found in TEXTS
    if wanted in BINARIES:
        return found in BINARIES or found in TEXTS or types.is_fixed_size_binary(found)
    if types.is_integer(found) and types.is_integer(wanted):
        signed = (types.is_signed_integer(found), types.is_signed_integer(wanted))
        if signed[0] == signed[1]:
            return bool(found.bit_width <= wanted.bit_width)
        return signed == (False, True) and bool(found.bit_width < wanted.bit_width)
    if types.is_integer(found) and types.is_floating(wanted):
        bits = found.bit_width - types.is_signed_integer(found)
        return bool(bits <= _FLOAT_BITS[wanted.bit_width])
    if types.is_floating(found) and types.is_floating(wanted):
        return bool(found.bit_width <= wanted.bit_width)
    if types.is_decimal(found) and types.is_decimal(wanted):
        integer_digits = (found.precision - found.scale, wanted.precision - wanted.scale)
        return bool(found.scale <= wanted.scale and integer_digits[0] <= integer_digits[1])
    if types.is_timestamp(found) and types.is_timestamp(wanted):
        # A zone's name is only Arrow's: Parquet stores all times with a zone as instants. Nanoseconds end in 2262.
        finer = _UNITS.index(found.unit) <= _UNITS.index(wanted.unit) and wanted.unit != "ns"
        return (found.tz is None) == (wanted.tz is None) and (found.unit == wanted.unit or finer)
    if types.is_time(found) and types.is_time(wanted):
        return _UNITS.index(found.unit) <= _UNITS.index(wanted.unit)
    return types.is_date(found) and types.is_date(wanted)


def as_type(array: pa.Array[Any], wanted: pa.DataType) -> pa.Array[Any]:
    """The same values as another type that `read_alike` accepts.

    Raises `pa.ArrowInvalid` for a null where the type has none, and for a value out of its bounds.
    """
    if array.type == wanted:
        return array
    if pa.types.is_null(array.type):
        some: Any = wanted
        return pa.nulls(len(array), some)
    if isinstance(array, pa.ExtensionArray):
        return as_type(array.storage, wanted)
    if isinstance(wanted, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(wanted, as_type(array, wanted.storage_type))
    if isinstance(array, pa.DictionaryArray):
        if pa.types.is_dictionary(wanted) and array.type.value_type == wanted.value_type:
            return pa.DictionaryArray.from_arrays(
                array.indices.cast(wanted.index_type), array.dictionary, ordered=wanted.ordered
            )
        return as_type(array.dictionary_decode(), wanted)
    if pa.types.is_dictionary(wanted):
        encoded = as_type(array, wanted.value_type).dictionary_encode()
        return pa.DictionaryArray.from_arrays(
            encoded.indices.cast(wanted.index_type), encoded.dictionary, ordered=wanted.ordered
        )
    if pa.types.is_nested(wanted):
        return _nested_as(array, wanted)
    if pa.types.is_fixed_size_binary(array.type) and wanted == pa.binary_view():
        array = array.cast(pa.binary())
    return array.cast(wanted)


def _nested_as(array: pa.Array[Any], wanted: pa.DataType) -> pa.Array[Any]:
    missing = array.is_null() if array.null_count else None
    if pa.types.is_map(wanted):
        return array.cast(wanted)
    if pa.types.is_struct(wanted):
        own = [_member_as(member, wanted.field(i), missing) for i, member in enumerate(members(array))]
        return pa.StructArray.from_arrays(own, fields=list(wanted), mask=missing)
    if pa.types.is_fixed_size_list(wanted):
        size = list_size(wanted)
        if pa.types.is_fixed_size_list(array.type):
            values = child(array).slice(array.offset * size, len(array) * size)
        else:
            values = _lists_of(array, size)
        below = None if missing is None else pa.array(np.repeat(missing.to_numpy(zero_copy_only=False), size))
        values = _member_as(values, value_field(wanted), below)
        kind: Any = wanted
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=missing)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_field))
    large = pa.types.is_large_list(wanted)
    sizes = lengths(array).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64 if large else np.int32)
    make = pa.LargeListArray if large else pa.ListArray
    return make.from_arrays(pa.array(offsets), _member_as(flat(array), value_field(wanted)), type=wanted, mask=missing)


def _lists_of(array: pa.Array[Any], size: int) -> pa.Array[Any]:
    """The lists' values, of which each list must have `size`, and as many nulls for each list that is null."""
    sizes = lengths(array).to_numpy(zero_copy_only=False)  # NaN for null
    there = sizes == size
    if not (there | np.isnan(sizes)).all():
        other = int(sizes[~there & ~np.isnan(sizes)][0])
        raise pa.ArrowInvalid(f"a list of {other} where each is of the length {size}")
    if there.all():
        return flat(array)
    values, at = flat(array), 0
    parts: list[pa.Array[Any]] = []
    # Arrow's own cast from lists cannot take views.
    for run in np.split(there, np.flatnonzero(np.diff(there)) + 1):
        count = size * len(run)
        parts.append(values.slice(at, count) if run[0] else pa.nulls(count, values.type))
        at += count if run[0] else 0
    return pa.concat_arrays(parts)


def _member_as(array: pa.Array[Any], wanted: pa.Field[Any], missing: pa.Array[Any] | None = None) -> pa.Array[Any]:
    """`missing` is where the struct around it is null, and may be there alone where the member is required."""
    if not wanted.nullable and array.null_count:
        nulls = array.is_null() if missing is None else pc.and_not(array.is_null(), missing)
        if nulls.true_count:
            raise pa.ArrowInvalid(f"{nulls.true_count} nulls in the member {wanted.name!r}, which is required")
    return as_type(array, wanted.type)
