"""Tables written by the formats' own libraries, and what their predictions must be."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.pipeline.cli import main
from headrace.transforms.nested_arrow import flat
from tests.support.jobs import FEATURES, model_folder, plain_model, put, rows, scores

MODEL = "saved_model"


def batch(first: int, count: int, **more: pa.Array[Any]) -> pa.Table:
    """`rows`, with lists as tables have them, and more columns."""
    table = rows(first, count)
    lists = table["x"].cast(pa.list_(pa.float32()))
    table = table.set_column(table.schema.get_field_index("x"), "x", lists)
    for name, values in more.items():
        table = table.append_column(name, values)
    return table


def flags(table: str, output: str, *more: str) -> list[str]:
    return [f"--model={model_folder()}/{MODEL}", f"--input={table}", f"--output={output}", "--batch_size=8", *more]


def run(table: str, output: str, *more: str) -> int:
    return main(flags(table, output, *more))


def read_predictions(folder: Path) -> pa.Table:
    """As whoever reads a folder of Parquet does."""
    return pq.read_table(folder).sort_by("id")


def check_predictions(folder: Path, own: pa.Table) -> None:
    """Every row of the library's own read, with all its columns but the feature, and the model's prediction of it."""
    found, own = read_predictions(folder), own.sort_by("id").combine_chunks()
    kept = [name for name in own.schema.names if name != "x"]
    assert set(found.schema.names) == {"output_0", *kept}
    for name in kept:
        assert found[name].to_pylist() == own[name].to_pylist(), name
        assert found.schema.field(name).type == own.schema.field(name).type, name
    x = flat(own["x"].combine_chunks()).to_numpy().reshape(-1, FEATURES)
    assert len(x) == found.num_rows
    np.testing.assert_allclose(scores(found), plain_model(MODEL)(x), rtol=1e-5)


def upload(folder: Path, uri: str) -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            put(f"{uri}/{path.relative_to(folder)}", path.read_bytes())
    return uri


def write_deletion_vector(path: Path, marked: list[int]) -> dict[str, int]:
    """Of a few rows below 2^16, and what a Delta log says of it:
    https://github.com/delta-io/delta/blob/master/PROTOCOL.md#deletion-vector-format.
    """
    roaring = struct.pack("<IIHHI", 12346, 1, 0, len(marked) - 1, 16) + struct.pack(f"<{len(marked)}H", *marked)
    data = struct.pack("<IQI", 1681511377, 1, 0) + roaring
    path.write_bytes(b"\1" + struct.pack(">I", len(data)) + data + struct.pack(">I", zlib.crc32(data)))
    return {"offset": 1, "sizeInBytes": len(data), "cardinality": len(marked)}
