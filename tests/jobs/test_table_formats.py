"""Files of Delta, Iceberg and Hudi tables are not taken for rows as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.transforms.errors import InvalidRequest
from headrace.transforms.jobs.input_files import PassedOver, each_input
from headrace.transforms.storage import StoreOptions
from tests.support.jobs import put, put_table, rows

RECORDS = {
    "Delta": "_delta_log/00000000000000000000.json",
    "Delta, of a checkpoint": "_delta_log/00000000000000000010.checkpoint.parquet",
    "Iceberg": "metadata/00001-0b5f.metadata.json",
    "Hudi": ".hoodie/hoodie.properties",
}
FILES = ["part-0.parquet", "Part-0.parquet", "day=1/part-0.parquet", "data/x=1/part-0.parquet", "A/0.parquet"]


def read(*patterns: str) -> list[str]:
    return [ref.uri for ref in each_input(patterns, StoreOptions(), PassedOver())]


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("scheme", ["memory://", ""])
def test_a_tables_files_are_refused(record: str, file: str, scheme: str, tmp_path: Path) -> None:
    root = f"{scheme}{tmp_path if not scheme else str(tmp_path)[1:]}/lake/table"
    put_table(f"{root}/{file}", rows(0, 1))
    put_table(f"{root}/../a/0.parquet".replace("table/../", ""), rows(0, 1))
    put(f"{root}/{RECORDS[record]}", b"{}")
    folder = f"{root}/{file}".rpartition("/")[0]
    patterns = [f"{root}/**/*.parquet", f"{root.removesuffix('table')}**/*.parquet"]
    if "A/" not in file:
        patterns.append(f"{folder}/*.parquet")
    for pattern in patterns:
        with pytest.raises(InvalidRequest, match=rf"matches files of a {record.partition(',')[0]} table: .*{file}"):
            read(pattern)
    assert read(f"{root}/{file}") == [f"{root}/{file}"]


def test_folders_beside_a_table_are_read(tmp_path: Path) -> None:
    put_table(f"{tmp_path}/in/a.parquet", rows(0, 1))
    put_table(f"{tmp_path}/in/z/a.parquet", rows(0, 1))
    put_table(f"{tmp_path}/in/metadata/a.parquet", rows(0, 1))
    put(f"{tmp_path}/in/metadata/notes.json", b"{}")
    put(f"{tmp_path}/in/table/_delta_log/00000000000000000000.json", b"{}")
    assert len(read(f"{tmp_path}/in/**/*.parquet")) == 3
    assert len(read(f"{tmp_path}/in/*.parquet")) == 1
