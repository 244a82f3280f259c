"""Errors for images that were given in the place of Parquet files."""

from __future__ import annotations

import re

_IMAGE = re.compile(r"\.(jpe?g|png|gif|bmp|webp|tiff?)\b", re.IGNORECASE)


def cure_of_images(names: str) -> str:
    """The fix where names of images were given for Parquet files; "" for other names."""
    return (
        "These are images: put the bytes of each into a column of a Parquet file first, as a checkout's `python "
        "examples/folder_of_images.py FOLDER FILE.parquet` does, and read them with --decode_image TENSOR=HEIGHTxWIDTH. "
        "docs/images.md shows both"
        if _IMAGE.search(names)
        else ""
    )
