"""`--batch_size=auto` bounds what a batch holds as it is read: kept columns, not only the model's tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.checks.soundness import verify
from headrace.pipeline.cli import main
from headrace.transforms.columns.plan import MOST_READ_BYTES, is_auto, rows_that_fit, rows_within
from headrace.transforms.parquet.reader import most_row_bytes, read_footer
from headrace.transforms.predicting.bisection import pieces
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from headrace.transforms.storage import StoreOptions, open_store
from tests.support import parquet_fuzz
from tests.support.jobs import model_folder, put_table, read_output, rows
from tests.support.plans import plain_job

LETTERS = 40_000
ROWS = 1_900
MODEST = rows_within(LETTERS)


def with_texts(count: int, letters: int) -> pa.Table:
    table = rows(0, count)
    return table.append_column("text", pa.array([f"{i:08}" + "t" * letters for i in range(count)]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with long texts, in row groups of 190 rows, and one with short ones."""
    folder = tmp_path_factory.mktemp("wide")
    how: dict[str, Any] = {"use_dictionary": False, "compression": "zstd", "row_group_size": 190}
    put_table(f"{folder}/in/long.parquet", with_texts(ROWS, LETTERS), **how)
    put_table(f"{folder}/in/short.parquet", with_texts(ROWS, 4), **how)
    return folder


def job(place: Path, out: str, *more: str) -> list[str]:
    return [
        *("plan" if out == "plan" else "run", f"--model={model_folder()}/saved_model", f"--input={place}/in/*.parquet"),
        *(f"--output={place}/{out}", "--report=none", *more),
    ]


def spans(place: Path, out: str) -> Iterator[tuple[str, list[int]]]:
    """Each input's name, and the sizes of its batches as the manifest tells them."""
    _, record, manifest = verify(f"{place}/{out}", StoreOptions())
    for row in manifest.to_pylist():
        splits = [(one["row"], one["rows"]) for one in row["batch_splits"] or []]
        sizes = [size for _, size in pieces(row["first_row"], row["rows"], record["batch_size"], splits, ())]
        yield Path(row["input"]).stem, sizes


def test_a_file_of_large_rows_has_smaller_batches_and_the_records_say_so(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(job(place, "kept")) == 0
    batches = dict(spans(place, "kept"))
    assert batches == {"long": [*[MODEST] * (ROWS // MODEST), ROWS % MODEST], "short": [ROWS]}
    assert read_output(f"{place}/kept")["id"].to_pylist() == [*range(ROWS)] * 2
    capfd.readouterr()
    flags = job(place, "kept")[1:]
    assert main(["verify", "--sample=12", *flags]) == 0
    assert "12" in capfd.readouterr().out


def test_columns_that_nobody_reads_do_not_count(place: Path) -> None:
    assert main(job(place, "unread", "--keep=id")) == 0
    assert dict(spans(place, "unread")) == {"long": [ROWS], "short": [ROWS]}


def test_a_size_that_is_given_stays(place: Path) -> None:
    assert main(job(place, "given", "--batch_size=1024")) == 0
    assert dict(spans(place, "given")) == {"long": [1024, ROWS - 1024], "short": [1024, ROWS - 1024]}


def test_the_bytes_of_a_row_are_those_of_the_columns_asked_for(tmp_path: Path) -> None:
    nested = pa.array([{"a": [1] * 100, "b": "b" * 50}] * 10)
    table = pa.table({"n": nested, "x": np.arange(10.0), "t": ["t" * 1000] * 10})
    pq.write_table(table, tmp_path / "f.parquet", use_dictionary=False, row_group_size=5)
    store = open_store(str(tmp_path))
    ref = store.stat(f"{tmp_path}/f.parquet")
    footer = read_footer(store, ref)
    assert most_row_bytes(store, ref, footer, {"x"}) in range(8, 200)
    assert most_row_bytes(store, ref, footer, {"n"}) > 800
    assert most_row_bytes(store, ref, footer, {"t"}) in range(1000, 3000)
    both = most_row_bytes(store, ref, footer, {"n", "t"})
    assert both > most_row_bytes(store, ref, footer, {"t"})


@pytest.mark.parametrize("lacking", ["groups", "groups and columns"])
def test_a_footer_without_sizes_still_bounds_the_batch(tmp_path: Path, lacking: str) -> None:
    path = f"{tmp_path}/in/long.parquet"
    put_table(path, with_texts(200, LETTERS), use_dictionary=False, compression="none")
    data = Path(path).read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, _ = parquet_fuzz.parse(data[start:], 0)
    for group in member(footer, 4)[1]:
        replace(group, 2, 0)
        for column in member(group, 1)[1] if lacking != "groups" else ():
            replace(member(column, 3), 6, 0)
    written = parquet_fuzz.write(footer)
    Path(path).write_bytes(data[:start] + written + len(written).to_bytes(4, "little") + b"PAR1")
    job = plain_job(f"{tmp_path}/in/*.parquet", schema=with_texts(1, 1).schema)
    job = dataclasses.replace(job, batch_rows=8192, batch_rule=auto_rule())
    (shard,) = plan_shards(job, input_files(job))
    assert shard.batch_rows == MODEST


def member(fields: parquet_fuzz.Tree, number: int) -> Any:
    return next(value for of, _, value in fields if of == number)


def replace(fields: parquet_fuzz.Tree, number: int, value: int) -> None:
    next(field for field in fields if field[0] == number)[2] = value


def auto_rule() -> str:
    rule = rows_that_fit(16, 12)[1]
    assert is_auto(rule)
    return rule


@pytest.mark.parametrize(("row_bytes", "fits"), [(0, MOST_READ_BYTES), (1 << 20, 32), (3 << 20, 8), (1 << 40, 1)])
def test_rows_within(row_bytes: int, fits: int) -> None:
    assert rows_within(row_bytes) == fits
