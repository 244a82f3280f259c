"""Two sides of a comparison brought to one Arrow type in which it is true to the values."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from ..nested_arrow import BINARIES, TEXTS

_WHOLE = pa.decimal128(20, 0)  # holds every int64 and uint64


class NotComparable(Exception):
    """One side is of another kind than the other."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A bool, a number or a text as written."""

    value: Any


def comparable(left: pa.Array[Any] | Constant, right: pa.Array[Any] | Constant) -> tuple[Any, Any]:
    """Both in one type. A number compared with a column of fractions is rounded to the column's type, as numpy does: a float32
    of 0.9 equals 0.9. Whole numbers are compared exactly, and whole numbers with fractions as float64.

    Raises `NotComparable`, and Arrow's errors for a text that is not a date.
    """
    if isinstance(left, Constant):
        if isinstance(right, Constant):
            raise NotComparable
        second, first = _with_constant(right, left.value)
        return first, second
    return _with_constant(left, right.value) if isinstance(right, Constant) else _of_columns(left, right)


def as_doubles(value: pa.Array[Any] | Constant) -> Any:
    """Converts to float64, which all arithmetic uses. Raises `NotComparable` where it is not a number."""
    if isinstance(value, Constant):
        if type(value.value) not in (int, float):
            raise NotComparable
        return pa.scalar(float(value.value), pa.float64())
    if not _is_number(value.type):
        raise NotComparable
    return value.cast(pa.float64(), safe=False)


def _with_constant(array: Any, value: Any) -> tuple[Any, Any]:
    kind = array.type
    if type(value) is bool and pa.types.is_boolean(kind):
        return array, pa.scalar(value)
    if type(value) is str:
        if kind in TEXTS:
            return array.cast(pa.large_string()), pa.scalar(value, pa.large_string())
        if _is_bytes(kind):
            return array.cast(pa.large_binary()), pa.scalar(value.encode("utf-8", "surrogateescape"), pa.large_binary())
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            return array, pa.scalar(value).cast(kind)
    if type(value) in (int, float) and _is_number(kind):
        return _with_number(array, value)
    raise NotComparable


def _with_number(array: Any, value: int | float) -> tuple[Any, Any]:
    kind = array.type
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            rounded = float(np.dtype(kind.to_pandas_dtype()).type(value))
        kind = pa.float32() if pa.types.is_float16(kind) else kind  # which Arrow does not compare
        return array.cast(kind), pa.scalar(rounded, kind)
    if pa.types.is_decimal(kind):
        return array, pa.scalar(Decimal(repr(value)))
    if type(value) is float and value.is_integer() and abs(value) <= 2**64:
        value = int(value)
    if type(value) is float:
        return array.cast(pa.float64(), safe=False), pa.scalar(value)
    limits = np.iinfo(kind.to_pandas_dtype())
    if limits.min <= value <= limits.max:
        return array, pa.scalar(value, kind)
    return array.cast(_WHOLE), pa.scalar(Decimal(value), _WHOLE)


def _of_columns(left: Any, right: Any) -> tuple[Any, Any]:
    kinds = [left.type, right.type]
    if all(kind in TEXTS for kind in kinds):
        return left.cast(pa.large_string()), right.cast(pa.large_string())
    if all(kind in TEXTS or _is_bytes(kind) for kind in kinds):
        return left.cast(pa.large_binary()), right.cast(pa.large_binary())
    if all(map(_is_number, kinds)):
        kind = _number_type(*kinds)
        return left.cast(kind, safe=False), right.cast(kind, safe=False)
    # Times of different units may not fit into one another, which their types do not show.
    if left.type != right.type or not (pa.types.is_boolean(left.type) or pa.types.is_temporal(left.type)):
        raise NotComparable
    return left, right


def _number_type(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    kinds = (left, right)
    if all(map(pa.types.is_integer, kinds)):
        signed = [pa.types.is_signed_integer(kind) for kind in kinds]
        if any(signed) and any(map(pa.types.is_uint64, kinds)):
            return _WHOLE
        return pa.int64() if any(signed) else pa.uint64()
    if all(pa.types.is_float16(kind) or pa.types.is_float32(kind) for kind in kinds):
        return pa.float32()
    return left if left == right else pa.float64()


def _is_bytes(kind: pa.DataType) -> bool:
    return kind in BINARIES or pa.types.is_fixed_size_binary(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
