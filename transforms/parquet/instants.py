"""INT96, Spark's classic timestamp, as what it is: an instant in UTC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..nested_arrow import with_fields
from .arrow_types import depth
from .arrow_types import leaves as leaves_of
from .thrift import MOST_NESTED


def with_instants(file: pq.ParquetFile, schema: pa.Schema) -> pa.Schema:
    """The file's schema, which is itself where it holds no times. INT96, which its writers (Spark, Hive, Impala) use for
    instants, becomes a time in UTC.
    """
    kinds = schema.types  # a file may have thousands
    if not any(pa.types.is_timestamp(k) or k.num_fields or isinstance(k, pa.BaseExtensionType) for k in kinds):
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


def _as_instants(kind: pa.DataType, instants: Iterator[bool]) -> pa.DataType:
    """`instants` says for each leaf, in order, whether it is an instant."""

    def inner(field: pa.Field[Any]) -> pa.Field[Any]:
        return field.with_type(_as_instants(field.type, instants))

    if (rebuilt := with_fields(kind, inner)) is not kind:
        return rebuilt
    of_leaves = [next(instants) for _ in leaves_of(kind)]  # one, or those of an extension type or a union
    if pa.types.is_timestamp(kind) and kind.tz is None and of_leaves == [True]:
        return pa.timestamp(kind.unit, "UTC")
    return kind
