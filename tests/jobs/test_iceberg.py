"""Iceberg tables that `pyiceberg` has written are predicted as it reads them itself."""

from __future__ import annotations

import json
import random
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2
from pyiceberg.table import Table
from pyiceberg.transforms import IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import LongType, StringType

from headrace.pipeline.cli import main
from headrace.transforms.errors import HeadraceError, InvalidRequest
from headrace.transforms.storage import StoreOptions
from headrace.transforms.tables.read import read_snapshot
from headrace.transforms.tables.snapshot import TableInput
from tests.support.jobs import put_table
from tests.support.lake_tables import batch, check_predictions, flags, read_predictions, run

Capture = pytest.CaptureFixture[str]


def catalog(folder: Path) -> SqlCatalog:
    folder.mkdir(exist_ok=True)
    made = SqlCatalog("test", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    made.create_namespace_if_not_exists("lake")
    return made


def new_table(folder: Path, rows: pa.Table, name: str = "table") -> Table:
    """Format version 2, in FOLDER/lake/NAME."""
    return catalog(folder).create_table(f"lake.{name}", schema=rows.schema)


def uri_of(table: Table, version: int | None = None) -> str:
    place = table.location().removeprefix("file://")
    return f"iceberg+{place}" + (f"@{version}" if version else "")


def own_read(table: Table, version: int | None = None) -> pa.Table:
    """Some of its texts are large, depending on what is in a file and what is added."""
    own = table.scan(snapshot_id=version).to_arrow()
    kinds = [pa.string() if pa.types.is_large_string(kind) else kind for kind in own.schema.types]
    return own.cast(pa.schema([field.with_type(kind) for field, kind in zip(own.schema, kinds, strict=True)]))


def newest(table: Table) -> int:
    snapshot = table.current_snapshot()
    assert snapshot is not None
    return snapshot.snapshot_id


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Snapshots: rows 0-9; rows 10-19 too; without row 3; a further column, `name` renamed and another one of that name."""
    made = new_table(tmp_path_factory.mktemp("iceberg"), batch(0, 10))
    made.append(batch(0, 10))
    made.append(batch(10, 10))
    made.delete("id = 3")
    with made.update_schema() as update:
        update.rename_column("name", "title")
    with made.update_schema() as update:
        update.add_column("name", StringType())
        update.add_column("weight", LongType())
    more = batch(20, 5, weight=pa.array(range(5)))
    made.append(more.append_column("title", pa.array(list("abcde"))))
    return made


def test_each_snapshot_is_predicted_as_the_library_reads_it(table: Table, tmp_path: Path) -> None:
    snapshots = [one.snapshot_id for one in table.snapshots()]
    assert len(snapshots) == 4
    for snapshot in snapshots[1:]:
        assert run(uri_of(table, snapshot), f"{tmp_path}/{snapshot}") == 0
        check_predictions(tmp_path / str(snapshot), own_read(table, snapshot))
    found = read_predictions(tmp_path / str(snapshots[-1]))
    assert found["title"].to_pylist()[:3] == ["röw 0", "röw 1", "röw 2"]
    assert found["name"].to_pylist()[:3] == [None] * 3


def test_partitions_are_columns_also_where_a_file_lacks_them(tmp_path: Path) -> None:
    kinds: dict[str, pa.Array[Any]] = {
        "text": pa.array(["a b/ü%=", None, "", "2024-01-01", "7"]),
        "day": pa.array([date(1969, 12, 31), None, date(2024, 2, 29), date(1, 1, 1), date(2020, 1, 1)]),
        "instant": pa.array(
            [datetime(2024, 1, 2, 3, 4, 5, 678901, UTC), None, *[datetime(1960, 1, 1, tzinfo=UTC)] * 3],
            pa.timestamp("us", "UTC"),
        ),
        "flag": pa.array([True, None, False, True, False]),
        "price": pa.array([Decimal("-1.50"), None, *[Decimal("9.99")] * 3], pa.decimal128(9, 2)),
    }
    rows = batch(0, 5, **kinds)
    made = new_table(tmp_path, rows)
    with made.update_spec() as update:
        for name in kinds:
            update.add_field(name, IdentityTransform(), f"of_{name}")
    made.append(rows)
    with made.update_spec() as update:  # files of another spec beside them
        update.remove_field("of_instant")
    made.append(batch(5, 5, **kinds))
    own = own_read(made)
    (first,) = [task.file for task in made.scan(row_filter="id = 0").plan_files()]
    (null,) = [task.file for task in made.scan(row_filter="id = 1").plan_files()]
    for file in first, null:
        path = file.file_path.removeprefix("file://")
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(list(kinds)), path)
    assert own_read(made).sort_by("id").equals(own.sort_by("id"))
    assert run(uri_of(made), f"{tmp_path}/out") == 0
    check_predictions(tmp_path / "out", own)


def test_files_without_ids_are_read_by_the_tables_names(tmp_path: Path, capfd: Capture) -> None:
    put_table(f"{tmp_path}/plain/a.parquet", batch(0, 5))
    made = new_table(tmp_path, batch(0, 5))
    made.add_files([f"file://{tmp_path}/plain/a.parquet"])
    with made.update_schema() as update:
        update.rename_column("name", "title")
    assert run(uri_of(made), f"{tmp_path}/out") == 0
    check_predictions(tmp_path / "out", own_read(made))
    with made.transaction() as transaction:
        transaction.remove_properties("schema.name-mapping.default")
    assert main(["plan", *flags(uri_of(made), f"{tmp_path}/out2")]) == 2
    assert "does not say which columns of the table it has" in capfd.readouterr().err


def test_a_stopped_job_goes_on_with_its_snapshot_and_incremental_with_the_newest(
    tmp_path: Path, capfd: Capture
) -> None:
    made, out = new_table(tmp_path, batch(0, 10)), tmp_path / "out"
    for first in (0, 10, 20):
        made.append(batch(first, 10))
    began = newest(made)
    assert run(uri_of(made), f"{out}") == 0
    (out / "_SUCCESS").unlink()
    next(out.glob("*.parquet")).unlink()
    made.append(batch(30, 10))
    made.delete("id = 5")
    capfd.readouterr()
    assert run(uri_of(made), f"{out}") == 0
    assert "10 rows computed" in capfd.readouterr().out
    check_predictions(out, own_read(made, began))
    assert json.loads((out / "_headrace" / "job.json").read_text())["table"]["version"] == began
    assert run(uri_of(made), f"{out}") == 2
    assert f"is of version {began} of {uri_of(made)}" in capfd.readouterr().err
    metadata = made.metadata_location.removeprefix("file://")
    assert run(f"iceberg+{metadata}", f"{out}", "--incremental") == 0
    assert "19 rows computed" in capfd.readouterr().out
    check_predictions(out, own_read(made))
    assert run(uri_of(made), f"{out}") == 0
    assert "Nothing to do" in capfd.readouterr().out


def test_plan_shows_the_table_and_its_snapshot(table: Table, tmp_path: Path, capfd: Capture) -> None:
    assert main(["plan", *flags(uri_of(table), f"{tmp_path}/out")]) == 0
    place = table.location().removeprefix("file://")
    assert f"Input    Iceberg table {place}, version {newest(table)}\n         3 files" in capfd.readouterr().out


def test_what_cannot_be_read_rightly_is_refused_before_anything_is_written(tmp_path: Path, capfd: Capture) -> None:
    def refused(uri: str) -> str:
        assert run(uri, f"{tmp_path}/out") == 2
        assert not (tmp_path / "out").exists()
        return capfd.readouterr().err

    put_table(f"{tmp_path}/plain/a.parquet", batch(0, 5))
    assert f"{tmp_path}/plain is not an Iceberg table" in refused(f"iceberg+{tmp_path}/plain")
    made = new_table(tmp_path, batch(0, 10))
    assert "has no snapshot yet" in refused(uri_of(made))
    made.append(batch(0, 10))
    assert f"has no snapshot 7. Expected: one of {newest(made)}" in refused(uri_of(made) + "@7")
    place = tmp_path / "lake" / "table"
    (data,) = (place / "data").glob("*.parquet")
    assert f"--input=iceberg+{place}" in refused(str(place))
    data.rename(tmp_path / "away")
    assert f"is gone: {data}" in refused(uri_of(made))
    (tmp_path / "away").rename(data)
    made.delete("id >= 0")
    assert "has no rows" in refused(uri_of(made))
    with made.update_schema() as update:
        update.add_column("flag", StringType())
    last = max((place / "metadata").glob("*.metadata.json"))
    (place / "metadata" / f"{last.name[:5]}-another.metadata.json").write_bytes(last.read_bytes())
    assert "has 2 metadata files of the highest number" in refused(uri_of(made))


class Deletes(ManifestWriterV2):
    """The library reads delete files and writes none."""

    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return super()._meta | {"content": "deletes"}


@pytest.mark.parametrize("content", [DataFileContent.POSITION_DELETES, DataFileContent.EQUALITY_DELETES])
def test_rows_that_delete_files_mark_are_left_out_or_refused(
    content: DataFileContent, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new_table(tmp_path, batch(0, 5))
    made.append(batch(0, 5))
    (data,) = (task.file.file_path for task in made.scan().plan_files())
    marks = {"file_path": [data], "pos": pa.array([1])} if content == DataFileContent.POSITION_DELETES else {"id": [1]}
    put_table(f"{tmp_path}/deletes.parquet", pa.table(marks))
    file = DataFile.from_args(
        content=content,
        file_path=f"file://{tmp_path}/deletes.parquet",
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=(tmp_path / "deletes.parquet").stat().st_size,
        equality_ids=[1] if content == DataFileContent.EQUALITY_DELETES else None,
    )
    file.spec_id = 0
    monkeypatch.setattr("pyiceberg.manifest.ManifestWriterV2", Deletes)
    with made.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(file)
    if content == DataFileContent.POSITION_DELETES:
        assert own_read(made)["id"].to_pylist() == [0, 2, 3, 4]
        assert run(uri_of(made), f"{tmp_path}/out") == 0
        check_predictions(tmp_path / "out", own_read(made))
        return
    assert run(uri_of(made), f"{tmp_path}/out") == 2
    assert "no equality deletes" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_length_beyond_the_file_is_an_error_of_ours(tmp_path: Path) -> None:
    """The library's decoder in C reads as much beyond its memory, which ends the process."""
    made = new_table(tmp_path, batch(0, 10))
    made.append(batch(0, 10))
    folder = Path(made.location().removeprefix("file://"))
    (manifests,) = folder.glob("metadata/snap-*.avro")
    gibibyte = b"\x80\x80\x80\x80\x08"  # 1 << 30 as Avro writes it
    manifests.write_bytes(b"Obj\x01" + b"\x02" + gibibyte + b"avro.schema")
    with pytest.raises(InvalidRequest, match="cannot be read as an Iceberg table"):
        read_snapshot(TableInput("iceberg", str(folder)), StoreOptions())


def test_damaged_metadata_is_an_error_of_ours(tmp_path: Path) -> None:
    made = new_table(tmp_path, batch(0, 10))
    made.append(batch(0, 10))
    folder = Path(made.location().removeprefix("file://"))
    asked = TableInput("iceberg", str(folder))
    assert read_snapshot(asked, StoreOptions()).version == newest(made)
    files = sorted(folder.glob("metadata/*.avro")) + sorted(folder.glob("metadata/*.json"))[-1:]
    refused = 0
    for number in range(150):
        rng = random.Random(number)
        file = rng.choice(files)
        sound = file.read_bytes()
        damaged = bytearray(sound[: rng.randrange(len(sound))] if rng.random() < 0.5 else sound)
        for _ in range(rng.randrange(4)):
            damaged[rng.randrange(len(damaged) + 1) :] = rng.randbytes(rng.randrange(8)) or b"{"
        file.write_bytes(damaged)
        try:
            read_snapshot(asked, StoreOptions())
        except HeadraceError:
            refused += 1
        file.write_bytes(sound)
    assert refused > 100
