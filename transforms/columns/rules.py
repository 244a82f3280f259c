"""What the user allows beyond casts that never change a value, checked against the signature before any data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..errors import ColumnError
from ..models.spec import TensorSpec
from .wording import described, listed, nearest

PREDICTION_TYPES = ("auto", "list", "tensor")
T = TypeVar("T")
Value = bool | int | float | bytes

_LARGEST = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127"), "float32": float.fromhex("0x1.fffffep127")}
_FLOATS = (*_LARGEST, "float64")
_WHOLE = {
    f"{sign}int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if not sign else (0, 2**bits - 1)
    for bits in (8, 16, 32, 64)
    for sign in ("", "u")
}
_BOOLS = {"true": True, "1": True, "false": False, "0": False}
# Types that hold every whole number from 0 to 255.
_PIXELS = (
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
)


@dataclass(frozen=True, slots=True)
class ColumnRules:
    """What the user allows beyond casts that never change a value. Keys are tensor names; survives pickling; hashable.

    `pad` and `fill` hold values as typed, `decode_image` (height, width) in pixels. `tf_example` has the features to encode
    into serialized tf.train.Example for an input, none for all of them: these features then count as tensors too.
    """

    pad: tuple[tuple[str, str], ...] = ()
    fill: tuple[tuple[str, str], ...] = ()
    cast: tuple[str, ...] = ()
    decode_image: tuple[tuple[str, tuple[int, int]], ...] = ()
    tf_example: tuple[tuple[str, tuple[str, ...]], ...] = ()
    prediction_type: str = "auto"


@dataclass(frozen=True, slots=True)
class TensorRule:
    """The rules of one tensor of `dtype`; `image` is (height, width, channels).

    `optional` leaves rows out that are null, and `ragged` lists as long as they are, both for a parser that takes that.
    `lists` is how many of the outermost levels of lists stay as long as they are, for a ragged or sparse tensor.
    """

    tensor: str
    dtype: str
    pad: Value | None = None
    fill: Value | None = None
    cast: bool = False
    image: tuple[int, int, int] | None = None
    optional: bool = False
    ragged: bool = False
    lists: int = 0


def tensor_rules(rules: ColumnRules, inputs: Mapping[str, TensorSpec]) -> dict[str, TensorRule]:
    """One rule for each input. Raises `ColumnError` for names that are not inputs, and values of another dtype."""
    pads = by_tensor("--pad", rules.pad, inputs)
    fills = by_tensor("--fill", rules.fill, inputs)
    images = by_tensor("--decode_image", rules.decode_image, inputs)
    casts = by_tensor("--cast", ((tensor, True) for tensor in dict.fromkeys(rules.cast)), inputs)
    found = {}
    for name, spec in inputs.items():
        image = _image(spec, images[name]) if name in images else None
        if image is not None:
            for flag, others in (("--pad", pads), ("--fill", fills), ("--cast", casts)):
                if name in others:
                    raise ColumnError(
                        f"{flag} and --decode_image both name tensor '{name}'",
                        expected="a decodable image in every row",
                        cure=f"Leave {flag} out for '{name}'; drop rows without an image, or send them to dead letters.",
                    )
        if spec.composite is not None and name in pads:
            raise ColumnError(
                f"--pad names the {spec.composite.kind} input '{name}', which needs none",
                expected="lists of any length",
                cure=f"Leave --pad for '{name}' out.",
            )
        found[name] = TensorRule(
            name,
            spec.dtype,
            pad=_value("--pad", spec, pads[name]) if name in pads else None,
            fill=_value("--fill", spec, fills[name]) if name in fills else None,
            cast=name in casts,
            image=image,
            lists=spec.lists,
        )
    return found


def by_tensor(flag: str, given: Iterable[tuple[str, T]], inputs: Mapping[str, TensorSpec]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, value in given:
        if name not in inputs:
            raise ColumnError(
                f"{flag} names '{name}', but the model lacks that input",
                found=listed("inputs", inputs),
                cure=nearest(name, inputs),
            )
        if name in found:
            raise ColumnError(f"{flag} names tensor '{name}' twice", cure="Give it once for each tensor.")
        found[name] = value
    return found


def _value(flag: str, spec: TensorSpec, text: str) -> Value:
    """The text as a value of the tensor's dtype; decimal fractions are rounded to it."""
    value = _parsed(spec.dtype, text)
    if value is None:
        raise ColumnError(
            f"{flag} {spec.name}={text} gives no value of tensor '{spec.name}'",
            expected=f"a value of {described(spec)}{_bounds(spec.dtype)}",
            found=repr(text),
            cure=f"Say {flag} {spec.name}=VALUE with such a value.",
        )
    return value


def _parsed(dtype: str, text: str) -> Value | None:
    if dtype == "string":
        return text.encode("utf-8", "surrogateescape")
    if dtype == "bool":
        return _BOOLS.get(text.strip().lower())
    try:
        number = float(text) if dtype in _FLOATS else int(text)
    except ValueError:
        return None
    if dtype in _FLOATS:
        return None if math.isfinite(number) and abs(number) > _LARGEST.get(dtype, math.inf) else number
    return number if dtype in _WHOLE and _WHOLE[dtype][0] <= number <= _WHOLE[dtype][1] else None


def _bounds(dtype: str) -> str:
    if dtype == "bool":
        return " (true or false)"
    return f" ({_WHOLE[dtype][0]} to {_WHOLE[dtype][1]})" if dtype in _WHOLE else ""


def _image(spec: TensorSpec, size: tuple[int, int]) -> tuple[int, int, int]:
    height, width = size
    inner = () if spec.shape is None else spec.shape[1:]
    channels = 1 if len(inner) == 2 else inner[-1] or 3 if inner else 3
    if channels not in (1, 3, 4) or spec.dtype not in _PIXELS or height < 1 or width < 1:
        raise ColumnError(
            f"--decode_image {spec.name}={height}x{width} cannot give tensor '{spec.name}'",
            expected="a numeric tensor that holds 0 to 255, [batch, height, width, channels] with 1, 3 or 4 channels",
            found=described(spec),
            cure="Decode the images in the model, or before predicting.",
        )
    return height, width, channels
