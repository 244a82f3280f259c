"""Files of one job that differ in what Parquet does not store, or in how wide a column is: joined, and beside a file of another
schema whose rows are dead letters.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.checks.soundness import verify
from headrace.pipeline.cli import main
from headrace.transforms.columns.plan import rows_within
from headrace.transforms.predicting.bisection import pieces
from headrace.transforms.storage import StoreOptions
from tests.support.jobs import model_folder, put_table, read_output, rows

ROWS = 40
LETTERS = 900_000
FIRST = datetime(2026, 11, 30, 12)
INSTANT = pa.timestamp("us", "UTC")


def part(number: int, times: pa.DataType, count: pa.DataType, text: pa.DataType, letters: int = 1) -> pa.Table:
    table = rows(ROWS * number, ROWS)
    return (
        table.append_column("t", pa.array([FIRST.replace(minute=i) for i in range(ROWS)], times))
        .append_column("n", pa.array(range(ROWS), count))
        .append_column("text", pa.array(["t" * letters] * ROWS).cast(text))
        .append_column(
            "s", pa.array([{"t": FIRST, "n": i} for i in range(ROWS)], pa.struct([("t", times), ("n", count)]))
        )
    )


def put_parts(folder: Path) -> None:
    """The first is Spark's: INT96. The third has rows of 900 kB."""
    naive, plain = pa.timestamp("us"), {"use_dictionary": False}
    spark: dict[str, Any] = {"use_deprecated_int96_timestamps": True}
    put_table(f"{folder}/in/a.parquet", part(0, naive, pa.int64(), pa.string()), **spark)
    put_table(f"{folder}/in/b.parquet", part(1, INSTANT, pa.int32(), pa.large_string()))
    put_table(f"{folder}/in/c.parquet", part(2, naive, pa.int16(), pa.string(), LETTERS), **plain, **spark)
    put_table(
        f"{folder}/in/d.parquet",
        part(3, pa.timestamp("ms", "Europe/Zurich"), pa.int64(), pa.dictionary(pa.int8(), pa.string())),
    )


def flags(folder: Path, *more: str) -> list[str]:
    return [f"--model={model_folder()}/saved_model", f"--input={folder}/in", f"--output={folder}/out", *more]


def test_files_that_are_read_alike_are_joined(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put_parts(tmp_path)
    assert main(flags(tmp_path, "--compact", "--report=none")) == 0
    found = read_output(f"{tmp_path}/out")
    assert found.schema.field("t").type == INSTANT
    assert found.schema.field("s").type == pa.struct([("t", INSTANT), ("n", pa.int64())])
    assert found["id"].to_pylist() == [*range(4 * ROWS)]
    assert found["n"].to_pylist() == [*range(ROWS)] * 4
    assert found["t"].to_pylist() == [FIRST.replace(minute=i, tzinfo=UTC) for i in range(ROWS)] * 4
    assert found["s"].to_pylist() == [{"t": FIRST.replace(tzinfo=UTC), "n": i} for i in range(ROWS)] * 4
    _, record, manifest = verify(f"{tmp_path}/out", StoreOptions())
    (written,) = manifest.to_pylist()
    most = {}
    for one in written["joined"]:
        splits = [(split["row"], split["rows"]) for split in one["batch_splits"] or []]
        sizes = [size for _, size in pieces(0, one["rows"], record["batch_size"], splits, ())]
        most[Path(one["input"]).stem] = max(sizes)
    assert most == {"a": ROWS, "b": ROWS, "c": rows_within(LETTERS), "d": ROWS}
    capfd.readouterr()
    assert main(["verify", "--sample=8", *flags(tmp_path, "--compact")]) == 0


def test_rows_of_another_schema_are_dead_letters_with_their_instants(tmp_path: Path) -> None:
    put_parts(tmp_path)
    other = part(4, pa.timestamp("us"), pa.int64(), pa.string()).set_column(2, "x", pa.array(["no"] * ROWS))
    put_table(f"{tmp_path}/in/e.parquet", other, use_deprecated_int96_timestamps=True)
    letters = ("--on_error=dead_letter", "--max_bad_rows=100%", "--report=none")
    assert main(flags(tmp_path, *letters)) == 0
    assert read_output(f"{tmp_path}/out").num_rows == 4 * ROWS
    (file,) = (tmp_path / "out" / "_dead_letters").rglob("*.pq")
    found = pq.read_table(file)
    assert found["t"].type == INSTANT
    assert found["t"].to_pylist() == [FIRST.replace(minute=i, tzinfo=UTC) for i in range(ROWS)]
    assert main(["verify", *flags(tmp_path, *letters)]) == 0
