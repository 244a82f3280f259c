"""How large the images of an input become: all of one height and width, or each of its own size."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ColumnError, InvalidRequest
from ..models.spec import TensorSpec
from .wording import described

OWN_SIZE = "own"
ImageSize = tuple[int, int] | str
"""(height, width) in pixels, or `OWN_SIZE`."""

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
# What holds every whole number from 0 to 255.
_PIXELS = frozenset(
    ("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "bfloat16", "float32", "float64")
)


def parse_image_size(tensor: str, value: str | Sequence[int]) -> ImageSize:
    """`HxW`, or the two numbers, or `own`. Raises `InvalidRequest`."""
    text = value.strip() if isinstance(value, str) else "x".join(map(str, value))
    if text == OWN_SIZE:
        return OWN_SIZE
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest(
            f"--decode_image {tensor}={text} is not a size",
            expected="TENSOR=HxW, as in image=224x224, or TENSOR=own for images of their own size",
            found=text,
        )
    return int(match[1]), int(match[2])


def unused_ignore_exif() -> InvalidRequest:
    return InvalidRequest(
        "--ignore_exif does nothing without --decode_image",
        expected="--decode_image TENSOR=HxW, or TENSOR=own, with --ignore_exif",
        found="no image that is decoded",
        cure="Name the image's tensor in --decode_image, or leave --ignore_exif out",
    )


def decoded_shape(spec: TensorSpec, size: ImageSize) -> tuple[int | None, int | None, int]:
    """(height, width, channels) of each image, None where that is its own. Raises `ColumnError` where no tensor holds that."""
    shown = size if isinstance(size, str) else "x".join(map(str, size))
    what = f"--decode_image {spec.name}={shown} cannot give tensor '{spec.name}'"
    height, width = (None, None) if isinstance(size, str) else size
    inner = () if spec.shape is None else spec.shape[1:]
    channels = 1 if len(inner) == 2 else inner[-1] or 3 if inner else 3
    if channels not in (1, 3, 4) or spec.dtype not in _PIXELS or 0 in (height, width):
        raise ColumnError(
            what,
            expected="a numeric tensor that holds 0 to 255, [batch, height, width, channels] with 1, 3 or 4 channels",
            found=described(spec),
            cure="Decode the images in the model, or before predicting.",
        )
    if size == OWN_SIZE and spec.shape is not None and (len(inner) != 3 or inner[:2] != (None, None)):
        fixed = "x".join(str(side or "N") for side in inner[:2]) if len(inner) == 3 else "HxW"
        raise ColumnError(
            what,
            expected="a tensor of images of any size, [batch, None, None, channels]",
            found=described(spec),
            cure=f"Say --decode_image {spec.name}={fixed}: images are resized to it.",
        )
    return height, width, channels
