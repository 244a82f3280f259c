"""Inputs that are the same for every row: a value as typed becomes a tensor, once for each batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ColumnError
from ..models.spec import TensorSpec
from .casts import numpy_dtype
from .wording import described, one_each, unknown

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Constant:
    """One input's value. `by_row`: the input has a row for each of the batch, and the value is repeated."""

    spec: TensorSpec
    value: np.ndarray[Any, Any]
    by_row: bool

    def tensor(self, rows: int) -> tf.Tensor:
        import tensorflow as tf

        value = np.broadcast_to(self.value, (rows, *self.value.shape)) if self.by_row else self.value
        return tf.constant(value, self.spec.dtype)


def plan_constants(inputs: Mapping[str, TensorSpec], given: Mapping[str, str]) -> tuple[Constant, ...]:
    """`given` are values as typed: a number, true or false, a text, or a JSON list of these.

    Raises `ColumnError` for a name that is not an input, and for a value of another dtype or shape.
    """
    found = []
    for name, text in given.items():
        if name not in inputs:
            raise unknown("--constant (constants) names no input of the model:", name, "inputs", inputs)
        found.append(_constant(inputs[name], text))
    return tuple(found)


def _constant(spec: TensorSpec, text: str) -> Constant:
    if spec.composite is not None:
        raise ColumnError(
            f"--constant (constants) names the {spec.composite.kind} input '{spec.name}'",
            expected="a dense input",
            found=described(spec),
            cure=f"Feed it from a column of lists: --feature {spec.name}=COLUMN.",
        )
    by_row = bool(spec.shape) and spec.shape is not None and spec.shape[0] is None
    inner = None if spec.shape is None else spec.shape[1:] if by_row else spec.shape
    try:
        value = _value(spec.dtype, text)
        if inner is not None and not value.shape and None not in inner:
            value = np.broadcast_to(value, tuple(size or 0 for size in inner))
        fits = inner is None or (
            len(inner) == value.ndim and all(e in (None, f) for e, f in zip(inner, value.shape, strict=True))
        )
        if not fits:
            raise ValueError(f"a value of shape {list(value.shape)}")
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        several = one_each("--constant", f"{spec.name}={text}")
        raise ColumnError(
            f"--constant (constants) {spec.name}={text[:80]} does not fit the model's input",
            expected=described(spec),
            found=str(error),
            cure=f"{several}."
            if several
            else "Write a number, true or false, a text, or a JSON list of these, of the input's shape.",
        ) from error
    return Constant(spec, value, by_row)


def _value(dtype: str, text: str) -> np.ndarray[Any, Any]:
    """Raises `ValueError`, `TypeError` or `OverflowError`."""
    if dtype == "string":
        listed_texts = json.loads(text) if text.startswith("[") else text
        return np.array(_encoded(listed_texts), object)
    value = json.loads(text.lower() if text.lower() in ("true", "false", "nan", "infinity") else text)
    array = np.array(value)
    kind = array.dtype.kind
    if dtype == "bool":
        if kind != "b":
            raise ValueError(f"{text[:80]} is neither true nor false")
        return array
    if kind not in "iuf":
        raise ValueError(f"{text[:80]} is no number")
    wanted = np.dtype(np.float32) if dtype == "bfloat16" else numpy_dtype(dtype)
    if wanted.kind in "iu" and kind == "f":
        raise ValueError(f"{text[:80]} is no whole number")
    # numpy refuses a whole number that the dtype cannot hold.
    return np.array(value, wanted)


def _encoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value.encode()
