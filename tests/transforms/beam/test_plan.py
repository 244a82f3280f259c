"""Files to shards to units of work, and folders to columns."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.cli import main
from headrace.transforms.errors import ColumnError, ObjectChanged
from headrace.transforms.jobs.input_files import join_small
from headrace.transforms.parquet.reader import read_batches
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from headrace.transforms.storage import ObjectRef, open_store
from tests.support.jobs import model_folder, names_in, put_inputs, put_table, read_output, rows, scores
from tests.support.plans import SCHEMA, plain_job

Capture = pytest.CaptureFixture[str]


def sized(sizes: list[int]) -> list[ObjectRef]:
    return [ObjectRef(f"memory://b/{i}", size, "1") for i, size in enumerate(sizes)]


@given(st.lists(st.integers(0, 120), max_size=300))
def test_small_files_are_joined_in_order_up_to_the_bounds(sizes: list[int]) -> None:
    files = sized(sizes)
    units = list(join_small(files, 100, 64))
    assert [ref for unit in units for ref in unit] == files
    assert all(len(unit) == 1 or sum(ref.size for ref in unit) <= 100 for unit in units)
    assert all(0 < len(unit) <= 64 for unit in units)
    for one, following in pairwise(units):
        assert len(one) == 64 or sum(ref.size for ref in (*one, following[0])) > 100


def test_many_small_files_each_have_an_output_of_their_own(capfd: Capture, tmp_path: Path) -> None:
    folder = f"memory://{tmp_path.name}"
    put_inputs(f"{folder}/in", [3] * 150)
    flags = [f"--model={model_folder()}/saved_model", f"--input={folder}/in/*", f"--output={folder}/out"]
    assert main(flags) == 0
    store = open_store(folder)
    outputs = [ref for ref in store.list(f"{folder}/out/") if "/out/part-" in ref.uri]
    assert len(outputs) == 150
    assert read_output(f"{folder}/out")["id"].to_pylist() == list(range(450))
    for ref in outputs[20:90]:
        store.delete(ref)
    assert main(flags) == 0
    assert "210 rows computed" in capfd.readouterr().out
    assert read_output(f"{folder}/out")["id"].to_pylist() == list(range(450))


def test_spans_of_a_huge_row_group_hold_its_rows_in_order(capfd: Capture, tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [1000])
    whole, cut = (
        [
            f"--model={model_folder()}/saved_model",
            f"--input={tmp_path}/in/*",
            f"--output={tmp_path}/{out}",
            *more,
            "--batch_size=10",
        ]
        for out, more in (("whole", []), ("cut", ["--shard_bytes=5000"]))
    )
    assert main(whole) == main(cut) == 0
    assert len([name for name in names_in(f"{tmp_path}/cut") if name.startswith("part-")]) == 3
    one, other = read_output(f"{tmp_path}/whole"), read_output(f"{tmp_path}/cut")
    assert other["id"].to_pylist() == list(range(1000))
    assert abs(scores(one) - scores(other)).max() < 1e-6


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (rows(0, 3).select(["id", "x"]), "differs.* in column 'name'.*columns id, x"),
        (rows(0, 3).set_column(0, "id", pa.array([1.0, 2.0, 3.0])), "id: int64.*id: double"),
    ],
)
def test_a_file_with_another_schema_is_told_by_its_name(tmp_path: Path, table: pa.Table, told: str) -> None:
    put_table(f"{tmp_path}/a.parquet", rows(0, 3).select(["x", "name", "id"]))
    put_table(f"{tmp_path}/b.parquet", table)
    job = plain_job(f"{tmp_path}/*.parquet")
    with pytest.raises(ColumnError, match=rf"b\.parquet .*{told}"):
        list(plan_shards(job, input_files(job)))


def test_several_files_of_another_schema_are_named_at_once(tmp_path: Path) -> None:
    for name in "abcdefghi":
        put_table(f"{tmp_path}/{name}.parquet", rows(0, 3) if name in "ac" else rows(0, 3).select(["id", "x"]))
    job = plain_job(f"{tmp_path}/*.parquet")
    others = ", ".join(f"{tmp_path}/{name}.parquet" for name in "defgh")
    with pytest.raises(ColumnError, match=rf"b\.parquet .*column 'name', and {others}, … \(6 in all\) do too"):
        list(plan_shards(job, input_files(job)))


@pytest.mark.parametrize("store", ["local", "memory", "gcs"])
def test_a_file_rewritten_after_planning_is_an_error(
    tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    folder = {"local": str(tmp_path), "memory": f"memory://{tmp_path.name}"}.get(store) or request.getfixturevalue(
        "bucket"
    )
    put_table(f"{folder}/a.parquet", rows(0, 3))
    job = plain_job(f"{folder}/a.parquet")
    (shard,) = plan_shards(job, input_files(job))
    open_store(folder).delete(shard.source)
    put_table(f"{folder}/a.parquet", rows(5, 3))
    with pytest.raises(ObjectChanged, match=r"a\.parquet"):
        list(read_batches(open_store(folder), shard, ["id"], 10))


def partitioned(folder: Any) -> None:
    put_table(f"{folder}/in/dt=2026-11-01/country=a%20b/a.parquet", rows(0, 5))
    put_table(f"{folder}/in/dt=2026-11-02/country=__HIVE_DEFAULT_PARTITION__/a.parquet", rows(5, 5))


def test_partitions_are_folders_of_the_output_that_readers_take_as_columns(capfd: Capture, tmp_path: Path) -> None:
    partitioned(tmp_path)
    flags = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/**", f"--output={tmp_path}/out"]
    assert main([*flags, "--batch_size=2"]) == 0, capfd.readouterr().err
    assert read_output(f"{tmp_path}/out").schema.names == ["id", "name", "output_0"]
    found = pq.read_table(f"{tmp_path}/out")
    assert found.schema.names == ["id", "name", "output_0", "dt", "country"]
    assert found["dt"].to_pylist() == ["2026-11-01"] * 5 + ["2026-11-02"] * 5
    assert found["country"].to_pylist() == ["a b"] * 5 + [None] * 5
    folders = [name.rpartition("/")[0] for name in names_in(f"{tmp_path}/out") if name[0] != "_"]
    assert folders == ["dt=2026-11-01/country=a b", "dt=2026-11-02/country=__HIVE_DEFAULT_PARTITION__"]


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        (["--partition_columns=none"], ["id", "name"]),
        (["--keep=dt"], ["dt"]),
        (["--feature=x=x"], ["id", "name"]),
        (["--keep="], []),
        (["--feature=x=x", "--keep=country,id"], ["country", "id"]),
    ],
)
def test_partitions_are_columns_that_keep_may_name(
    capfd: Capture, tmp_path: Path, more: list[str], kept: list[str]
) -> None:
    partitioned(tmp_path)
    flags = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/**", f"--output={tmp_path}/out", *more]
    assert main(flags) == 0, capfd.readouterr().err
    found = read_output(f"{tmp_path}/out")
    assert found.schema.names == [*kept, "output_0"]
    assert found.num_rows == 10


def test_a_column_of_the_files_stands_before_a_partition_of_its_name(tmp_path: Path) -> None:
    table = rows(0, 3).append_column("dt", pa.array([1, 2, 3]))
    put_table(f"{tmp_path}/in/dt=2026-11-01/a.parquet", table)
    argv = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/**", f"--output={tmp_path}/out"]
    assert main(argv) == 0
    assert read_output(f"{tmp_path}/out")["dt"].to_pylist() == [1, 2, 3]


def test_only_partitions_are_read_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    put_table(f"{tmp_path}/dt=1/a.parquet", rows(0, 5))
    schema = pa.schema([("dt", pa.string())])
    job = plain_job(f"{tmp_path}/**", schema=schema, partitions=("dt",))
    (shard,) = plan_shards(job, input_files(job))
    batches = list(read_batches(open_store(str(tmp_path)), shard, ["dt"], 3))
    assert pa.Table.from_batches(batches).to_pydict() == {"dt": ["1"] * 5}
    assert [batch.num_rows for batch in batches] == [3, 2]


@pytest.mark.parametrize(
    ("name", "table", "told"),
    [
        ("b.parquet", rows(0, 1), "no such folder"),
        ("dt=2/b.parquet", rows(0, 1).append_column("dt", pa.array([1])), "a column 'dt' in the file"),
    ],
)
def test_a_file_whose_partitions_differ_is_told(tmp_path: Path, name: str, table: pa.Table, told: str) -> None:
    put_table(f"{tmp_path}/dt=1/a.parquet", rows(0, 1))
    put_table(f"{tmp_path}/{name}", table)
    job = plain_job(f"{tmp_path}/**", schema=pa.schema([*SCHEMA, ("dt", pa.string())]), partitions=("dt",))
    with pytest.raises(ColumnError, match=rf"b\.parquet .*partition column 'dt'.*{told}"):
        list(plan_shards(job, input_files(job)))
