"""Attempts at a shard that fail, stop or meet one another: dead letters are neither lost nor doubled."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from headrace import Predict
from headrace.pipeline.checks.preflight import prepare
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.pipeline.runners import graph
from headrace.pipeline.runners.graph import build_graph
from headrace.transforms.errors import InvalidRequest, StorageError
from headrace.transforms.jobs.job import Job
from headrace.transforms.predicting.predictor import load_predictor
from headrace.transforms.shards.shard import parse_output_name
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from headrace.transforms.steps.predict_shard import predict_shard
from headrace.transforms.storage import open_store
from tests.support.faulty_store import FaultyStore
from tests.support.finishing import finalize
from tests.support.jobs import model_folder, names_in, put_inputs, put_table, read_output
from tests.support.strict import dead_letters_in, mixed, put_mixed, strict_model
from tests.support.warm import Warm


def flags(place: Path, *more: str) -> list[str]:
    return [
        f"--model={strict_model()}",
        f"--input={place}/in/*.parquet",
        f"--output={place}/out",
        "--on_error=dead_letter",
        *more,
    ]


def prepared_job(argv: list[str]) -> Job:
    return prepare(parse_request(parse_flags(argv), "run")).job


def test_an_attempt_that_fails_at_its_commit_leaves_dead_letters_that_the_next_one_takes_or_removes(
    tmp_path: Path,
) -> None:
    put_mixed(f"{tmp_path}/in", [40], {3: "length", 30: "value"})
    job, store = prepared_job(flags(tmp_path, "--max_bad_rows=2", "--batch_size=8")), open_store(str(tmp_path))
    (shard,) = plan_shards(job, input_files(job))

    def refuse(verb: str, uri: str) -> None:
        if verb == "commit":
            raise StorageError(f"{uri} cannot be committed")

    with pytest.raises(StorageError, match="cannot be committed"):
        predict_shard(job, load_predictor(job), store, FaultyStore(store, fault=refuse), shard)
    folder = f"{tmp_path}/out/_dead_letters"
    first = dead_letters_in(folder)
    assert [table["headrace_row"].to_pylist() for table in first.values()] == [[3, 30]]
    assert names_in(f"{tmp_path}/out") == [f"_dead_letters/{name}" for name in first]
    result = predict_shard(job, load_predictor(job), store, store, shard)
    assert (result.predicted_rows, result.bad_rows) == (38, 2)
    finalize(job, [result])
    (name,) = dead_letters_in(folder)
    assert result.dead_letters == f"{folder}/{name}"
    # Run again, as a runner may: the same file, with the same dead letters.
    again = predict_shard(job, load_predictor(job), store, store, shard)
    assert (again.computed, again.bad_rows, again.dead_letters) == (False, 2, result.dead_letters)
    assert list(dead_letters_in(folder)) == [name]


def test_a_shard_that_another_run_commits_between_two_listings_keeps_its_bad_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_mixed(f"{tmp_path}/in", [40], {3: "length", 30: "value"})
    job, store = prepared_job(flags(tmp_path, "--max_bad_rows=2", "--batch_size=8")), open_store(str(tmp_path))
    (shard,) = plan_shards(job, input_files(job))
    listed: list[str] = []

    def then_the_other_run(name: str) -> Callable[..., Any]:
        listing = getattr(graph, name)

        def list_it(*args: Any) -> Any:
            found = list(listing(*args))
            if not listed:
                predict_shard(job, load_predictor(job), store, store, shard)
            listed.append(name)
            return found

        return list_it

    for name in ("each_finished", "list_dead_letters"):
        monkeypatch.setattr(graph, name, then_the_other_run(name))
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        graph.build_graph(pipeline, job)
    assert listed == ["each_finished", "list_dead_letters"]
    assert json.loads((tmp_path / "out" / "_SUCCESS").read_text())["bad_rows"] == 2
    (letters,) = dead_letters_in(f"{tmp_path}/out/_dead_letters").values()
    assert letters["headrace_row"].to_pylist() == [3, 30]
    assert read_output(f"{tmp_path}/out").num_rows == 38


def test_an_input_of_a_long_name_has_dead_letters_too(tmp_path: Path) -> None:
    put_table(f"{tmp_path}/in/{'a' * 240}.parquet", mixed(0, 40, {3: "length"}))
    job, store = prepared_job(flags(tmp_path, "--max_bad_rows=2")), open_store(str(tmp_path))
    (shard,) = plan_shards(job, input_files(job))
    assert predict_shard(job, load_predictor(job), store, store, shard).bad_rows == 1
    assert len(dead_letters_in(f"{tmp_path}/out/_dead_letters")) == 1


@pytest.mark.timeout(180)
def test_killed_half_way_then_run_again_every_row_is_in_one_place(warm: Warm, tmp_path: Path) -> None:
    counts = [2_000] * 6
    bad = dict.fromkeys(range(5, sum(counts), 499), "length")
    put_mixed(f"{tmp_path}/in", counts, bad)
    argv, log = flags(tmp_path, "--batch_size=4", "--max_bad_rows=1%"), tmp_path / "log.txt"
    victim = warm.start(argv, str(log))

    def finished() -> list[str]:
        standing = names_in(f"{tmp_path}/out") if (tmp_path / "out").is_dir() else []
        return [name for name in standing if parse_output_name(name)]

    deadline = time.monotonic() + 120
    while len(finished()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(victim, signal.SIGKILL)
    assert warm.wait(victim) == -signal.SIGKILL, log.read_text()
    standing = len(finished())
    assert 2 <= standing < len(counts)
    assert warm.wait(warm.start(argv, str(log))) == 0, log.read_text()
    assert f"{2_000 * standing:,} rows found done" in log.read_text()
    assert f"{len(bad):,} rows could not be predicted" in log.read_text()
    assert read_output(f"{tmp_path}/out")["id"].to_pylist() == [i for i in range(sum(counts)) if i not in bad]
    letters = dead_letters_in(f"{tmp_path}/out/_dead_letters")
    assert [row for table in letters.values() for row in table["id"].to_pylist()] == list(bad)


@pytest.mark.parametrize("more", [[], ["--jit_compile"]])
def test_many_shards_with_small_last_batches_trace_one_graph_for_each_model_at_most(
    tmp_path: Path, more: list[str]
) -> None:
    put_inputs(f"{tmp_path}/in", [50, 17, 33, 1, 48])
    models = [f"--model={name}={model_folder()}/{file}" for name, file in (("a", "saved_model"), ("b", "model.keras"))]
    argv = [*models, f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out", "--batch_size=16", *more]
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build_graph(pipeline, prepared_job(argv))
    result = pipeline.run()
    result.wait_until_finish()
    told: Any = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("headrace"))["counters"]
    counters = {one.key.metric.name: one.committed for one in told}
    assert counters["traces"] == (2 if more else 0)
    assert counters["batches"] == 4 + 2 + 3 + 1 + 3
    assert read_output(f"{tmp_path}/out").num_rows == 149


def test_predict_gives_predictions_and_dead_letters_as_two_collections(tmp_path: Path) -> None:
    batches = mixed(0, 50, {7: "value", 33: "length"}).to_batches(max_chunksize=20)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        both = (
            pipeline
            | beam.Create([None])
            | beam.FlatMap(lambda _: batches)
            | Predict(strict_model(), keep=["id"], batch_rows=8, on_error="dead_letter")
        )
        for name, batches_of in (("predictions", both.predictions), ("dead_letters", both.dead_letters)):
            batches_of | name >> beam.Map(_put, f"{tmp_path}/{name}")
    found = pa.concat_tables(dead_letters_in(f"{tmp_path}/predictions").values())
    assert found["id"].to_pylist() == [row for row in range(50) if row not in (7, 33)]
    dead = pa.concat_tables(dead_letters_in(f"{tmp_path}/dead_letters").values())
    assert dead.schema.names[:3] == ["id", "note", "x"]
    assert dead["id"].to_pylist() == [7, 33]
    assert dead["headrace_row"].to_pylist() == [7, 13]
    assert dead["headrace_stage"].to_pylist() == ["model", "features"]
    with pytest.raises(InvalidRequest, match="on_error does not take this value"):
        Predict(strict_model(), on_error="ignore")


def _put(batch: Any, folder: str) -> None:
    put_table(f"{folder}/{batch['id'][0].as_py():06d}.parquet", pa.Table.from_batches([batch]))
