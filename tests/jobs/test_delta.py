"""Delta tables that `deltalake` has written are predicted as it reads them itself."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, WriterProperties, write_deltalake

from headrace.pipeline.cli import main
from tests.support.jobs import names_in, put_table
from tests.support.lake_tables import (
    batch,
    check_predictions,
    flags,
    read_predictions,
    run,
    upload,
    write_deletion_vector,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions: 0 rows 0-9, 1 rows 10-19 too, 2 without rows 3 and 12, 3 with a further column, 4 compacted."""
    folder = tmp_path_factory.mktemp("delta") / "table"
    write_deltalake(folder, batch(0, 10))
    write_deltalake(folder, batch(10, 10), mode="append")
    DeltaTable(folder).delete("id = 3 or id = 12")
    write_deltalake(folder, batch(20, 5, note=pa.array(list("abcde"))), mode="append", schema_mode="merge")
    DeltaTable(folder).optimize.compact()
    return folder


def own_read(folder: Path, version: int | None = None) -> pa.Table:
    return DeltaTable(folder, version=version).to_pyarrow_table()


@pytest.mark.parametrize("version", [1, 3, 4])
def test_each_version_is_predicted_as_the_library_reads_it(table: Path, version: int, tmp_path: Path) -> None:
    assert run(f"delta+{table}@{version}", f"{tmp_path}/out") == 0
    check_predictions(tmp_path / "out", own_read(table, version))


def test_partitions_have_the_tables_types_though_no_file_holds_them(tmp_path: Path) -> None:
    kinds: dict[str, pa.Array[Any]] = {
        "text": pa.array(["a b/ü%=", None, "", "2024-01-01", "7"]),
        "day": pa.array([date(1969, 12, 31), None, date(2024, 2, 29), date(1, 1, 1), date(2020, 1, 1)]),
        "instant": pa.array(
            [datetime(2024, 1, 2, 3, 4, 5, 678901, UTC), None, *[datetime(1960, 1, 1, tzinfo=UTC)] * 3],
            pa.timestamp("us", "UTC"),
        ),
        "hour": pa.array([datetime(2024, 1, 2, 3), None, *[datetime(2024, 1, 2, 3, 4, 5, 6)] * 3], pa.timestamp("us")),
        "small": pa.array([-128, None, 127, 0, 1], pa.int8()),
        "part": pa.array([0.1, None, float("inf"), -1e-5, 3.0]),
        "flag": pa.array([True, None, False, True, False]),
        "price": pa.array(
            [Decimal("1.50"), None, Decimal("0.00"), Decimal("9.99"), Decimal("1.00")], pa.decimal128(9, 2)
        ),
    }
    folder = tmp_path / "table"
    write_deltalake(folder, batch(0, 5, **kinds), partition_by=list(kinds))
    assert len(DeltaTable(folder).file_uris()) == 5
    assert run(f"delta+{folder}/", f"{tmp_path}/out") == 0
    check_predictions(tmp_path / "out", own_read(folder))


def test_a_job_that_was_stopped_goes_on_with_its_version_and_incremental_with_the_newest(
    tmp_path: Path, capfd: Capture
) -> None:
    folder, out = tmp_path / "table", tmp_path / "out"
    for first in (0, 10, 20):
        write_deltalake(folder, batch(first, 10), mode="append")
    assert run(f"delta+{folder}", f"{out}") == 0
    (out / "_SUCCESS").unlink()
    next(out.glob("*.parquet")).unlink()
    write_deltalake(folder, batch(30, 10), mode="append")
    DeltaTable(folder).delete("id = 5")
    capfd.readouterr()
    assert run(f"delta+{folder}", f"{out}") == 0
    assert "10 rows computed" in capfd.readouterr().out
    check_predictions(out, own_read(folder, 2))
    assert json.loads((out / "_headrace" / "job.json").read_text())["table"]["version"] == 2
    # It is finished now, and the table has gone on.
    for given in ("", "@4"):
        assert run(f"delta+{folder}{given}", f"{out}") == 2
        err = capfd.readouterr().err
        assert f"is of version 2 of delta+{folder}" in err
        assert "Add --incremental" in err
    assert run(f"delta+{folder}@2", f"{out}") == 0
    assert main(["verify", *flags(f"delta+{folder}", f"{out}", "--sample=2")]) == 0
    kept = set(names_in(str(out)))
    capfd.readouterr()
    assert run(f"delta+{folder}", f"{out}", "--incremental") == 0
    printed = capfd.readouterr()
    assert "19 rows computed" in printed.out
    assert "20 rows found done" in printed.out
    assert "1 output of inputs that changed or vanished will be removed" in printed.err
    check_predictions(out, own_read(folder, 4))
    assert json.loads((out / "_headrace" / "job.json").read_text())["table"]["version"] == 4
    assert len({name for name in kept if name.startswith("part-")} & set(names_in(str(out)))) == 2
    assert run(f"delta+{folder}", f"{out}") == 0
    assert "Nothing to do" in capfd.readouterr().out


def test_in_a_bucket_after_a_checkpoint_and_cleaned_commits(bucket: str, tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "table"
    for first in (0, 10, 20):
        write_deltalake(folder, batch(first, 10), mode="append")
    DeltaTable(folder).create_checkpoint()
    write_deltalake(folder, batch(30, 10), mode="append")
    for version in (0, 1):
        (folder / "_delta_log" / f"{version:020d}.json").unlink()
    uri = upload(folder, f"{bucket}/table")
    assert run(f"delta+{uri}", f"{tmp_path}/out") == 0
    check_predictions(tmp_path / "out", own_read(folder))
    assert run(f"delta+{uri}@2", f"{tmp_path}/out2") == 0
    check_predictions(tmp_path / "out2", own_read(folder, 2))
    assert read_predictions(tmp_path / "out2").num_rows == 30
    capfd.readouterr()
    for version in (1, 4):
        assert run(f"delta+{uri}@{version}", f"{tmp_path}/out3") == 2
        assert f"has no version {version} that can be read. Expected: one of 2 to 3" in capfd.readouterr().err


def test_plan_and_inspect_show_the_table_its_version_and_its_files(table: Path, tmp_path: Path, capfd: Capture) -> None:
    assert main(["plan", *flags(f"delta+{table}@3", f"{tmp_path}/out")]) == 0
    files = len(DeltaTable(table, version=3).file_uris())
    assert f"Input    Delta table {table}, version 3\n         {files} files" in capfd.readouterr().out
    assert main(["plan", *flags(f"delta+{table}", f"{tmp_path}/out"), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)["input"]
    assert said["table"] == {"format": "delta", "uri": str(table), "version": 4}
    assert (said["files"], said["rows"]) == (1, 23)
    assert main(["inspect", f"--input=delta+{table}@3"]) == 0
    out = capfd.readouterr().out
    assert f"Delta table {table}, version 3\n{files} files of Parquet" in out
    assert "note" in out  # which the first file lacks
    assert not (tmp_path / "out").exists()
    double = tmp_path / "double"
    rows = batch(0, 5)
    write_deltalake(double, rows.set_column(2, "x", rows["x"].cast(pa.list_(pa.float64()))), partition_by=["name"])
    assert main(["plan", *flags(f"delta+{double}", f"{tmp_path}/out")]) == 2
    printed = capfd.readouterr()
    assert "--cast=x" in printed.out
    assert f"--input=delta+{double}" in printed.out
    assert main(["plan", *flags(f"delta+{double}", f"{tmp_path}/out", "--cast=x")]) == 0


def metadata_with(folder: Path, reader: int, features: list[str] | None, **configuration: str) -> None:
    """What the library cannot write, in its own log."""
    log = folder / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "protocol" in action:
            action["protocol"] = {"minReaderVersion": reader, "minWriterVersion": 7 if features else 5}
            if features:
                action["protocol"] |= {"readerFeatures": features, "writerFeatures": features}
        if "metaData" in action:
            action["metaData"]["configuration"] |= configuration
            schema = json.loads(action["metaData"]["schemaString"])
            for i, field in enumerate(schema["fields"]):
                field["metadata"] = {"delta.columnMapping.id": i, "delta.columnMapping.physicalName": field["name"]}
            action["metaData"]["schemaString"] = json.dumps(schema)
    log.write_text("\n".join(map(json.dumps, actions)))


def test_what_cannot_be_read_rightly_is_refused_before_anything_is_written(tmp_path: Path, capfd: Capture) -> None:
    def refused(uri: str, *more: str) -> str:
        assert run(f"delta+{uri}", f"{tmp_path}/out", *more) == 2
        assert not (tmp_path / "out").exists()
        return capfd.readouterr().err

    put_table(f"{tmp_path}/plain/a.parquet", batch(0, 5))
    assert f"{tmp_path}/plain is not a Delta table" in (said := refused(f"{tmp_path}/plain"))
    assert "plain/a.parquet" in said
    folder = tmp_path / "table"
    write_deltalake(folder, batch(0, 5))
    assert "--input names a table and something else" in refused(str(folder), f"--input={tmp_path}/plain/a.parquet")
    assert "has no version 1 that can be read" in refused(f"{folder}@1")
    assert f"--input=delta+{folder}" in refused_as_files(folder, tmp_path, capfd)
    metadata_with(folder, 2, None, **{"delta.columnMapping.mode": "name"})
    assert "columnMapping, which headrace does not read" in refused(str(folder))
    metadata_with(folder, 3, ["variantType"], **{"delta.columnMapping.mode": "none"})
    assert "variantType" in refused(str(folder))
    metadata_with(folder, 1, None)
    (gone,) = folder.glob("*.parquet")
    gone.unlink()
    assert f"A file of version 0 of delta+{folder} is gone: {gone}" in refused(str(folder))
    DeltaTable(folder).delete()
    assert f"Version 1 of delta+{folder} has no rows" in refused(str(folder))


def refused_as_files(folder: Path, tmp_path: Path, capfd: Capture) -> str:
    assert run(str(folder), f"{tmp_path}/out") == 2
    return capfd.readouterr().err


def mark(folder: Path, version: int, file: str, rows: list[int]) -> None:
    """The library reads deletion vectors and writes none: one that marks these rows, in a file of its own."""
    log = folder / "_delta_log"
    path = "ab/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"
    (folder / "ab").mkdir(exist_ok=True)
    vector = write_deletion_vector(folder / path, rows)
    (add,) = (
        action["add"]
        for commit in sorted(log.glob("*.json"))
        for action in map(json.loads, commit.read_text().splitlines())
        if unquote(action.get("add", {}).get("path", "")) == file and "deletionVector" not in action["add"]
    )
    actions = [
        {"remove": {"path": add["path"], "dataChange": True, "deletionTimestamp": 1}},
        {"add": add | {"deletionVector": vector | {"storageType": "u", "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^"}}},
    ]
    (log / f"{version:020d}.json").write_text("\n".join(map(json.dumps, actions)))


def test_rows_that_a_deletion_vector_marks_are_left_out(tmp_path: Path, capfd: Capture) -> None:
    folder, out = tmp_path / "table", tmp_path / "out"
    rows = batch(0, 60, k=pa.array([*["a b"] * 50, *["c"] * 10]))
    how = WriterProperties(max_row_group_size=10)
    write_deltalake(folder, rows, partition_by=["k"], writer_properties=how)
    metadata_with(folder, 3, ["deletionVectors"])
    assert run(f"delta+{folder}", f"{out}", "--shard_bytes=1") == 0
    (file,) = (unquote(uri) for uri in DeltaTable(folder).file_uris() if "k=c" not in uri)
    name = next(str(path.relative_to(folder)) for path in folder.glob("k=a*/*.parquet"))
    assert pq.read_metadata(folder / name).num_row_groups == 5, file
    marked = [0, *range(10, 20), 23, 25, 49]
    mark(folder, 1, name, marked)
    read = QueryBuilder().register("t", DeltaTable(folder)).execute("select id, name, x, k from t").read_all()
    own = pa.table(read).cast(rows.schema)
    assert own.num_rows == 60 - len(marked)
    for given in ("--compact",), ("--shard_bytes=1",):
        assert run(f"delta+{folder}", f"{tmp_path}/1{given}", *given) == 0
        check_predictions(tmp_path / f"1{given}", own)
        assert main(["verify", *flags(f"delta+{folder}", f"{tmp_path}/1{given}", "--sample=99", *given)]) == 0
    capfd.readouterr()
    assert run(f"delta+{folder}", f"{out}", "--shard_bytes=1", "--incremental") == 0
    printed = capfd.readouterr()
    assert f"{50 - len(marked)} rows computed" in printed.out
    assert "10 rows found done" in printed.out
    check_predictions(out, own)
    pq.write_table(batch(0, 3), folder / name)
    assert main(["plan", *flags(f"delta+{folder}", f"{tmp_path}/cut")]) == 2
    assert "lacks rows that its table marks as deleted" in capfd.readouterr().err
