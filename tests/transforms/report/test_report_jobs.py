"""The report of whole jobs: what it counts is what the predictions hold, in runs that go on too; and its flags' mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.cli import main
from headrace.transforms.errors import StorageError
from headrace.transforms.jobs.job import REPORT
from headrace.transforms.report import write
from headrace.transforms.report.kept import Kept, read_report
from headrace.transforms.shards.measuring import STATISTICS
from headrace.transforms.shards.shard import parse_output_name
from headrace.transforms.storage import open_store
from tests.support.jobs import model_folder, names_in, put, put_inputs, read_output, scores

Capture = pytest.CaptureFixture[str]
COUNTS = (40, 61)


def flags(place: str, *more: str) -> list[str]:
    usual = [f"--model={model_folder()}/saved_model", f"--input={place}/in/*.parquet", f"--output={place}/out"]
    return [*usual, "--keep=id", "--batch_size=16", *more]


def report(place: str, at: str = f"out/{REPORT}") -> tuple[Kept, str]:
    store = open_store(place)
    ref = store.stat(f"{place}/{at}")
    return read_report(store, ref), store.read(ref).decode()


def forget(place: str, stem: str) -> None:
    """Takes a prediction file away, as if the run had ended before it."""
    store = open_store(place)
    for ref in list(store.list(f"{place}/out/")):
        if ref.uri.startswith(f"{place}/out/{stem}"):
            store.delete(ref)


def test_what_is_counted_is_what_was_predicted_also_by_a_run_that_goes_on(capfd: Capture, tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}"
    put_inputs(f"{place}/in", COUNTS)
    assert main(flags(place)) == 0
    assert f"Report   {place}/out/{REPORT}" in capfd.readouterr().out
    first, page = report(place)
    found = scores(read_output(f"{place}/out"))
    (column,) = first.columns
    assert (first.rows, column.name, column.rows) == (sum(COUNTS), "output_0", sum(COUNTS))
    assert column.classes is not None
    assert column.classes.tolist() == np.bincount(found.argmax(axis=1), minlength=3).tolist()
    assert column.numbers is not None
    assert (column.numbers.least, column.numbers.most) == (found.min(), found.max())
    assert column.numbers.total == pytest.approx(found.astype(np.float64).sum())
    assert "Statistics of all 2 shards. Bars show" in page

    forget(place, "part-00001")
    assert main(flags(place)) == 0
    again, page = report(place)
    assert "Statistics of all 2 shards, 1 of them done by earlier runs." in page
    assert "Compared with the run of" in page
    assert again.columns[0].classes is not None
    assert again.columns[0].classes.tolist() == column.classes.tolist()
    assert again.columns[0].numbers is not None
    assert again.columns[0].numbers.counts.tolist() == column.numbers.counts.tolist()


def test_without_a_report_nothing_is_counted_and_a_later_one_says_so(capfd: Capture, tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}"
    put_inputs(f"{place}/in", COUNTS)
    assert main(flags(place, "--report=none")) == 0
    assert "Report" not in capfd.readouterr().out
    names = names_in(f"{place}/out")
    assert REPORT not in names
    store = open_store(place)
    for name in names:
        if parse_output_name(name) is not None:
            said = pq.read_metadata(store.open_arrow(store.stat(f"{place}/out/{name}"))).metadata
            assert STATISTICS.encode() not in (said or {})
    forget(place, "part-00001")
    elsewhere = f"memory://{tmp_path.name}-reports/today.html"
    assert main(flags(place, f"--report={elsewhere}")) == 0
    told, page = report(f"memory://{tmp_path.name}-reports", "today.html")
    assert (told.rows, told.columns[0].rows) == (sum(COUNTS), COUNTS[1])
    assert "Statistics of 1 of 2 shards only" in page


def test_an_earlier_run_s_report_is_not_told_as_this_one_s(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"memory://{tmp_path.name}"
    put_inputs(f"{place}/in", COUNTS)
    assert main(flags(place, f"--report={place}/r.html")) == 0
    capfd.readouterr()

    def fails(*_: Any, **__: Any) -> None:
        raise StorageError("The page cannot be drawn")

    monkeypatch.setattr(write, "_write", fails)
    assert main([*flags(place, f"--report={place}/r.html"), f"--output={place}/again"]) == 0
    out = capfd.readouterr().out
    assert "No report could be written" in out
    assert "r.html" not in out


def test_a_report_that_a_finished_output_lacks_is_told_as_lacking(capfd: Capture, tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}"
    put_inputs(f"{place}/in", COUNTS)
    assert main(flags(place)) == 0
    capfd.readouterr()
    assert main(flags(place, f"--report={place}/r.html")) == 0
    out, err = capfd.readouterr()
    assert "Nothing to do" in out
    assert f"none of it stands at {place}/r.html" in err
    assert main(flags(place, f"--report={place}/out/{REPORT}")) == 0
    assert "No report" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--report=https://host/report.html"], "--report=https://host/report.html is not a place for a report"),
        (["--report=gs://bucket/folder/"], "a name that ends in .html"),
        (["--report=none", "--compare=gs://b/report.html"], "--compare=gs://b/report.html does nothing without"),
        (["--compare={place}/gone.html"], "/gone.html names no report. Expected: the report of an earlier run"),
        (["--compare={place}/mine.html"], "/mine.html is not a report of headrace"),
        (["--report={place}/mine.html"], "headrace replaces nothing but its own reports"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    capfd: Capture, tmp_path: Path, more: list[str], told: str
) -> None:
    place = f"memory://{tmp_path.name}"
    put_inputs(f"{place}/in", [3])
    put(f"{place}/mine.html", b"<html>my own</html>")
    assert main(flags(place, *(flag.format(place=place) for flag in more))) == 2
    assert told in capfd.readouterr().err
    assert names_in(f"{place}/out") == []
