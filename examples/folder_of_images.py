"""Parquet of a folder of images: a row for each JPEG or PNG file, in this folder and below, with its path and its bytes.

    python examples/folder_of_images.py FOLDER FILE.parquet

The file can then be a job's `--input`, with `--decode_image`. At most 64 MiB of images are in memory at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".jpg", ".jpeg", ".png")
COLUMNS: dict[str, pa.DataType] = {"name": pa.string(), "image": pa.binary()}
MOST_BYTES = 64 << 20


def main(folder: str, parquet: str) -> None:
    """`name` is the path below the folder. The files are sorted by it, and unchanged: nothing is decoded."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        sys.exit(f"No image is in {folder} or below. Expected: files that end in {', '.join(SUFFIXES)}.")
    names: list[str] = []
    images: list[bytes] = []
    held = 0
    schema = pa.schema(COLUMNS)
    with pq.ParquetWriter(parquet, schema) as writer:
        for path in paths:
            names.append(path.relative_to(folder).as_posix())
            images.append(path.read_bytes())
            held += len(images[-1])
            if held > MOST_BYTES or path is paths[-1]:
                writer.write_table(pa.table({"name": names, "image": images}, schema))
                names, images, held = [], [], 0
    print(f"{len(paths):,} images are in {parquet}. Columns: name, image.")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python examples/folder_of_images.py FOLDER FILE.parquet")
    main(*sys.argv[1:])
