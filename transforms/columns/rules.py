"""What the user allows beyond casts that never change a value, checked against the signature before any data."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..errors import ColumnError
from ..models.spec import TensorSpec
from .image_sizes import OWN_SIZE, ImageSize, decoded_shape
from .wording import described, listed, nearest, one_each

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


@dataclass(frozen=True, slots=True)
class ColumnRules:
    """What the user allows beyond casts that never change a value. Keys are tensor names; survives pickling; hashable.

    `cast` may hold "*" for every input. `pad` and `fill` hold values as typed, `decode_image` (height, width) in pixels or
    "own", for images of their own size; `ignore_exif` leaves them as they are stored. `tf_example` has the features to encode
    into serialized tf.train.Example for an input, none for all of them: these features then count as tensors too.
    """

    pad: tuple[tuple[str, str], ...] = ()
    fill: tuple[tuple[str, str], ...] = ()
    cast: tuple[str, ...] = ()
    decode_image: tuple[tuple[str, ImageSize], ...] = ()
    ignore_exif: bool = False
    tf_example: tuple[tuple[str, tuple[str, ...]], ...] = ()
    prediction_type: str = "auto"

    def own_sizes(self, inputs: Collection[str]) -> bool:
        """Whether images of one of these inputs keep their own sizes: a call of the model then takes one row."""
        return any(size == OWN_SIZE for tensor, size in self.decode_image if tensor in inputs)


@dataclass(frozen=True, slots=True)
class TensorRule:
    """The rules of one tensor of `dtype`; `image` is (height, width, channels), the first two None for an image's own.

    `exif` is whether images are turned by their EXIF data. `optional` leaves rows out that are null, and `ragged` lists as
    long as they are, both for a parser that takes that. `lists` is how many of the outermost levels of lists stay as long as
    they are, for a ragged or sparse tensor.
    """

    tensor: str
    dtype: str
    pad: Value | None = None
    fill: Value | None = None
    cast: bool = False
    image: tuple[int | None, int | None, int] | None = None
    exif: bool = True
    optional: bool = False
    ragged: bool = False
    lists: int = 0


def tensor_rules(rules: ColumnRules, inputs: Mapping[str, TensorSpec]) -> dict[str, TensorRule]:
    """One rule for each input. Raises `ColumnError` for names that are not inputs, and values of another dtype."""
    pads = by_tensor("--pad", rules.pad, inputs)
    fills = by_tensor("--fill", rules.fill, inputs)
    images = by_tensor("--decode_image", rules.decode_image, inputs)
    casts = by_tensor("--cast", ((tensor, True) for tensor in _cast(rules, inputs)), inputs)
    found = {}
    for name, spec in inputs.items():
        image = decoded_shape(spec, images[name]) if name in images else None
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
            exif=not rules.ignore_exif,
            lists=spec.lists,
        )
    return found


def _cast(rules: ColumnRules, inputs: Collection[str]) -> dict[str, None]:
    """The inputs that `cast` names, each once. `*` means every input but those of images, unless an input has that name."""
    given = dict.fromkeys(rules.cast)
    if "*" not in given or "*" in inputs:
        return given
    images = {tensor for tensor, _ in rules.decode_image}
    return dict.fromkeys(
        name for name in [*given, *inputs] if name != "*" and (name in rules.cast or name not in images)
    )


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
        several = one_each(flag, f"{spec.name}={text}")
        raise ColumnError(
            f"{flag} {spec.name}{'' if several else '=' + text} gives no value of tensor '{spec.name}'",
            expected=f"a value of {described(spec)}{_bounds(spec.dtype)}",
            found=repr(text),
            cure=f"{several}." if several else f"Say {flag} {spec.name}=VALUE with such a value.",
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
