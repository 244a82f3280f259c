"""Casts that change no value, and casts that may change values, which the user must allow.

`--cast` converts whole numbers to fractions, and wide fractions to narrow ones, by rounding to the nearest. It converts
fractions to whole numbers by cutting off what follows the point, and numbers to bool where they are 0 or 1. Values without a
counterpart (a whole number out of range, a finite one that would become infinite, a NaN in an integer) are errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SIGNIFICAND_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
NUMERIC = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", *_SIGNIFICAND_BITS)


def casts_exactly(source: str, target: str) -> bool:
    """Whether every value of the one dtype is a value of the other; bool counts as 0 and 1."""
    if source not in NUMERIC or target not in NUMERIC or source == "bfloat16":
        return False
    significand = _SIGNIFICAND_BITS.get(target)
    if significand and np.dtype(source).kind in "iu":
        return int(np.iinfo(source).max).bit_length() <= significand
    if target == "bfloat16":
        return source == "bool"
    return np.can_cast(source, target, "safe")


def can_cast(source: str, target: str) -> bool:
    """Whether `cast` knows the pair."""
    return source in NUMERIC and source != "bfloat16" and target in NUMERIC


def is_float(dtype: str) -> bool:
    return dtype in _SIGNIFICAND_BITS


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The dtype of TensorFlow's name; numpy itself has no bfloat16."""
    if dtype != "bfloat16":
        return np.dtype(dtype)
    import tensorflow as tf

    return np.dtype(tf.bfloat16.as_numpy_dtype)


class UncastableError(Exception):
    """The value at `index` (row-major) has no counterpart; `found` shows it. `wrong` are the indices of all such values, and
    `values` is what they are of.
    """

    def __init__(self, wrong: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
        super().__init__(int(wrong[0]), str(values[wrong[0]]))
        self.index, self.found = int(wrong[0]), str(values[wrong[0]])
        self.wrong, self.values = wrong, values


def cast(values: np.ndarray[Any, Any], target: str) -> np.ndarray[Any, Any]:
    """The values in the target dtype, rounded or cut where they must be. Raises `UncastableError`."""
    dtype = numpy_dtype(target)
    if values.dtype == dtype:
        return values
    with np.errstate(all="ignore"):
        if values.dtype == np.bool_ or casts_exactly(values.dtype.name, target):
            return values.astype(dtype)
        if target == "bool":
            _refuse(values, (values != 0) & (values != 1))
            return values == 1
        if is_float(target):
            rounded = _sticky(values).astype(dtype) if target == "bfloat16" else values.astype(dtype)
            if values.dtype.kind == "f":
                _refuse(values, np.isinf(rounded) & ~np.isinf(values))
            elif target == "float16":
                _refuse(values, np.isinf(rounded))
            return rounded
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if values.dtype.kind == "f":
            # Powers of two, which float32 and float64 hold exactly; float16 has none that large.
            wide = np.trunc(values.astype(np.float32) if values.dtype == np.float16 else values)
            _refuse(values, ~((wide >= float(low)) & (wide < float(high + 1))))
            return wide.astype(dtype)
        own = np.iinfo(values.dtype)
        wrong = np.zeros(len(values), np.bool_)
        if int(own.min) < low:
            wrong |= values < low
        if int(own.max) > high:
            wrong |= values > high
        _refuse(values, wrong)
        return values.astype(dtype)


def _sticky(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 that rounds to the same bfloat16 as the values do; rounding to the nearest float32 first would round some twice.

    Where float32 is inexact, the last bit is set: exactly one of the two numbers around a value has it ("round to odd").
    """
    if values.dtype.itemsize == 8 and values.dtype.kind in "iu":
        # Digits that float64 cannot hold are far below a bfloat16's last bit: it only matters that they are not 0.
        low, large = values & 0xFFF, values > 2**53
        if values.dtype.kind == "i":
            large |= values < -(2**53)
        values = np.where(large & (low != 0), values - low + 0x800, values)
    values = values.astype(np.float64)
    nearest = values.astype(np.float32)
    bits = nearest.view(np.int32)
    even = (nearest != values) & np.isfinite(nearest) & (bits & 1 == 0)
    return (bits + even * np.where(np.abs(values) > np.abs(nearest), 1, -1).astype(np.int32)).view(np.float32)


def _refuse(values: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any]) -> None:
    if wrong.any():
        raise UncastableError(np.flatnonzero(wrong), values)
