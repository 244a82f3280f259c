"""`Predict` in streaming pipelines: what comes late, in which window, and models that take the place of the first one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.ml.inference.base import ModelMetadata
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_stream import TestStream
from apache_beam.testing.util import assert_that
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.windowed_value import PaneInfoTiming

from headrace import Predict
from headrace.beam.yaml import Predict as PredictRows
from headrace.transforms.errors import ColumnError, InvalidRequest


def scaling_model(folder: Path, factor: float, output: str = "y") -> str:
    """`y` is `x` times the factor."""
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec([None], tf.float32, "x")
    module.serve = tf.function(lambda x: {output: x * factor}, input_signature=[spec])
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, factor in (("first", 1.0), ("second", 2.0)):
        scaling_model(folder / name, factor)
    scaling_model(folder / "other", 1.0, output="z")
    return folder


def _batch(ids: Any) -> pa.RecordBatch:
    ids = sorted(ids)
    return pa.record_batch({"id": ids, "x": pa.array(ids, pa.float32())})


class _Where(beam.DoFn):
    def process(
        self,
        element: Any,
        at: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Any:
        ids = element.column("id").to_pylist() if isinstance(element, pa.RecordBatch) else element.id
        yield ids, float(at), int(window.end), PaneInfoTiming.to_string(pane.timing), pane.index


def _equals(wanted: Any) -> Any:
    def check(found: Any) -> None:
        assert sorted(found) == wanted, sorted(found)

    return check


@pytest.mark.parametrize("kind", ["batches", "rows"])
def test_windows_timestamps_and_panes_are_kept_also_of_what_comes_late(models: Path, kind: str) -> None:
    stream = (
        TestStream()
        .advance_watermark_to(0)
        .add_elements([TimestampedValue(1, 1), TimestampedValue(2, 2), TimestampedValue(3, 13)])
        .advance_watermark_to(20)
        .add_elements([TimestampedValue(4, 4)])
        .advance_watermark_to_infinity()
    )
    late = AfterWatermark(late=AfterCount(1))
    model = str(models / "first")
    with beam.Pipeline(runner=BundleBasedDirectRunner(), options=PipelineOptions(streaming=True)) as pipeline:
        grouped = (
            pipeline
            | stream
            | beam.WindowInto(
                FixedWindows(10), trigger=late, allowed_lateness=100, accumulation_mode=AccumulationMode.DISCARDING
            )
            | beam.Map(lambda number: ("all", number))
            | beam.GroupByKey()
        )
        if kind == "batches":
            predicted = (
                grouped | beam.MapTuple(lambda _, ids: _batch(ids)).with_output_types(pa.RecordBatch) | Predict(model)
            )
        else:
            rows = grouped | beam.FlatMapTuple(lambda _, ids: [beam.Row(id=int(i), x=float(i)) for i in ids])
            predicted = rows | PredictRows(model, cast=["x"], keep=["id"])
        first, second, after = [(9.999999, 10, "ON_TIME", 0), (19.999999, 20, "ON_TIME", 0), (9.999999, 10, "LATE", 1)]
        wanted = {
            "batches": [([1, 2], *first), ([3], *second), ([4], *after)],
            "rows": [(1, *first), (2, *first), (3, *second), (4, *after)],
        }
        assert_that(predicted | beam.ParDo(_Where()), _equals(wanted[kind]))


def _updates(pipeline: Any, models: Path) -> Any:
    """Of three windows of ten seconds: the first model, the second, and the first again by its own path."""
    paths = {1: "", 12: str(models / "second"), 23: str(models / "first")}
    return (
        pipeline
        | "Updates" >> beam.Create(list(paths.items()))
        | "At" >> beam.MapTuple(lambda at, path: TimestampedValue(ModelMetadata(path, "m"), at))
        | "Windows" >> beam.WindowInto(FixedWindows(10))
    )


@pytest.mark.parametrize("kind", ["batches", "rows"])
def test_a_side_input_says_which_model_counts_in_a_window(models: Path, kind: str) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        updates = _updates(pipeline, models)
        numbers = (
            pipeline
            | beam.Create([4, 25, 14, 5, 15], reshuffle=False)
            | beam.Map(lambda i: TimestampedValue(i, i))
            | beam.WindowInto(FixedWindows(10))
        )
        if kind == "batches":
            batches = numbers | beam.Map(lambda i: _batch([i])).with_output_types(pa.RecordBatch)
            predicted = batches | Predict(str(models / "first"), update_model=updates)
            found = predicted | beam.Map(lambda batch: (batch["id"][0].as_py(), batch["y"][0].as_py()))
        else:
            rows = numbers | beam.Map(lambda i: beam.Row(id=int(i), x=float(i)))
            predicted = rows | PredictRows(str(models / "first"), cast=["x"], keep=["id"], update_model=updates)
            found = predicted | "Pairs" >> beam.Map(lambda row: (row.id, row.y))
        assert_that(found, _equals([(4, 4.0), (5, 5.0), (14, 28.0), (15, 30.0), (25, 25.0)]))


def test_a_model_file_that_appears_takes_the_place_of_the_first(models: Path, tmp_path: Path) -> None:
    scaling_model(tmp_path / "third", 3.0)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        appeared = ModelMetadata(f"{tmp_path}/third/saved_model.pb", "saved_model")  # as WatchFilePattern gives it
        watched = pipeline | "Appeared" >> beam.Create([appeared])
        predicted = (
            pipeline
            | "Batch" >> beam.Create([_batch([2])])
            | Predict(str(models / "first"), update_model=watched)
            | beam.Map(lambda batch: batch["y"].to_pylist())
        )
        assert_that(predicted, _equals([[6.0]]))


def test_a_pattern_is_watched_as_run_inference_watches_it(models: Path) -> None:
    pipeline = beam.Pipeline()
    batches = pipeline | beam.Create([_batch([1])])
    _ = batches | Predict(str(models / "first"), update_model=f"{models}/*/saved_model.pb")
    steps = pipeline.to_runner_api().components.transforms.values()
    assert any(step.unique_name == "Predict/WatchModels/MatchContinuously" for step in steps)


def test_no_update_yet_means_the_first_model(models: Path) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        none = pipeline | "None" >> beam.Create([]).with_output_types(ModelMetadata)
        batches = pipeline | "Batch" >> beam.Create([_batch([2])])
        predicted = batches | Predict(str(models / "first"), update_model=none)
        assert_that(predicted | beam.Map(lambda batch: batch["y"].to_pylist()), _equals([[2.0]]))


def test_a_model_that_predicts_something_else_does_not_take_a_place_among_rows(models: Path) -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    other = pipeline | "Other" >> beam.Create([ModelMetadata(str(models / "other"), "other")])
    rows = pipeline | "Rows" >> beam.Create([beam.Row(x=1.0)])
    _ = rows | PredictRows(str(models / "first"), cast=["x"], update_model=other)
    with pytest.raises(ColumnError, match="predicts other columns"):
        pipeline.run()


@pytest.mark.parametrize("wrong", ["", 7, ["gs://bucket/models"]])
@pytest.mark.parametrize("kind", [Predict, PredictRows])
def test_what_names_no_models_is_refused(models: Path, kind: Any, wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match="update_model"):
        kind(str(models / "first"), update_model=wrong)
