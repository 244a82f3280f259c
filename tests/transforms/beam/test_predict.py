"""`Predict` in a pipeline of somebody's own, and what a job's graph counts."""

import logging
import pickle
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from headrace import Predict
from headrace.pipeline.checks.preflight import prepare
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.pipeline.runners.graph import build_graph
from headrace.transforms.beam.predict_batch import PredictBatch
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.errors import HeadraceError, InvalidRequest, NotAModel, ObjectNotFound
from headrace.transforms.jobs.job import REPORT
from headrace.transforms.models.loading import Loading
from headrace.transforms.models.pin import pin_model
from headrace.transforms.predicting.batch_predictor import request_batches
from headrace.transforms.predicting.predictor import load_predictor
from headrace.transforms.steps.predict_shard import predict_shard
from headrace.transforms.steps.termination import Cancelled
from headrace.transforms.storage import open_store
from tests.support.finishing import finalize
from tests.support.jobs import expected_scores, model_folder, names_in, put_inputs, read_output, rows, scores

logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


def predicted(batches: Any, **how: Any) -> Any:
    """What `Predict` makes of the batches, in their order."""
    found: list[pa.RecordBatch] = []
    place = f"memory://{uuid.uuid4()}"
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create([None])
            | beam.FlatMap(lambda _: batches)
            | Predict(str(model_folder() / "saved_model"), **how)
            | beam.Map(_keep, place)
        )
    for ref in open_store(place).list(f"{place}/"):
        with pa.ipc.open_stream(open_store(place).read(ref)) as stream:
            found.extend(stream)
    return pa.Table.from_batches(found).sort_by(found[0].schema.names[0])


def _keep(batch: Any, place: str) -> None:
    """Pipelines carry no variables of this test, but all of this process shares one memory store."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    with open_store(place).create(f"{place}/{batch.column(0)[0].as_py():09d}") as writer:
        writer.write(sink.getvalue())
        writer.commit()


@pytest.mark.parametrize("batch_rows", [7, 64, 1000])
def test_batches_in_batches_out(batch_rows: int) -> None:
    table = rows(0, 200)
    found = predicted(
        table.to_batches(max_chunksize=90), keep=["id"], predictions={"output_0": "p"}, batch_rows=batch_rows
    )
    assert found.schema.names == ["id", "p"]
    assert found["id"].to_pylist() == list(range(200))
    wanted = []
    for start, stop in ((0, 90), (90, 180), (180, 200)):
        wanted.append(expected_scores("saved_model", table.slice(start, stop - start), batch_rows))
    np.testing.assert_array_equal(scores(found, "p"), np.concatenate(wanted))


def test_where_leaves_rows_out_and_counts_them() -> None:
    batches = rows(0, 180).to_batches(max_chunksize=90)
    how: dict[str, Any] = {"keep": ["id"], "predictions": {"output_0": "p"}, "batch_rows": 16}
    everything = predicted(batches, **how)
    found = predicted(batches, where="id >= 80 and id < 100", **how)
    assert found.equals(everything.slice(80, 20))
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    made = pipeline | beam.Create([None]) | beam.FlatMap(lambda _: batches)
    _ = made | Predict(str(model_folder() / "saved_model"), where="id >= 80 and id < 100", **how)
    result = pipeline.run()
    result.wait_until_finish()
    found_counters = result.metrics().query(beam.metrics.MetricsFilter().with_name("filtered_rows"))["counters"]
    assert [counter.committed for counter in found_counters] == [160]
    with pytest.raises(InvalidRequest, match=r"^where .*is no condition"):
        predicted(batches, where="id >=", **how)
    with pytest.raises(Exception, match="where names a column 'nope' that the output lacks"):
        predicted(batches, where="nope > 1", **how)


@pytest.mark.parametrize("on_error", ["fail", "dead_letter"])
def test_a_batch_without_rows_is_one_also_where_only_rows_tell_a_size(tmp_path: Path, on_error: str) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec([None, None], tf.float32, "x")
    module.serve = tf.function(lambda x: {"y": x @ tf.ones([4, 2])}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    kind = pa.list_(pa.float32())
    full = pa.record_batch({"id": [1, 2], "x": pa.array([[1.0] * 4, [2.0] * 4], kind)})
    place = f"memory://{tmp_path.name}/out"
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        both = (
            pipeline
            | beam.Create([None])
            | beam.FlatMap(lambda _: [full, full.slice(0, 0)])
            | Predict(str(tmp_path / "m"), on_error=on_error)
        )
        predictions = both.predictions if on_error == "dead_letter" else both
        predictions | beam.Filter(lambda batch: batch.num_rows) | "Full" >> beam.Map(_keep, place)
        predictions | beam.Filter(lambda batch: not batch.num_rows) | beam.Map(_same_schema, full.schema)
    store = open_store(place)
    (ref,) = store.list(f"{place}/")
    with pa.ipc.open_stream(store.read(ref)) as stream:
        assert stream.read_all().to_pylist() == [{"id": 1, "y": [4.0, 4.0]}, {"id": 2, "y": [8.0, 8.0]}]


def _same_schema(batch: Any, given: Any) -> None:
    assert batch.schema.field("y").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 2)


def test_a_piece_of_a_batch_carries_no_more_than_itself() -> None:
    """Beam pickles record batches, and pyarrow with a slice all that it is a slice of."""
    ref = pin_model(str(model_folder() / "saved_model"))
    request = request_batches("serving_default", None, None, ["id"], 10, ColumnRules())
    step = PredictBatch(request, ref, Loading(), dead_letters=False)
    step.setup()
    (batch,) = rows(0, 20_000).to_batches(max_chunksize=20_000)
    pieces = list(step.process(batch))
    assert len(pieces) == 2000
    assert max(len(pickle.dumps(piece)) for piece in pieces[:50]) < 4096


def test_loading_is_counted_once_a_process_and_not_with_each_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[tuple[str, float]] = []
    monkeypatch.setattr("headrace.transforms.beam.predict_batch.time_stage", lambda *timed: stages.append(timed))
    ref = pin_model(str(model_folder() / "saved_model"))
    step = PredictBatch(
        request_batches("serving_default", None, None, None, "auto", ColumnRules()), ref, Loading(), False
    )
    step.setup()
    for _ in range(3):
        step.start_bundle()
    assert [stage for stage, _ in stages] == ["load"]


def test_features_may_be_named() -> None:
    table = rows(0, 10).rename_columns(["id", "name", "pixels"])
    found = predicted(table.to_batches(), features={"x": "pixels"})
    assert found.schema.names == ["id", "name", "output_0"]


def test_mistakes_are_told_when_it_is_constructed(tmp_path: Path) -> None:
    with pytest.raises((NotAModel, ObjectNotFound), match="nothing-here"):
        Predict(f"{tmp_path}/nothing-here")
    for wrong in (0, -1, "many", 1.5, True):
        with pytest.raises(InvalidRequest, match="batch_rows"):
            Predict(str(model_folder() / "saved_model"), batch_rows=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"signature": "nope"}, "no signature 'nope'"),
        ({"features": {"pixels": "x"}}, "no input 'pixels'"),
        ({"predictions": {"score": "p"}}, "no output 'score'"),
        ({"rules": ColumnRules(cast=("y",))}, "'y'"),
        ({"rules": ColumnRules(fill=(("x", "none"),))}, "none"),
        ({"rules": ColumnRules(prediction_type="zz")}, "zz"),
        ({"keep": "id"}, "keep is one text"),
    ],
)
def test_what_the_model_lacks_is_told_when_it_is_constructed(how: Any, told: str) -> None:
    with pytest.raises(HeadraceError, match=told):
        Predict(str(model_folder() / "saved_model"), **how)


def prepared_job(folder: Path, *more: Any) -> Any:
    argv = [
        f"--model={model_folder() / 'saved_model'}",
        f"--input={folder}/in/*.parquet",
        f"--output={folder}/out",
        *more,
    ]
    return prepare(parse_request(parse_flags(argv), "run")).job


def test_a_job_survives_pickling_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [10])
    job = prepared_job(tmp_path)
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    assert again.fingerprint == job.fingerprint
    assert prepared_job(tmp_path, "--batch_size=3").fingerprint != job.fingerprint


def test_counters_tell_rows_batches_bytes_and_times(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [100, 40, 0])
    job = prepared_job(tmp_path, "--batch_size=30")
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build_graph(pipeline, job)
    result = pipeline.run()
    result.wait_until_finish()
    told = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("headrace"))
    counters = {one.key.metric.name: one.committed for one in told["counters"]}
    store = open_store(str(tmp_path))
    written = sum(ref.size for ref in store.list(f"{tmp_path}/out/") if "/_" not in ref.uri)
    assert counters["rows"] == 140
    assert counters["batches"] == 4 + 2
    assert counters["shards"] == 3
    assert counters["written_bytes"] == written
    assert 0 < counters["read_bytes"] < sum(ref.size for ref in store.list(f"{tmp_path}/in/"))
    times = {one.key.metric.name: one.committed for one in told["distributions"]}
    assert {f"{stage}_milliseconds" for stage in ("read", "predict", "write", "load")} <= times.keys()
    assert times["predict_milliseconds"].count == 3
    assert read_output(f"{tmp_path}/out").num_rows == 140


def shard_of(job: Any) -> Any:
    from headrace.transforms.steps.plan_shards import input_files, plan_shards

    return next(plan_shards(job, input_files(job)))


def test_a_cancelled_shard_leaves_nothing(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [100])
    job, store, cancelled = prepared_job(tmp_path, "--batch_size=10"), open_store(str(tmp_path)), threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        predict_shard(job, load_predictor(job), store, store, shard_of(job), cancelled)
    assert names_in(f"{tmp_path}/out") == []


def test_a_shard_run_twice_or_by_two_at_once_is_one_file(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [5000])
    job, store = prepared_job(tmp_path, "--batch_size=10"), open_store(str(tmp_path))
    model, shard = load_predictor(job), shard_of(job)
    together = threading.Barrier(2)
    results = []

    def work() -> None:
        together.wait()
        results.append(predict_shard(job, model, store, store, shard))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names_in(f"{tmp_path}/out")) == 1
    assert sorted(result.computed for result in results) == [False, True]
    assert len({(result.output_version, result.output_bytes) for result in results}) == 1
    assert predict_shard(job, model, store, store, shard).computed is False
    assert read_output(f"{tmp_path}/out")["id"].to_pylist() == list(range(5000))


def test_equal_jobs_that_end_at_once_leave_one_manifest_and_one_mark(tmp_path: Path) -> None:
    """Each measured times of its own, so that their manifests differ."""
    put_inputs(f"{tmp_path}/in", [50])
    job, store = prepared_job(tmp_path), open_store(str(tmp_path))
    result = predict_shard(job, load_predictor(job), store, store, shard_of(job))
    first = finalize(job, [result])
    assert finalize(job, [replace(result, computed=False, seconds={})]) == first
    (manifest,) = first["manifest"]
    assert [name for name in names_in(f"{tmp_path}/out") if name.startswith("_")] == ["_SUCCESS", REPORT, manifest]
