"""Types of the text in `key=value` folders: the narrowest that holds all values of a key."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pyarrow as pa

_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_BOOLS = {"true": True, "false": False}


def fits(value: str | None, kind: pa.DataType) -> bool:
    """Whether the folder's text, null as None, is a value of that type: int64, float64, date32, bool or string."""
    return value is None or pa.types.is_string(kind) or _parsed(value, kind) is not None


def constant(value: str | None, kind: pa.DataType) -> pa.Scalar[Any]:
    """The value of text that `fits`, or, for other types, of text that Arrow made of a value."""
    if value is None or pa.types.is_string(kind):
        return pa.scalar(value, kind)
    parsed = _parsed(value, kind)
    if parsed is not None:
        return pa.scalar(parsed, kind)
    made: Any = pa.scalar(value, pa.string())
    return made.cast(kind)


def _parsed(text: str, kind: pa.DataType) -> int | float | date | None:
    if pa.types.is_boolean(kind):
        return _BOOLS.get(text.lower())
    if pa.types.is_integer(kind):
        return int(text) if _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63 else None
    if pa.types.is_floating(kind):
        return float(text) if _NUMBER.fullmatch(text) else None
    try:
        return date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        return None


class PartitionTypes:
    """The types that the values of each key may still have; values arrive one by one."""

    def __init__(self) -> None:
        self._left: dict[str, list[pa.DataType]] = {}
        self._seen: set[str] = set()

    def add(self, key: str, value: str | None) -> None:
        left = self._left.setdefault(key, [pa.int64(), pa.float64(), pa.date32(), pa.bool_()])
        if value is not None:
            self._seen.add(key)
            left[:] = [kind for kind in left if fits(value, kind)]

    def of(self, key: str) -> pa.DataType:
        """Text where no other type holds all values, or no value was seen."""
        left = self._left.get(key, [])
        return left[0] if left and key in self._seen else pa.string()
