"""`--batch_size=auto` bounds what a batch holds as it is read: kept columns, not only the model's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.checks.soundness import verify
from headrace.pipeline.cli import main
from headrace.transforms.columns.plan import MOST_READ_BYTES, rows_within
from headrace.transforms.parquet.reader import most_row_bytes, read_footer
from headrace.transforms.predicting.bisection import pieces
from headrace.transforms.storage import StoreOptions, open_store
from tests.support.jobs import model_folder, put_table, read_output, rows

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


@pytest.mark.parametrize(("row_bytes", "fits"), [(0, MOST_READ_BYTES), (1 << 20, 32), (3 << 20, 8), (1 << 40, 1)])
def test_rows_within(row_bytes: int, fits: int) -> None:
    assert rows_within(row_bytes) == fits
