"""Accounts of shards in any order and any bundles are one account, to the bit; and so is the page made of it."""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.beam.finalize import Accounts
from headrace.transforms.nested_arrow import schema_of
from headrace.transforms.report.account import MOST_FOOTERS, SLOWEST, Account, TimeLine, merged
from headrace.transforms.report.kept import Kept
from headrace.transforms.report.page import Run, page
from headrace.transforms.shards.column_statistics import Column, Columns
from headrace.transforms.shards.measuring import (
    STATISTICS,
    Process,
    ShardMeasurements,
    ShardMeasuring,
    known_columns,
)
from headrace.transforms.shards.shard import Shard, ShardResult
from headrace.transforms.storage import ObjectRef
from tests.support.finishing import account_of
from tests.support.plans import plain_job

SCHEMA = schema_of({"score": pa.float32(), "word": pa.string(), "n": pa.int64()})
COUNT = 120


def statistics(seed: int) -> tuple[Column, ...]:
    draw = np.random.default_rng(seed)
    columns = Columns(SCHEMA, SCHEMA.names)
    values = [
        draw.normal(1e3, 10.0**-seed, 50).astype(np.float32),
        draw.choice(list("abcdef"), 50),
        draw.integers(0, 9, 50),
    ]
    columns.add(pa.RecordBatch.from_arrays([pa.array(one) for one in values], schema=SCHEMA))
    return columns.encode()[1]


def some_results() -> list[ShardResult]:
    """Computed ones of ten processes, and each seventh found done; each fifth has dead letters."""
    told, draw = [statistics(seed) for seed in range(7)], random.Random(3)
    made = []
    for i in range(COUNT):
        source = ObjectRef(f"memory://b/in/{i:04d}.parquet", 100, str(i))
        shard = Shard(f"{i:04d}-000000000000-000000000050-{i:020x}.parquet", source, 0, 50, (0, 1), 100)
        letters = f"memory://b/letters/{i}.pq" if i % 5 == 0 else None
        result = ShardResult(shard, 1000 + i, "1", 0, computed=False, predicted_rows=50, dead_letters=letters)
        if i % 7:
            began, lasted = 1e9 + draw.random() * 300, draw.lognormvariate(0, 2)
            process = Process(f"worker-{draw.randrange(10)}:7", 1e9 - draw.random(), draw.random(), i % 3)
            seconds = {stage: draw.random() * lasted for stage in ("read", "predict", "write")}
            measured = ShardMeasurements(told[i % len(told)], began, began + lasted, process=process, retries=i % 11)
            measured.batch_seconds.add(np.array([draw.random() for _ in range(5)]))
            result = replace(
                result, computed=True, seconds=seconds, measurements=measured, device=draw.choice(["cpu", "gpu"])
            )
        made.append(result)
    return made


RESULTS = some_results()


def bundled(results: Sequence[ShardResult], cuts: Sequence[int]) -> list[Account]:
    combine, edges = Accounts(), [0, *sorted(cuts), len(results)]
    accounts = []
    for begin, end in itertools.pairwise(edges):
        some = results[begin:end]
        ofs = [account_of(some[at : at + 5]) for at in range(0, len(some), 5)]
        account = combine.create_accumulator()
        for one in ofs:
            account = combine.add_input(account, one)
        accounts.append(combine.compact(account))
    return accounts


def shown(account: Account) -> str:
    kept = Kept(("part",), "then", "m", account.rows, account.bad_rows, None, tuple(account.columns))
    return page(Run(plain_job("memory://b/in/*.parquet"), account, kept, None, "No earlier run."))


WHOLE = shown(merged([account_of(RESULTS)]))


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(COUNT)), st.lists(st.integers(0, COUNT), max_size=6), st.randoms())
def test_the_page_is_the_same_to_the_byte_in_whatever_order(order: list[int], cuts: list[int], shuffle: Any) -> None:
    accounts = bundled([RESULTS[i] for i in order], cuts)
    shuffle.shuffle(accounts)
    combined = Accounts().extract_output(Accounts().merge_accumulators(accounts))
    assert shown(merged([combined])) == WHOLE


def test_a_pipeline_combines_to_the_same() -> None:
    def check(accounts: list[tuple[str, Account]]) -> None:
        assert [name for name, _ in accounts] == ["all"]
        assert shown(merged([accounts[0][1]])) == WHOLE

    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        combined = (
            pipeline
            | beam.Create(RESULTS)
            | beam.Map(lambda one: ("all", account_of([one])))
            | beam.CombinePerKey(Accounts())
        )
        _ = combined | beam.combiners.ToList() | beam.Map(check)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e5), st.floats(0, 1e4)), max_size=30), st.randoms())
def test_a_time_line_is_the_same_in_whatever_order(spent: list[tuple[float, float, float]], shuffle: Any) -> None:
    line, parts = TimeLine(), [TimeLine(), TimeLine()]
    for began, lasted, seconds in spent:
        line.add(began, began + lasted, (0.0, seconds, 0.0, seconds / 3))
    shuffle.shuffle(spent)
    for began, lasted, seconds in spent:
        shuffle.choice(parts).add(began, began + lasted, (0.0, seconds, 0.0, seconds / 3))
    parts[0].merge(parts[1])
    assert parts[0] == line


def test_an_account_stays_small() -> None:
    """Of whatever there may be one of each shard, a bounded number is kept; those that are first, whenever it is cut."""
    account, found = Account(), [one for one in RESULTS if not one.computed]
    many = [
        replace(one, shard=replace(one.shard, output=f"{i}-{one.shard.output}"), dead_letters=f"memory://b/{i}")
        for i in range(200)
        for one in found
    ]
    for result in many:
        account.add(result)
    assert len(account.unread) <= 2 * MOST_FOOTERS
    account.settle()
    assert (len(account.unread), len(account.dead_letters), len(account.slowest)) == (MOST_FOOTERS, 50, 0)
    assert account.unread == account_of(reversed(many)).unread
    assert account_of(RESULTS).slowest == sorted(account_of(RESULTS).slowest, reverse=True)[:SLOWEST]


@pytest.mark.parametrize("order", [1, -1])
def test_a_column_that_a_file_holds_as_another_type_is_left_out(order: int) -> None:
    """Whichever came first, nobody would know which is right."""
    odd = replace(RESULTS[1], measurements=ShardMeasurements((Column("word", "int64", rows=9),)))
    account = merged([account_of([odd]), account_of(RESULTS)][::order])
    assert [column.name for column in account.columns] == ["score", "n"]
    assert account.unlike == {"word"}


def test_a_fault_in_counting_is_logged_and_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    broken = replace(RESULTS[1], seconds={})
    assert account_of([broken, RESULTS[2]]).described == 2
    assert f"The report lacks some of {broken.shard.output}" in caplog.text


def test_measurements_are_the_same_when_a_runner_has_moved_them() -> None:
    """What did not fit a prediction file is nowhere, so that it does not matter who reads it there."""
    many = schema_of({f"c{i}": pa.float64() for i in range(60)})
    measuring = ShardMeasuring(many, many.names)
    draw = np.random.default_rng(1)
    numbers = [pa.array(np.exp(draw.normal(0, 90, 5000)) * draw.choice([-1, 1], 5000)) for _ in many]
    measuring.add(pa.RecordBatch.from_arrays(numbers, schema=many), 0.5)
    kept = measuring.key_values()[STATISTICS]
    told = measuring.measurements()
    moved, columns = pickle.loads(pickle.dumps(told)), known_columns(kept)
    assert columns is not None
    assert told.columns is not None
    assert 10 < len(columns) < 60
    dumps = [[column.dump() for column in some] for some in (told.columns, moved.columns, columns)]
    assert dumps[0] == dumps[1] == dumps[2]
    assert moved.batch_seconds.dump() == told.batch_seconds.dump()
