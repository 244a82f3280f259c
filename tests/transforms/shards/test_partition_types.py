"""Values of `key=value` folders as numbers and dates, and keys that begin with `_`."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.cli import main
from headrace.transforms.shards.partition_types import PartitionTypes, constant, fits
from tests.support.jobs import put_table, read_output
from tests.support.loose import loose

Capture = pytest.CaptureFixture[str]


@functools.cache
def doubling(dtype: str) -> str:
    import tensorflow as tf

    class Doubling(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], dtype, "x")])
        def __call__(self, x: Any) -> dict[str, Any]:
            return {"y": x + x}

    folder = tempfile.mkdtemp(prefix="headrace-test-doubling-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    module = Doubling()
    tf.saved_model.save(module, folder, signatures=module.__call__.get_concrete_function())
    return folder


def put_parts(folder: Path, key: str, values: list[str]) -> None:
    for number, value in enumerate(values):
        put_table(f"{folder}/in/{key}={value}/a.parquet", pa.table({"id": [number]}))


def job(folder: Path, dtype: str, key: str, *more: str) -> list[str]:
    flags = [f"--model={doubling(dtype)}", f"--input={folder}/in", f"--output={folder}/out", "--report=none"]
    return [*flags, f"--feature=x={key}", *more]


@pytest.mark.parametrize(
    ("values", "dtype", "flags", "doubled"),
    [
        (["2026", "-7"], "int64", ["--cast=x"], [4052, -14]),
        (["2026", "007"], "int64", ["--partition_columns=typed"], [4052, 14]),
        (["2026", "1"], "float32", ["--cast=*"], [4052.0, 2.0]),
        (["0.5", "1e3", "2"], "float64", ["--partition_columns=typed"], [1.0, 2000.0, 4.0]),
        (["1970-01-03", "1970-01-02"], "int32", ["--cast=x"], [4, 2]),
        (["2026", "__HIVE_DEFAULT_PARTITION__"], "int64", ["--cast=x", "--fill=x=5"], [4052, 10]),
        (["a", "7"], "string", ["--cast=x"], None),
    ],
)
def test_folders_feed_inputs(values: list[str], dtype: str, flags: list[str], doubled: Any, tmp_path: Path) -> None:
    put_parts(tmp_path, "k", values)
    if doubled is None:  # text stays text
        assert main(["plan", *job(tmp_path, "int64", "k", *flags)]) == 2
        return
    assert main(job(tmp_path, dtype, "k", *flags)) == 0
    found = read_output(f"{tmp_path}/out")
    assert dict(zip(found["id"].to_pylist(), found["y"].to_pylist(), strict=True)) == dict(enumerate(doubled))
    assert main(["verify", "--sample=3", *job(tmp_path, dtype, "k", *flags)]) == 0


def test_typed_columns_are_kept_as_such(tmp_path: Path) -> None:
    put_parts(tmp_path, "day", ["2026-11-30", "2026-12-01"])
    assert main(job(tmp_path, "int32", "day", "--partition_columns=typed", "--keep=day")) == 0
    files = [pq.ParquetFile(path).read() for path in (tmp_path / "out").glob("day=*/*.parquet")]
    assert sorted(table["day"][0].as_py() for table in files) == [date(2026, 11, 30), date(2026, 12, 1)]


def test_a_value_that_is_no_number_is_told(tmp_path: Path, capfd: Capture) -> None:
    put_parts(tmp_path, "k", ["2026", "soon"])
    assert main(["plan", *job(tmp_path, "int64", "k", "--cast=x")]) == 2
    assert "string" in capfd.readouterr().err


def test_a_key_that_begins_with_an_underscore_is_a_partition(tmp_path: Path) -> None:
    put_parts(tmp_path, "_year", ["2026", "2027"])
    put_table(f"{tmp_path}/in/_temporary/a.parquet", pa.table({"id": [9]}))
    assert main(job(tmp_path, "int64", "_year", "--cast=x")) == 0
    assert sorted(loose(read_output(f"{tmp_path}/out")["y"].to_pylist())) == [4052, 4054]
    read = ds.dataset(f"{tmp_path}/out", partitioning="hive").to_table()
    assert sorted(loose(read["_year"].to_pylist())) == [2026, 2027]


@given(
    st.lists(
        st.one_of(st.none(), st.text(max_size=4), st.integers().map(str), st.floats().map(repr), st.dates().map(str))
    )
)
def test_the_type_holds_every_value(values: list[str | None]) -> None:
    types = PartitionTypes()
    for value in values:
        types.add("k", value)
    kind = types.of("k")
    assert all(fits(value, kind) for value in values)
    for value in values:
        scalar = constant(value, kind)
        assert scalar.type == kind
        assert (scalar.as_py() is None) == (value is None)


def test_text_that_only_looks_like_a_number_stays_text() -> None:
    for text in ("", " 1", "1_000", "٣", "0x1", "1e", "inf", "nan", "2026-13-01", "2026-1-1", str(2**70) + "x"):
        types = PartitionTypes()
        types.add("k", text)
        assert types.of("k") == pa.string(), text
    types = PartitionTypes()
    types.add("k", str(2**63))
    assert types.of("k") == pa.float64()
    assert types.of("other") == pa.string()


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["true", "False", None], pa.bool_()), (["true", "1"], pa.string()), (["yes", "no"], pa.string())],
)
def test_true_and_false_are_such(values: list[str | None], kind: pa.DataType) -> None:
    types = PartitionTypes()
    for value in values:
        types.add("k", value)
    assert types.of("k") == kind
    assert [constant(value, pa.bool_()).as_py() for value in ("TRUE", "false", None)] == [True, False, None]
