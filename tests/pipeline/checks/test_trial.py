"""`plan --trial`: rows of the real input through the real model, nothing kept, and what all of them will take by that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import headrace
from headrace.pipeline.checks import trial as trials
from headrace.pipeline.checks.forecast import Forecast, forecast
from headrace.pipeline.checks.trial import EvenSample, Trial
from headrace.pipeline.cli import main
from headrace.pipeline.flags.flag_values import seconds_of
from headrace.transforms.errors import InvalidRequest
from headrace.transforms.shards.shard import Shard
from headrace.transforms.storage import ObjectRef
from headrace.transforms.storage.memory import OBJECTS
from tests.support.jobs import model_folder, put_inputs, put_table, rows

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    put_inputs(f"{tmp_path}/in", [3000, 3000, 4000])
    return [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out"]


def test_rows_are_run_and_nothing_is_written(capfd: Capture, argv: list[str], tmp_path: Path) -> None:
    before = set(OBJECTS)
    more = ["--trial=2000", "--within=90min", "--price_per_core_hour=0.05", "--batch_size=500", "--json"]
    assert main(["plan", *argv, *more]) == 0
    out, err = capfd.readouterr()
    assert "Running about 2,000 rows here" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert set(OBJECTS) == before
    made = json.loads(out)["forecast"]
    trial = made["trial"]
    assert trial["rows"] == 2000 // trial["cores"] * trial["cores"]
    each = trial["rows"] // trial["cores"]
    assert trial["warm_up_rows"] >= min(500, each) * trial["cores"]
    assert trial["whole_batches"] is (each >= 500)
    assert trial["stopped"] is False
    assert 0 < trial["seconds"] < 60
    assert trial["peak_bytes"] >= trial["loaded_bytes"] > 100 << 20
    # id, a name and three scores, as the files have them: more than the scores alone, less than ten times that.
    assert 12 < trial["output_bytes_per_row"] < 120
    assert trial["rows_per_second_per_core"] == pytest.approx(trial["rows"] / trial["seconds"] / trial["cores"])
    assert (made["rows"], made["shards"], made["within"], made["in_time"]) == (10_000, 3, 5400, True)
    assert made["core_hours"] == pytest.approx(10_000 / trial["rows_per_second_per_core"] / 3600)
    paid = made["core_hours"] + made["workers"] * made["cores_per_worker"] * trial["load_seconds"] / 3600
    assert made["cost"] == pytest.approx(0.05 * paid)


def test_the_text_and_the_result_object(argv: list[str]) -> None:
    model, source, output = (one.partition("=")[2] for one in argv)
    report = headrace.plan(model=model, input=source, output=output, trial=50, price_per_core_hour=0.1)
    assert isinstance(report.forecast, Forecast)
    assert report.forecast.trial.whole_batches is False  # 50 rows of 8,192 in a batch
    for words in (
        "What it will take",
        "rows per second and core",
        "core hours",
        "--machine_type=n2-",
        "Cost  ",
        "Try more rows",
    ):
        assert words in report.text
    assert [line for line in report.text.splitlines() if len(line) > 80 and "/" not in line] == []
    assert headrace.plan(model=model, input=source, output=output).forecast is None


def test_a_row_that_cannot_be_predicted_ends_it_or_counts_as_bad(
    capfd: Capture, argv: list[str], tmp_path: Path
) -> None:
    """What plan has not seen, since it is no null that a footer records: the trial meets it."""
    function = tmp_path / "meets.py"
    function.write_text("def check(batch):\n    raise ValueError('row of mine')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert main(["plan", *argv, "--preprocess=meets:check", "--trial=20"]) == 2
    assert "row of mine" in capfd.readouterr().err
    table = rows(0, 100)
    put_table(f"{tmp_path}/in/part-00003.parquet", table.set_column(2, "x", pa.nulls(100, pa.list_(pa.float32()))))
    model, _, output = argv
    bad = [model, f"--input={tmp_path}/in/part-00003.parquet", output, "--trial=10", "--json"]
    assert main(["plan", *bad, "--on_error=dead_letter"]) == 0
    trial = json.loads(capfd.readouterr().out)["forecast"]["trial"]
    assert trial["bad_rows"] == trial["rows"] == 10 // trial["cores"] * trial["cores"]


def test_the_time_is_bounded(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "MOST_SECONDS", 0.05)
    model, source, output = (one.partition("=")[2] for one in argv)
    report = headrace.plan(model=model, input=source, output=output, trial=10_000, batch_size=5)
    assert report.forecast is not None
    trial = report.forecast.trial
    assert trial.stopped
    assert 0 < trial.rows < 9_000
    assert "The time of a trial was over" in report.text


MEASURED = Trial(10_000, 0, 5.0, 2, "cpu", 0.9, 1000, 1.0, 10.0, 40.0, 2 << 30, 3 << 30, True, False)


def made(**given: Any) -> Forecast:
    whole: dict[str, Any] = {"rows": 36_000_000, "shards": 500, "input_bytes": 72_000_000, "min_memory": 4 * 10**9}
    return forecast(given.pop("trial", MEASURED), **(whole | given))


def test_what_a_plan_will_take() -> None:
    """1,000 rows per second and core: 36 million are 10 core hours."""
    found = made(within=7200.0, price_per_core_hour=0.05)
    assert found.core_hours == 10
    assert found.input_bytes_per_row == 2
    assert found.workers * found.cores_per_worker >= 36_000 / (7200 - 10)
    assert (found.machine_type, found.workers, found.in_time) == ("n2-standard-2", 3, True)
    assert found.seconds == 36_000 / 6 + 10
    assert found.cost == pytest.approx(0.05 * (10 + 6 * 10 / 3600))
    assert made(within=600.0).cores_per_worker == 8
    assert made(within=600.0).workers == 8
    # 3 GiB for two cores, of which 2 GiB are the model's: 2 GiB and half a GiB for each core.
    assert made(within=600.0).memory_bytes_per_worker == 6 << 30


def test_memory_chooses_the_machine() -> None:
    large = replace(MEASURED, loaded_bytes=20 << 30, peak_bytes=21 << 30)
    found = made(trial=large, within=7200.0)
    assert (found.machine_type, found.memory_bytes_per_worker) == ("n2-highmem-4", 22 << 30)
    assert made(trial=replace(MEASURED, loaded_bytes=900 << 30, peak_bytes=900 << 30)).machine_type is None


def test_more_cores_than_shards_do_nothing() -> None:
    found = made(shards=4, within=600.0)
    assert (found.workers * found.cores_per_worker, found.in_time) == (4, False)
    assert found.seconds == 36_000 / 4 + 10
    assert not made(within=5.0).in_time  # less than loading takes


def test_shards_are_taken_from_all_of_a_plan() -> None:
    def shards(count: int) -> Iterator[Shard]:
        return (Shard(str(i), ObjectRef("in", 1, "1"), i, 1, (0, 1), 1) for i in range(count))

    for count in (1, 5, 256, 257, 100_000):
        sample = EvenSample()
        assert sum(1 for _ in sample.watch(shards(count))) == count
        at = [shard.first_row for shard in sample.shards]
        assert min(count, 128) <= len(at) <= 256
        assert len({b - a for a, b in pairwise(at)}) <= 1
        assert at[0] == 0
        assert at[-1] >= count * 0.99 - 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90min", 5400), ("1h30m", 5400), ("45s", 45), ("0.5d", 43_200)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of("within", text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "-1h", "0h", "2h!", "1w"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a length of time"):
        seconds_of("within", text)


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("run", ["--trial=5"], "--trial is for plan"),
        ("plan", ["--within=2h"], "--within is for plan --trial"),
        ("plan", ["--price_per_core_hour=1"], "--price_per_core_hour is for plan --trial"),
        ("plan", ["--trial=5", "--price_per_core_hour=0"], "is not a price"),
        ("plan", ["--trial=0"], "--trial=0 is out of range"),
        ("plan", ["--trial=5", "--within=soon"], "is not a length of time"),
    ],
)
def test_flags_that_make_no_sense(capfd: Capture, argv: list[str], command: str, flags: list[str], said: str) -> None:
    assert main([command, *argv, *flags]) == 2
    assert said in capfd.readouterr().err
