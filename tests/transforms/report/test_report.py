"""The report's parts: what is merged, how far runs lie apart, what the next run reads back, how large it gets."""

from __future__ import annotations

import json
import math
import pickle
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transforms.errors import InvalidRequest
from headrace.transforms.jobs.job import Job
from headrace.transforms.nested_arrow import schema_of
from headrace.transforms.report.account import Account, TimeLine, merged
from headrace.transforms.report.charts import column_charts, number
from headrace.transforms.report.drift import MARKED, SLIGHT, distance, shifts, worst
from headrace.transforms.report.kept import Kept, embedded, read_report
from headrace.transforms.report.write import write_report
from headrace.transforms.shards.column_statistics import Column, Columns
from headrace.transforms.shards.measuring import Process, ShardMeasurements, ShardMeasuring
from headrace.transforms.shards.number_bins import Numbers
from headrace.transforms.shards.shard import Shard, ShardResult
from headrace.transforms.storage import ObjectRef, open_store
from tests.support.finishing import account_of
from tests.support.jobs import put
from tests.support.plans import plain_job

SCHEMA = schema_of({"s": pa.list_(pa.field("element", pa.float32(), nullable=False), 10), "name": pa.string()})


def job_in(tmp_path: Path, **more: Any) -> Job:
    place = f"memory://{tmp_path.name}"
    more = {"report": f"{place}/out/_headrace/report.html"} | more
    return plain_job(f"{place}/in/*.parquet", output=f"{place}/out", **more)


def batch(seed: int, rows: int = 300, shift: float = 0.0, name: str = "a") -> pa.RecordBatch:
    logits = np.random.default_rng(seed).normal(0, 2, (rows, 10))
    logits[:, 0] += shift
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1).astype(np.float32)), 10)
    return pa.RecordBatch.from_arrays([lists.cast(SCHEMA.field("s").type), pa.array([name] * rows)], schema=SCHEMA)


def results(count: int, kinds: int = 50, **how: Any) -> Iterator[ShardResult]:
    """Of so many shards in ten processes, one after the other; their predictions are of a few different kinds."""
    told = []
    for seed in range(kinds):
        measuring = ShardMeasuring(SCHEMA, SCHEMA.names)
        for _ in range(3):
            measuring.add(batch(seed, **how), 0.01 * (1 + seed % 7))
        measuring.key_values()
        told.append(measuring.measurements())
    for i in range(count):
        source = ObjectRef(f"memory://b/in/part-{i:06d}.parquet", 1000, str(i))
        shard = Shard(f"part-{i:06d}-000000000000-000000000900-{0:020x}.parquet", source, 0, 900, (0, 1), 1000)
        process, began = Process(f"worker-{i % 10}:7", 1e9, 2.5, 0), 1e9 + 2.5 + i // 10 * 3.0
        said = told[i % kinds]
        seconds = {"read": 0.5, "predict": 2.0, "write": 0.25}
        yield ShardResult(
            *(shard, 5000, "1", 0),
            computed=True,
            predicted_rows=900,
            batches=3,
            read_bytes=1000,
            seconds=seconds,
            device="cpu",
            measurements=ShardMeasurements(said.columns, began, began + 2.75 + i % 5, said.batch_seconds, process, 1),
        )


def written(job: Job) -> str:
    assert job.report is not None
    store = open_store(job.report)
    return store.read(store.stat(job.report)).decode()


class Tags(HTMLParser):
    """Raises where elements do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()


def test_a_hundred_thousand_shards_are_a_small_page(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    began = time.process_time()
    part = account_of(results(10_000))
    accounts = [pickle.loads(pickle.dumps(part)) for _ in range(10)]
    assert write_report(job, ["_manifest/part-00000-0.parquet"], accounts) == job.report
    page = written(job)
    assert len(page) < 400_000
    assert time.process_time() - began < 300
    whole = merged(accounts)
    assert (whole.shards, whole.rows, whole.described, whole.retries) == (100_000, 90_000_000, 100_000, 10)
    assert len(whole.time_line.nanoseconds) <= 400
    spent = sum(sum(span) for span in whole.time_line.nanoseconds.values())
    assert spent == pytest.approx(1e9 * (100_000 * 2.75 + 10 * 2.5))
    assert len(whole.slowest) == 40
    assert {slow.lasted for slow in whole.slowest} == {2.75 + 4}
    assert whole.columns[0].rows == 90_000_000
    assert "90,000,000" in page
    tags = Tags()
    tags.feed(page)
    assert (tags.open, tags.scripts) == ([], 3)


def test_accounts_merge_to_that_of_all() -> None:
    some = list(results(60, kinds=7))
    whole, parts = account_of(some), Account()
    for at in range(0, 60, 17):
        parts.merge(account_of(some[at : at + 17]))
    parts.settle()
    assert [column.dump()["rows"] for column in parts.columns] == [54_000, 54_000]
    for mine, other in zip(parts.columns, whole.columns, strict=True):
        assert_same(mine.dump(), other.dump())
    assert parts.slowest == whole.slowest
    assert parts.time_line.nanoseconds.keys() == whole.time_line.nanoseconds.keys()
    assert (parts.began, parts.ended, parts.devices) == (whole.began, whole.ended, whole.devices)
    assert parts.batch_seconds.count == whole.batch_seconds.count == 180


def assert_same(one: Any, other: Any) -> None:
    """But for the last bits of sums."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, float):
        assert one == pytest.approx(other)
    else:
        assert one == other


def test_a_time_line_keeps_the_seconds_however_often_it_widens() -> None:
    line, other = TimeLine(), TimeLine()
    for i in range(300):
        (line if i % 2 else other).add(1e9 + i * i / 7, 1e9 + i * i / 7 + 0.5 + i % 3, (0.0, 0.5, 1.0, 0.25))
    other.add(1e9 - 5e4, 1e9 - 5e4 + 1, (1.0, 0.0, 0.0, 0.0))
    line.merge(other)
    assert len(line.nanoseconds) <= 401
    totals = np.sum(list(line.nanoseconds.values()), axis=0)
    assert totals.tolist() == pytest.approx([1e9, 150e9, 300e9, 75e9])


def test_the_distance_is_that_of_jensen_and_shannon() -> None:
    assert distance([3, 3, 3], [1, 1, 1]) == 0
    assert distance([1, 0], [0, 5]) == 1
    # 1 - H(3/4) / 2 … by hand: H(3/4, 1/4) - (0 + 1) / 2 = 0.311278
    assert distance([1, 0], [1, 1]) == pytest.approx(math.sqrt(0.311278), abs=1e-6)
    assert distance([7, 2, 5], [1, 9, 0]) == distance([1, 9, 0], [7, 2, 5])
    for index, found in ((0.1, SLIGHT), (0.25, MARKED)):
        # Two bins whose population stability index is `index`, by bisection.
        low, high = 0.5, 0.99
        for _ in range(60):
            p = (low + high) / 2
            psi = (p - 0.5) * math.log(p / 0.5) + (0.5 - p) * math.log((1 - p) / 0.5)
            low, high = (low, p) if psi > index else (p, high)
        assert distance([p, 1 - p], [0.5, 0.5]) == pytest.approx(found, abs=0.01)


def described(*batches: pa.RecordBatch) -> list[Column]:
    columns = Columns(SCHEMA, SCHEMA.names)
    for one in batches:
        columns.add(one)
    return columns.columns


@pytest.mark.parametrize(
    ("now", "before", "grade"),
    [
        (batch(1, 5000), batch(2, 5000), "steady"),
        (batch(1, 40), batch(2, 40), "steady"),  # chance
        (batch(1, 5000), batch(2, 5000, shift=1.0), "slight"),
        (batch(1, 5000), batch(2, 5000, shift=3.0), "marked"),
    ],
    ids=["alike", "few rows", "somewhat", "much"],
)
def test_shifts_are_graded(now: pa.RecordBatch, before: pa.RecordBatch, grade: str) -> None:
    scores, names = (list(shifts(*pair)) for pair in zip(described(now), described(before), strict=True))
    found = worst(scores)
    assert found is not None
    assert found.grade == grade, scores
    assert [(one.of, one.distance) for one in names] == [("values", 0.0)]


def test_nulls_and_values_never_seen_before_are_shifts() -> None:
    def of(values: list[Any], kind: pa.DataType) -> Column:
        made = Column.of("c", kind)
        made.add(pa.array(values, kind))
        return made

    (nulls,) = shifts(of([1.5] * 500 + [None] * 500, pa.float64()), of([1.5] * 1000, pa.float64()))
    (nan,) = shifts(of([1.5] * 500 + [math.nan] * 500, pa.float64()), of([1.5] * 1000, pa.float64()))
    (words,) = shifts(of(["a"] * 1000, pa.string()), of(["b"] * 1000, pa.string()))
    assert (nulls.grade, nan.grade, words.distance) == ("marked", "marked", 1.0)
    assert not list(shifts(of([], pa.string()), of(["b"], pa.string())))
    assert worst([]) is None


def kept(**more: Any) -> Kept:
    settings: dict[str, Any] = {"manifest": ("part",), "written": "then", "model": "m", "rows": 1, "bad_rows": 0}
    return Kept(**settings | {"rows_per_second": None, "columns": ()} | more)


def test_no_text_of_the_data_gets_out_of_its_place(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><!--\u2028&amp;"
    job = job_in(tmp_path)
    measuring = ShardMeasuring(SCHEMA.set(1, pa.field(hostile, pa.string())), [hostile])
    measuring.add(batch(1, name=hostile).rename_columns(["s", hostile]), 0.1)
    measuring.key_values()
    (first,) = results(1, kinds=1)
    result = ShardResult(
        *(first.shard, 1, "1", 0),
        computed=True,
        predicted_rows=900,
        seconds=first.seconds,
        measurements=measuring.measurements(),
    )
    write_report(job, ["part"], [account_of([result])])
    page = written(job)
    tags = Tags()
    tags.feed(page)
    assert (tags.open, tags.scripts) == ([], 3)
    assert "alert(1)</script>" not in page
    assert job.report is not None
    store = open_store(job.report)
    again = read_report(store, store.stat(job.report))
    assert [(column.name, column.values) for column in again.columns] == [(hostile, {hostile: 300})]


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("<html>", "without a report's data"),
        ("{}", "KeyError"),
        ("[1]", "TypeError"),
        (json.dumps({"headrace_report": 2}), "of form 2"),
        (embedded(kept().dump() | {"columns": [{"name": 1}]}), "KeyError"),
        (embedded(kept().dump() | {"rows": []}), "TypeError"),
        ("[" * 100_000, "lists or objects within each other, deeper than 200"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, page: str, found: str) -> None:
    uri = f"memory://{tmp_path.name}/report.html"
    if not page.startswith("<"):
        page = f'<script type="application/json" id="headrace-report">{page}</script>'
    ref = put(uri, page.encode())
    with pytest.raises(InvalidRequest, match=rf"{re.escape(uri)} is not a report of headrace.*{found}"):
        read_report(open_store(uri), ref)


def test_a_last_step_that_runs_again_leaves_the_report_as_it_is(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    account = account_of(results(3))
    write_report(job, ["one"], [account])
    first = written(job)
    write_report(job, ["one"], [account])
    assert written(job) == first
    write_report(job, ["two"], [account])
    assert "Compared with the run of" in written(job)
    assert written(job) != first


def test_what_cannot_be_written_is_told_and_fails_no_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = put(f"memory://{tmp_path.name}/mine.html", b"somebody's page").uri
    job = job_in(tmp_path, report=uri)
    assert write_report(job, ["one"], [account_of(results(1))]) is None
    assert "The report could not be written" in caplog.text
    assert "is not a report of headrace" in caplog.text
    assert written(job) == "somebody's page"


@pytest.mark.parametrize(
    ("values", "labels", "bars"),
    [
        ([0.1, 0.9], ("0.1", "0.9"), 16),
        ([1.0] * 99 + [1e6], ("1", "1.049e6"), 20),
        ([0.0] * 5 + list(np.linspace(1, 2, 994)) + [1e9], ("0", "1e9"), 0),
        ([0.0] * 500 + [50.0], ("0", "50"), 25),
        ([0.0] * 500 + [-1.0, 1e300], None, 0),
        ([-3.0, 3.0], ("\N{MINUS SIGN}3", "3"), 30),
        ([1e300, 1e-300], None, 0),
        ([5e-324, 1.7e308], None, 0),
        ([2.0], ("2", "2.2"), 1),
        ([-0.5] * 7, None, 1),
        ([0.0, -0.0], None, 1),
        ([1.7976931348623157e308], None, 1),
        ([-1.7976931348623157e308, 1.7976931348623157e308], None, 36),
        ([0.001] * 50 + [0.5], ("1/1,024", "1"), 10),
        (list(np.arange(0, 1, 0.1)), ("0", "0.9"), 18),
    ],
)
def test_a_histogram_holds_all_that_there_is(values: list[float], labels: tuple[str, str] | None, bars: int) -> None:
    numbers = Numbers()
    numbers.add(np.array(values))
    (chart,) = column_charts(Column("c", "double", len(values), numbers=numbers), None)
    assert sum(chart.now) == pytest.approx(1)
    assert len(chart.labels) == len(chart.now) + 1 <= 130
    if labels is not None:
        assert (chart.labels[0], chart.labels[-1]) == labels
    if bars:
        assert len(chart.now) == bars


def test_numbers_of_which_none_was_looked_at_have_no_histogram() -> None:
    seen, unseen = Numbers(), Numbers()
    seen.add(np.array([1.0, 2.0]))
    unseen.add(np.array([1.0, 2.0]), weight=0)
    column, before = Column("c", "double", 2, numbers=unseen), Column("c", "double", 2, numbers=seen)
    assert (unseen.count, unseen.binned) == (2, 0)
    assert column_charts(column, None) == column_charts(column, before) == []
    (chart,) = column_charts(before, column)
    assert chart.before is None


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        (pa.list_(pa.string()), "Length in bytes"),
        (pa.list_(pa.field("element", pa.list_(pa.large_binary(), 2), nullable=False)), "Length in bytes"),
        (pa.dictionary(pa.int32(), pa.string()), "Length in bytes"),
        (pa.large_string(), "Length in bytes"),
        (pa.list_(pa.field("string", pa.int64())), "Values"),
        (pa.dictionary(pa.int32(), pa.int64()), "Values"),
    ],
    ids=str,
)
def test_lengths_of_text_are_told_as_such(kind: pa.DataType, title: str) -> None:
    column = Column.of("c", kind)
    assert column.numbers is not None
    column.values = None
    column.numbers.add(np.array([1.0, 2.0]))
    (chart,) = column_charts(column, None)
    assert chart.title == title


@pytest.mark.parametrize("names", [["²", "1"], ["--5", "5"], ["①", "x"], ["9" * 30, "1"]])
def test_what_looks_like_numbers_and_is_none_has_a_chart(names: list[str]) -> None:
    (chart,) = column_charts(Column("c", "string", 2, values=dict.fromkeys(names, 1)), None)
    assert sorted(chart.labels) == sorted(names)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.integers(1, 50))
def test_any_numbers_have_a_histogram(values: list[float], times: int) -> None:
    numbers, before = Numbers(), Numbers()
    numbers.add(np.array(values * times))
    before.add(np.array(values[:1] * times))
    for earlier in (None, Column("c", "double", times, numbers=before)):
        (chart,) = column_charts(Column("c", "double", len(values) * times, numbers=numbers), earlier)
        assert sum(chart.now) == pytest.approx(1)
        assert len(chart.labels) == len(chart.now) + 1 <= 130


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5678, "1,235"), (0.12345, "0.1235"), (-2.5, "\N{MINUS SIGN}2.5"), (1e-9, "1e\N{MINUS SIGN}9")],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text
    assert number(None) == number(math.nan) == "\N{EN DASH}"


def test_a_shard_whose_predictions_cannot_be_counted_is_told_of_without_them() -> None:
    measuring = ShardMeasuring(pa.schema([("score", pa.float32())]), ["score"])
    measuring.add(pa.record_batch({"another": [1.0]}), 0.5)
    measuring.add(pa.record_batch({"score": pa.array([1.0], pa.float32())}), 0.5)
    assert measuring.key_values() == {}
    told = measuring.measurements()
    assert told.columns is None
    assert told.batch_seconds.count == 2
