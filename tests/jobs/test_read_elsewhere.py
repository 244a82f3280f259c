"""The output as other programs read it, and outputs of which records and dead letters still end in `.parquet`."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headrace.pipeline.checks.soundness import verify
from headrace.pipeline.cli import main
from headrace.transforms.output import dead_letters
from headrace.transforms.steps import finish
from headrace.transforms.storage import StoreOptions
from tests.support.jobs import put_table
from tests.support.strict import mixed, put_mixed, strict_model

PAGE = Path(__file__).resolve().parents[2] / "docs/reading.md"
BLOCKS = re.findall(r"^```python\n(import \w+.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
BAD = {7: "value", 30: "null"}


def job(folder: Path, *more: str) -> list[str]:
    flags = [
        f"--model={strict_model()}",
        f"--input={folder}/in/**/*.parquet",
        f"--output={folder}/out",
        "--batch_size=16",
    ]
    return [*flags, "--on_error=dead_letter", "--max_bad_rows=50%", *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of 38 of 40 rows below `out`, in two partitions, and dead letters of the others."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for number, day in enumerate(("1", "2")):
        put_table(
            f"{folder}/in/day={day}/a.parquet",
            mixed(20 * number, 20, {k: v for k, v in BAD.items() if k // 20 == number}),
        )
    assert main(job(folder)) == 0
    return folder


def test_a_glob_of_parquet_files_gives_predictions_alone(finished: Path) -> None:
    files = glob.glob(f"{finished}/out/**/*.parquet", recursive=True)
    assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == 38
    others = {path.relative_to(finished / "out").parts[0] for path in (finished / "out").rglob("*.pq")}
    assert others == {"_manifest", "_dead_letters"}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: str(block).split()[1])
def test_the_lines_of_the_documents_give_all_predictions(
    block: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(block.split()[1].partition(".")[0])
    monkeypatch.chdir(finished)
    names: dict[str, Any] = {}
    exec(block, names)
    table = names["table"]
    if isinstance(table, list):  # DuckDB's rows: the partition comes last
        found = [(row[0], row[-1]) for row in table]
    else:
        columns = (
            table.to_pydict() if hasattr(table, "to_pydict") else {name: list(table[name]) for name in ("id", "day")}
        )
        found = list(zip(columns["id"], columns["day"], strict=True))
    expected = [(i, 1 + i // 20) for i in range(40) if i not in BAD]
    assert sorted((int(i), int(day)) for i, day in found) == expected


def test_every_program_of_the_page_is_tried() -> None:
    assert [block.split()[1].partition(".")[0] for block in BLOCKS] == ["pandas", "pyarrow", "polars", "duckdb"]


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output as version 0.1 names its files, of two shards with dead letters."""
    put_mixed(f"{tmp_path}/in", [20, 20], BAD)
    with monkeypatch.context() as patch:
        for module in (dead_letters, finish):
            patch.setattr(module, "ASIDE", ".parquet")
        assert main(job(tmp_path)) == 0
    assert not list((tmp_path / "out").rglob("*.pq"))
    assert len(list((tmp_path / "out").glob("_*/*.parquet"))) == 3
    return tmp_path


def is_sound(output: Path) -> bool:
    verdict, *_ = verify(str(output), StoreOptions())
    return not verdict.problems and verdict.bad_rows == 2


def test_an_earlier_output_is_finished_and_sound(earlier: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert is_sound(earlier / "out")
    assert main(job(earlier)) == 0
    assert "Nothing to do" in capfd.readouterr().out


def test_an_earlier_output_is_resumed(earlier: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = earlier / "out"
    (out / "_SUCCESS").unlink()
    next(out.glob("part-00000*.parquet")).unlink()
    assert main(job(earlier)) == 0
    assert "20 rows found done" in capfd.readouterr().out
    assert is_sound(out)
    assert all(name.endswith(".pq") for name in json.loads((out / "_SUCCESS").read_text())["manifest"])
    assert {path.suffix for path in (out / "_manifest").iterdir()} == {".pq"}
    assert {path.name[:10]: path.suffix for path in (out / "_dead_letters").iterdir()} == {
        "part-00000": ".pq",
        "part-00001": ".parquet",
    }


def test_an_earlier_output_is_overwritten_whole(earlier: Path) -> None:
    before = set((earlier / "out").glob("_*/*.parquet"))
    assert main(job(earlier, "--overwrite", "--keep=id")) == 0
    assert not any(path.exists() for path in before)
    assert is_sound(earlier / "out")
