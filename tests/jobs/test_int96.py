"""INT96, the timestamps of Spark, Hive and Impala: instants, and so the output has them in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.cli import main
from headrace.transforms.parquet.reader import read_footer
from headrace.transforms.storage import open_store
from tests.support.jobs import model_folder, put_table, read_output, rows
from tests.support.loose import loose

INSTANT = pa.timestamp("us", "UTC")
TIMES = [datetime(1816, 5, 1, 3, 4, 5, 6), None, datetime(2026, 11, 30, 12), datetime(9999, 12, 31, 23)]
NAIVE = pa.timestamp("us")


def table() -> pa.Table:
    times = pa.array(TIMES, NAIVE)
    nested = pa.array([[{"t": one, "i": 1}] for one in TIMES], pa.list_(pa.struct([("t", NAIVE), ("i", pa.int64())])))
    maps = pa.array([[("a", one)] for one in TIMES], pa.map_(pa.string(), NAIVE))
    return rows(0, 4).append_column("t", times).append_column("nested", nested).append_column("maps", maps)


def put_times(folder: Path, *, int96: bool, hint: bool = False) -> None:
    how = {"use_deprecated_int96_timestamps": int96, "store_schema": hint}
    put_table(f"{folder}/in/a.parquet", table(), **how)


@pytest.mark.parametrize("hint", [True, False])
def test_kept_columns_are_instants(tmp_path: Path, hint: bool) -> None:
    put_times(tmp_path, int96=True, hint=hint)
    flags = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in", f"--output={tmp_path}/out"]
    assert main([*flags, "--feature=x=x", "--keep=t,nested,maps", "--report=none"]) == 0
    found = read_output(f"{tmp_path}/out")
    assert found.schema.field("t").type == INSTANT
    assert found.schema.field("nested").type.value_type.field("t").type == INSTANT
    assert found.schema.field("maps").type.item_type == INSTANT
    instants = [one and one.replace(tzinfo=UTC) for one in TIMES]
    assert found["t"].to_pylist() == instants
    assert [one[0] for one in loose(found["nested"].to_pylist())] == [{"t": one, "i": 1} for one in instants]
    assert [one[0] for one in loose(found["maps"].to_pylist())] == [("a", one) for one in instants]
    (path,) = (tmp_path / "out").glob("*.parquet")
    column = pq.ParquetFile(path).schema.column(0)
    assert column.physical_type == "INT64"
    assert '"isAdjustedToUTC": true' in column.logical_type.to_json() or "isAdjustedToUTC=true" in str(
        column.logical_type
    )


def test_other_timestamps_stay_as_they_are(tmp_path: Path) -> None:
    put_times(tmp_path, int96=False)
    store = open_store(str(tmp_path))
    schema = read_footer(store, store.stat(f"{tmp_path}/in/a.parquet")).schema
    assert schema.field("t").type == NAIVE
    assert schema.field("nested").type.value_type.field("t").type == NAIVE
