"""INT96, Spark's classic timestamp, as what it is: an instant in UTC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..nested_arrow import map_of
from .arrow_types import depth
from .arrow_types import leaves as leaves_of
from .thrift import MOST_NESTED


def with_instants(file: pq.ParquetFile, schema: pa.Schema) -> pa.Schema:
    """The file's schema, which is itself where it holds no times. INT96, which its writers (Spark, Hive, Impala) use for
    instants, becomes a time in UTC.
    """
    if not any(map(_may_hold_times, schema.types)):  # a file may have thousands of columns
        return schema
    if max((depth(field.type) for field in schema), default=0) > MOST_NESTED:
        return schema  # the caller refuses it
    at = 0
    for i, field in enumerate(schema):
        leaves = list(leaves_of(field.type))
        if any(pa.types.is_timestamp(leaf) for leaf in leaves):
            instants = iter([file.schema.column(at + j).physical_type == "INT96" for j in range(len(leaves))])
            schema = schema.set(i, field.with_type(_as_instants(field.type, instants)))
        at += len(leaves)
    return schema


def _may_hold_times(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or kind.num_fields > 0 or isinstance(kind, pa.BaseExtensionType)


def _as_instants(kind: pa.DataType, instants: Iterator[bool]) -> pa.DataType:
    """`instants` says for each leaf, in order, whether it is an instant."""

    def inner(field: pa.Field[Any]) -> pa.Field[Any]:
        return field.with_type(_as_instants(field.type, instants))

    if isinstance(kind, pa.BaseExtensionType):
        for _ in leaves_of(kind.storage_type):
            next(instants)
        return kind
    if pa.types.is_struct(kind):
        return pa.struct([inner(member) for member in kind])
    if pa.types.is_map(kind):
        return map_of(inner(kind.key_field), inner(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(inner(kind.value_field))
    if pa.types.is_nested(kind):
        for _ in leaves_of(kind):
            next(instants)
        return kind
    if next(instants) and pa.types.is_timestamp(kind) and kind.tz is None:
        return pa.timestamp(kind.unit, "UTC")
    return kind
