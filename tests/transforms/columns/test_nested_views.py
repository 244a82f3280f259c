"""Views of strings within structs, as Polars writes them: pyarrow cannot write slices of these, so they are read as strings."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.cli import main
from tests.support.jobs import model_folder, read_output, rows
from tests.support.loose import loose

COUNT = 120
VIEW, TEXT = pa.string_view(), pa.string()
KINDS: list[tuple[pa.DataType, pa.DataType, list[Any]]] = [
    (pa.struct([("a", VIEW)]), pa.struct([("a", TEXT)]), [{"a": "é" * 20}, None, {"a": None}]),
    (pa.list_(pa.struct([("a", VIEW)])), pa.list_(pa.struct([("a", TEXT)])), [[{"a": "b"}, None], None, []]),
    (pa.struct([("a", pa.list_(VIEW))]), pa.struct([("a", pa.list_(TEXT))]), [{"a": ["b", None]}, None, {"a": []}]),
    (pa.struct([("a", pa.binary_view())]), pa.struct([("a", pa.binary())]), [{"a": b"\xff"}, None]),
    (pa.map_(TEXT, pa.struct([("a", VIEW)])), pa.map_(TEXT, pa.struct([("a", TEXT)])), [[("k", {"a": "b"})], None]),
]


def write_as(path: str, table: pa.Table, schema: pa.Schema) -> None:
    """A file that says of itself that it was written from `schema`."""
    said = base64.b64encode(schema.serialize().to_pybytes()).decode()
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"ARROW:schema": said})


def test_they_are_kept_and_go_to_dead_letters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = rows(0, COUNT)
    written = table
    for number, (view, plain, values) in enumerate(KINDS):
        many = (values * COUNT)[:COUNT]
        written = written.append_column(f"k{number}", pa.array(many, plain))
        table = table.append_column(f"k{number}", pa.nulls(COUNT, loose(view)))
    bad = {7, 50, 51}
    scale = pa.array([None if i in bad else 1 for i in range(COUNT)], pa.int8())
    written, table = (one.append_column("scale", scale) for one in (written, table))
    x = pa.array([None if i in bad else row for i, row in enumerate(written["x"].to_pylist())], pa.list_(pa.float32()))
    place = written.schema.get_field_index("x")
    written, table = (one.set_column(place, "x", x) for one in (written, table))
    write_as(f"{tmp_path}/a.parquet", written, table.schema)
    assert pq.read_schema(f"{tmp_path}/a.parquet").field("k0").type == KINDS[0][0]
    command = [
        f"--model={model_folder()}/saved_model",
        f"--input={tmp_path}/*.parquet",
        f"--output={tmp_path}/out",
        "--feature=x=x",
        "--batch_size=16",
        "--on_error=dead_letter",
        "--max_bad_rows=5",
    ]
    assert main(command) == 0, capfd.readouterr().err
    good, left_out = read_output(f"{tmp_path}/out"), pq.read_table(f"{tmp_path}/out/_dead_letters")
    for number, (_, plain, _) in enumerate(KINDS):
        values = written[f"k{number}"].to_pylist()
        assert good.schema.field(f"k{number}").type == plain
        assert good[f"k{number}"].to_pylist() == [value for i, value in enumerate(values) if i not in bad]
        assert left_out[f"k{number}"].to_pylist() == [values[i] for i in sorted(bad)]
