"""`headrace.run`, `plan`, `inspect` and `verify`: what the commands do, from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import headrace
from headrace.pipeline.python_arguments import as_flags
from tests.support.jobs import model_folder, put_inputs, read_output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    put_inputs(f"{folder}/in", [30, 20])
    return folder


def job(place: Path, output: str = "out") -> dict[str, Any]:
    return {
        "model": str(model_folder() / "saved_model"),
        "input": f"{place}/in/*.parquet",
        "output": f"{place}/{output}",
    }


def test_a_job_runs_and_its_result_reads_the_output(place: Path) -> None:
    result = headrace.run(**job(place), keep=["id"], predictions={"output_0": "scores"})
    assert (result.rows, result.bad_rows, result.computed_rows) == (50, 0, 50)
    assert result.output == f"{place}/out"
    table = result.to_arrow()
    assert table.column_names == ["id", "scores"]
    assert table["id"].sort().to_pylist() == read_output(f"{place}/out")["id"].sort().to_pylist()
    assert (
        result.head(3).equals(table.slice(0, 3).combine_chunks())
        or result.head(3).to_pylist() == table.slice(0, 3).to_pylist()
    )
    assert list(result.to_pandas().columns) == ["id", "scores"]
    assert result.to_polars().shape == (50, 2)
    assert all(Path(part).exists() for part in result.manifest)
    assert result.report is not None
    assert Path(result.report).exists()
    page = result._repr_html_()
    assert "<th>scores</th>" in page
    assert "report.html" in page
    again = headrace.run(**job(place), keep=["id"], predictions={"output_0": "scores"})
    assert (again.rows, again.computed_rows) == (50, 0)
    assert headrace.verify(output=result.output).document["sound"] is True


def test_plan_and_inspect_report_as_the_commands_do(place: Path) -> None:
    planned = headrace.plan(**job(place, "planned"))
    assert planned.document["input"]["rows"] == 50
    assert "50 rows" in str(planned)
    assert not Path(f"{place}/planned").exists()
    inspected = headrace.inspect(model=job(place)["model"])
    assert "serving_default" in str(inspected)


def test_errors_name_arguments(place: Path) -> None:
    with pytest.raises(headrace.InvalidRequest, match=r"There is no flag") as raised:
        headrace.run(**job(place, "x"), kept=["id"])
    assert "--" not in str(raised.value)
    with pytest.raises(headrace.ColumnError, match="keep names a column 'idd'"):
        headrace.run(**job(place, "x"), keep=["idd"])
    with pytest.raises(headrace.InvalidRequest, match=r"incremental and overwrite contradict"):
        headrace.run(**job(place, "x"), overwrite=True, incremental=True)
    with pytest.raises(headrace.InvalidRequest, match="argument limit"):
        headrace.run(**job(place, "x"), limit=object())  # type: ignore[arg-type]


def test_what_is_shown_is_escaped() -> None:
    from headrace.pipeline.python_result import JobResult

    class Shown(JobResult):
        def head(self, rows: int = 5) -> pa.Table:
            return pa.table({"<b>": ["<script>alert(1)</script>"]})

    page = Shown("out", 1, 0, 1, 'x"><script>', "<i>", {})._repr_html_()
    assert "<script>" not in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ({"keep": []}, ["--keep="]),
        ({"keep": ["a,b", "c"]}, ["--keep=a\\,b,c"]),
        ({"features": {"x": ["a", "b"]}}, ["--feature=x=a,b"]),
        ({"cast": ["x", "y"]}, ["--cast=x", "--cast=y"]),
        ({"decode_image": {"x": (224, 200)}}, ["--decode_image=x=224x200"]),
        ({"decode_image": {"x": "own"}, "ignore_exif": True}, ["--decode_image=x=own", "--ignore_exif"]),
        ({"tf_example": ["x"]}, ["--tf_example=x"]),
        ({"tf_example": {"x": ["a", "b,c"]}}, ["--tf_example=x=a,b\\,c"]),
        ({"overwrite": True, "incremental": False, "limit": None}, ["--overwrite"]),
        ({"input": ["a", Path("b")]}, ["--input=a", "--input=b"]),
        ({"fill": {"t": b"\xff"}}, ["--fill=t=\udcff"]),
    ],
)
def test_arguments_become_flags(arguments: dict[str, object], flags: list[str]) -> None:
    assert as_flags(arguments) == flags


def test_a_program_is_interrupted_and_goes_on(place: Path) -> None:
    """Ctrl-C ends the call with KeyboardInterrupt; the same call finishes the job."""
    program = f"""
import os, signal, threading, time
import headrace
job = {job(place, "stopped") | {"shard_bytes": 1}!r}
from headrace.transforms import progress
def stop():
    while not progress.snapshot().shards_planned:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=stop, daemon=True).start()
try:
    headrace.run(**job)
    print("NOT STOPPED")
except KeyboardInterrupt:
    print("STOPPED")
print("ROWS", headrace.run(**job).rows)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "ROWS 50" in run.stdout
