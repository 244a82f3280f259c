"""Whatever a `key=value` folder of the input says, readers of the output get the same from the output's folder."""

from __future__ import annotations

import os
import random
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.pipeline.cli import main
from headrace.transforms.shards.partitions import (
    HIVE_NULL,
    MOST_FOLDER_BYTES,
    long_partitions,
    partition_folder,
    partition_values,
    quote_name,
)
from headrace.transforms.shards.shard import relative_stem
from tests.support.jobs import model_folder, put_table, rows
from tests.transforms.shards.test_output_names import NASTY

TEXT = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(NASTY))
KEYS = TEXT.filter(lambda key: key not in ("", HIVE_NULL))
EVERY = os.environ.get("HEADRACE_EVERY_CHARACTER") == "1"


def spellings(key: str, value: str) -> Iterator[str]:
    """The folder as writers spell it: all but ASCII letters quoted, as little as can be, and lower-case digits."""
    yield f"{quote(key, safe='')}={quote(value, safe='')}"
    yield f"{quote(key, safe=' +,')}={''.join(quote(one, safe='') if one in '/%' or one < ' ' else one for one in value)}"
    yield f"{quote(key, safe='').lower()}={quote(value, safe='').lower()}"


def by_arrow(folder: str, key: str) -> str | None:
    """What pyarrow reads from the folder's name."""
    hive = ds.partitioning(pa.schema([(key, pa.string())]), flavor="hive")
    return ds.get_partition_keys(hive.parse(f"{folder}/"))[key]


@given(KEYS, TEXT)
@example("_k", "1")
@example("k", "=")
@example("k", "")
@example("a=b", "c=d")
@example("k", "%41")
@example("k", "\u0338x")
def test_readers_decode_what_the_input_says(key: str, value: str) -> None:
    for spelled in spellings(key, value):
        uri = f"gs://b/in/{spelled}/a.parquet"
        ((read_key, read_value),) = partition_values(uri, "gs://b/in/")
        assert (read_key.lower(), (read_value or "").lower()) == (key.lower(), value.lower())
        written = partition_folder(spelled)
        if written is None:
            assert long_partitions(uri, "gs://b/in/") == (read_key,)
            continue
        assert written.count("=") == 1
        assert len(written.encode()) <= MOST_FOLDER_BYTES
        assert written[0] not in "._"
        assert by_arrow(written, read_key) == read_value
        assert partition_values(f"gs://b/out/{written}/x.parquet", "gs://b/out/") == ((read_key, read_value),)
        assert unicodedata.is_normalized("NFC", written)


def test_null_is_null_and_what_is_no_utf8_means_itself() -> None:
    for null in (HIVE_NULL, "%5F_HIVE_DEFAULT_PARTITION__"):
        assert partition_folder(f"k={null}") == f"k={HIVE_NULL}"
        assert partition_values(f"k={null}/a", "") == (("k", None),)
    assert partition_values("k=%E2%82/a", "") == (("k", "%E2%82"),)
    assert partition_folder("k=%E2%82") == "k=%25E2%2582"


def test_letters_stay_and_a_folder_that_is_too_long_is_none_of_key_and_value() -> None:
    assert partition_folder("ort=北京市") == "ort=北京市"
    assert partition_folder("k%20x=a b") == "k%20x=a b"
    assert partition_folder("k=" + "漢" * 84) is not None
    stem = relative_stem(f"gs://b/k={'漢' * 85}/a.parquet", "gs://b/")
    assert "=" not in stem
    assert len(relative_stem(f"gs://b/{'漢' * 300}/{'漢' * 29}.parquet", "gs://b/").encode()) < 300


@example("\u202e€")
@given(st.text(max_size=8))
def test_of_other_scripts_only_letters_marks_and_digits_stay(text: str) -> None:
    written = quote_name(text)
    others = {character for character in written if not character.isascii()}
    assert {unicodedata.category(character)[0] for character in others} <= set("LMN")
    assert others <= set(text)


def characters() -> list[str]:
    """Of all Unicode: every one where that is asked for, else a sample that is always the same."""
    every = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i <= 0xDFFF]
    return every if EVERY else [*every[:0x180], *random.Random(7).sample(every, 3_000)]


def test_pyarrow_duckdb_and_polars_read_every_character_back(tmp_path: Path) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    of, size = characters(), 18
    values = ["".join(of[i : i + size]) for i in range(0, len(of), size)]
    for i, value in enumerate(values):
        folder = partition_folder(f"k={quote(value, safe='')}")
        assert folder is not None
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"id": [i]}), tmp_path / folder / "f.parquet")
    expected = list(enumerate(values))
    hive = ds.partitioning(pa.schema([("k", pa.string())]), flavor="hive")
    table = ds.dataset(str(tmp_path), partitioning=hive).to_table().sort_by("id")
    assert list(zip(*table.select(["id", "k"]).to_pydict().values(), strict=True)) == expected
    glob = f"{tmp_path}/**/*.parquet"
    read = f"read_parquet('{glob}', hive_partitioning=true, hive_types={{'k': VARCHAR}})"
    assert duckdb.sql(f"SELECT id, k FROM {read} ORDER BY id").fetchall() == expected
    frame = polars.read_parquet(glob, hive_partitioning=True, hive_schema={"k": polars.String})
    assert frame.sort("id").select("id", "k").rows() == expected


@pytest.fixture
def long_folders(tmp_path: Path) -> Path:
    """A folder whose value cannot be written as one, and another."""
    for number, value in enumerate(("'" * 100, "Ulm")):
        put_table(f"{tmp_path}/in/place={value}/a.parquet", rows(10 * number, 10))
    return tmp_path


def test_what_cannot_be_a_folder_is_refused_and_keep_writes_it_into_the_files(
    long_folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = f"{model_folder()}/saved_model"
    flags = [f"--model={model}", f"--input={long_folders}/in/**/*.parquet", f"--output={long_folders}/out"]
    assert main(flags) == 2
    told = capfd.readouterr().err
    assert "partition folder of 'place'" in told
    assert "Name 'place' in --keep" in told
    assert not (long_folders / "out").exists()
    assert main([*flags, "--partition_columns=none"]) == 2
    assert "Shorten the folder's name" in capfd.readouterr().err
    assert main([*flags, "--keep=id,place", "--report=none"]) == 0
    files = sorted((long_folders / "out").glob("*/*.parquet"))
    read = [row for path in files if path.parent.name[0] != "_" for row in pq.ParquetFile(path).read().to_pylist()]
    assert {row["id"]: row["place"] for row in read} == {i: "'" * 100 if i < 10 else "Ulm" for i in range(20)}


def test_a_name_that_the_store_would_not_take_is_refused_before_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = f"memory://{tmp_path.name}-names"
    name = "/".join("漢" * 60 for _ in range(5))
    put_table(f"{folder}/in/{name}/a.parquet", rows(0, 10))
    flags = [f"--model={model_folder()}/saved_model", f"--input={folder}/in/**/*.parquet", "--report=none"]
    assert main([*flags, f"--output={folder}/{'o' * 200}"]) == 2
    assert "is too long for its store" in capfd.readouterr().err
    assert main([*flags, f"--output={folder}/out"]) == 0
