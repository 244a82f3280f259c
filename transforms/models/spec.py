"""What a model takes and gives, as plain values that cross to workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """`dtype` is TensorFlow's name ("float32", "bfloat16", "string", …). `shape` includes the batch dimension.

    `None` for a dimension means that it varies, in a ragged output from row to row; `None` for the whole shape, that even
    the rank is not known.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Signature:
    """One callable of a model. Names are what a person says in `--feature` and `--prediction`."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What can be told of a model without fetching its weights.

    `parameters` counts the numbers, `nbytes` the bytes, that loading `signatures` would stream.
    """

    format: str
    signatures: Mapping[str, Signature]
    parameters: int
    nbytes: int
