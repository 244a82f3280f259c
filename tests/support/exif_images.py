"""JPEG images that EXIF data says how to turn, made from the pixels that people see."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

# Where the first stored row and the first stored column are seen, as the standard has it (Orientation, tag 274).
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(seen: Any, orientation: int) -> Any:
    """The pixels in the order in which an image of that orientation has them."""
    row, column = SIDES[orientation]
    pixels = np.swapaxes(seen, 0, 1) if row in ("left", "right") else seen
    pixels = pixels[::-1] if row in ("right", "bottom") else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if column in ("right", "bottom") else pixels)


def seen(stored_pixels: Any, orientation: int) -> Any:
    """Undoes `stored`."""
    row, column = SIDES[orientation]
    pixels = stored_pixels[:, ::-1] if column in ("right", "bottom") else stored_pixels
    pixels = pixels[::-1] if row in ("right", "bottom") else pixels
    return np.ascontiguousarray(np.swapaxes(pixels, 0, 1) if row in ("left", "right") else pixels)


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def exif(
    orientation: int, *, big: bool = True, before: Sequence[tuple[int, int, int, int]] = (), gap: int = 0, kind: int = 3
) -> bytes:
    """The segment, its tags `before` that of the orientation, and so many bytes between the header and the tags."""
    order = ">" if big else "<"
    entries = [struct.pack(f"{order}HHII", *entry) for entry in before]
    entries.append(struct.pack(f"{order}HHIHH", 0x0112, kind, 1, orientation, 0))
    head = (b"MM" if big else b"II") + struct.pack(f"{order}HI", 42, 8 + gap)
    tags = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return segment(0xE1, b"Exif\0\0" + head + bytes(gap) + tags)


def with_exif(image: bytes, orientation: int, **how: Any) -> bytes:
    """The JPEG image with such a segment as its first."""
    return image[:2] + exif(orientation, **how) + image[2:]


def jpeg(pixels: Any, orientation: int = 1, **how: Any) -> bytes:
    """An image that is seen as these pixels."""
    import tensorflow as tf

    return with_exif(tf.io.encode_jpeg(stored(pixels, orientation), quality=95).numpy(), orientation, **how)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Any:
    """Smooth uint8 pixels, so that JPEG keeps them nearly, none of whose turns is like another."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    return np.minimum(x * 2 + y + (x * y) // 32 + c * 20 + seed * 5, 255).astype(np.uint8)
