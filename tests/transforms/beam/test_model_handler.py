"""`RunInference` with our handler: record batches and rows, models that are replaced, what Beam is told of a step."""

from __future__ import annotations

import gc
import logging
import pickle
import shutil
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, ModelMetadata, PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from apache_beam.transforms.display import DisplayData
from apache_beam.typehints import decorators

from headrace import Predict, StreamingModelHandler, load_model
from headrace.transforms.beam.model_handler import _joined, _rows_of
from headrace.transforms.errors import DataError, InvalidRequest, NotAModel, SignatureNotFound
from headrace.transforms.models.loading import Loading
from headrace.transforms.models.pin import pin_model
from tests.support.jobs import FEATURES, expected_scores, model_folder, plain_model, rows, scores
from tests.support.loose import loose

logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


def handler(name: str = "saved_model", **how: Any) -> StreamingModelHandler:
    return StreamingModelHandler(str(model_folder() / name), **how)


def examples(count: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    return [{"x": np.sin(np.arange(FEATURES) + i).astype(np.float32)} for i in range(count)]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the same signature, with other weights."""
    import keras

    keras.utils.set_random_seed(8)
    x = keras.Input((FEATURES,), name="x")
    path = tmp_path_factory.mktemp("other") / "model.keras"
    keras.Model(x, keras.layers.Dense(3, activation="softmax")(x)).save(path)
    return str(path)


def run(elements: Iterable[Any], inference: Any, check: Any) -> None:
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        assert_that(pipeline | beam.Create(list(elements)) | inference, check)


def test_record_batches_through_run_inference() -> None:
    table = rows(0, 200)

    def check(found: list[PredictionResult]) -> None:
        assert sum(one.example.num_rows for one in found) == 200
        assert {one.model_id for one in found} == {str(model_folder() / "saved_model")}
        for one in found:
            assert one.inference.schema.names == ["id", "p"]
            assert one.inference["id"].equals(one.example["id"])
            wanted = expected_scores("saved_model", pa.Table.from_batches([one.example]), 16)
            np.testing.assert_array_equal(scores(pa.Table.from_batches([one.inference]), "p"), wanted)

    model = handler(keep=["id"], predictions={"output_0": "p"}, batch_rows=16)
    run(table.to_batches(max_chunksize=50), RunInference(model), check)


def test_a_text_s_last_bytes_may_be_zeros(tmp_path: Path) -> None:
    """As those of a serialized tf.train.Example are, whose last number is 0."""
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec([None], tf.string, "text")
    module.serve = tf.function(lambda text: {"n": tf.strings.length(text)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    texts, lengths = [b"a\0", b"bc", b"\0", "ü\0"], [2, 2, 1, 3]
    assert load_model(str(tmp_path / "m")).predict({"text": texts})["n"].tolist() == lengths
    model = StreamingModelHandler(str(tmp_path / "m"))
    found = model.run_inference([{"text": text} for text in texts], model.load_model())
    assert [int(one.inference["n"]) for one in found] == lengths


def test_rows_are_counted_with_keys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run_inference = StreamingModelHandler.run_inference

    def counted(handler: Any, batch: Any, model: Any, inference_args: Any = None) -> Any:
        calls.append(sum(one.num_rows for one in batch))
        return run_inference(handler, batch, model, inference_args)

    monkeypatch.setattr(StreamingModelHandler, "run_inference", counted)
    model = handler(batch_rows=40)
    batches = rows(0, 400).select(["x"]).to_batches(max_chunksize=10)
    kwargs = KeyedModelHandler(model).batch_elements_kwargs()
    assert [kwargs["element_size_fn"](("key", batch)) for batch in batches] == [10] * 40
    assert kwargs["element_size_fn"](("key", {"x": 1})) == 1
    run(enumerate(batches), RunInference(KeyedModelHandler(model)), lambda found: None)
    assert sum(calls) == 400
    assert max(calls) <= 40


@pytest.mark.parametrize("name", ["saved_model", "model.keras"])
def test_rows_through_run_inference(name: str) -> None:
    wanted = plain_model(name)(np.stack([one["x"] for one in examples(40)]))

    def check(found: list[PredictionResult]) -> None:
        assert len(found) == 40
        for one in found:
            (k,) = [i for i, row in enumerate(examples(40)) if np.array_equal(row["x"], one.example["x"])]
            (values,) = one.inference.values()
            np.testing.assert_allclose(values, wanted[k], rtol=1e-5)

    run(examples(40), RunInference(handler(name)), check)


def test_a_model_that_comes_by_the_side_takes_the_place_of_the_first(other_model: str) -> None:
    import keras

    wanted = keras.saving.load_model(other_model).predict_on_batch(np.stack([one["x"] for one in examples(10)]))

    def check(found: list[PredictionResult]) -> None:
        assert {one.model_id for one in found} == {other_model}
        by_first = sorted(float(one.inference["output_0"][0]) for one in found)
        np.testing.assert_allclose(by_first, sorted(wanted[:, 0]), rtol=1e-5)

    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        updates = pipeline | "Updates" >> beam.Create([ModelMetadata(other_model, "other")])
        found = (
            pipeline | beam.Create(examples(10)) | RunInference(handler("model.keras"), model_metadata_pcoll=updates)
        )
        assert_that(found, check)


def test_an_update_loads_the_new_model_and_frees_the_old_one(other_model: str) -> None:
    """As RunInference calls it."""
    one = pickle.loads(pickle.dumps(handler("model.keras")))
    first = one.load_model()
    before = one.run_inference(examples(3), first)
    one.update_model_path(None)
    assert one.load_model().models[0].ref == first.models[0].ref
    one.update_model_path(other_model)
    second = one.load_model()
    after = one.run_inference(examples(3), second)
    assert [result.model_id for result in after] == [other_model] * 3
    assert not np.allclose(before[0].inference["output_0"], after[0].inference["output_0"])
    gone = weakref.ref(first.models[0])
    del first
    gc.collect()
    assert gone() is None
    one.update_model_path("memory://nothing/there.keras")
    with pytest.raises(NotAModel):
        one.load_model()


def test_rows_and_batches_keep_their_order_and_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(2.0)
    double = tf.function(lambda x: {"y": x * module.w}).get_concrete_function(tf.TensorSpec([4, 2], tf.float32, "x"))
    tf.saved_model.save(module, str(tmp_path / "fixed"), signatures=double)
    one = StreamingModelHandler(str(tmp_path / "fixed"))
    assert one.batch_elements_kwargs()["max_batch_size"] == 4
    elements: list[Any] = [{"x": np.full(2, i, np.float32)} for i in range(7)]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6, dtype=np.float32)), 2)
    elements.insert(5, pa.record_batch({"x": lists}))
    found = one.run_inference(elements, one.load_model())
    assert [result.example is element for result, element in zip(found, elements, strict=True)] == [True] * 8
    assert found[5].inference["y"].to_pylist() == [[0, 2], [4, 6], [8, 10]]
    assert [float(found[i].inference["y"][0]) for i in (0, 1, 2, 3, 4, 6, 7)] == [0, 2, 4, 6, 8, 10, 12]


def test_mistakes_are_told() -> None:
    with pytest.raises(SignatureNotFound, match="'serving_default'"):
        handler(signature="wrong")
    with pytest.raises(InvalidRequest, match="batch_rows"):
        handler(batch_rows=0)
    with pytest.raises(InvalidRequest, match="temperature"):
        _ = beam.Pipeline() | beam.Create(examples(1)) | RunInference(handler(), inference_args={"temperature": 1})
    one = handler()
    model = one.load_model()
    with pytest.raises(DataError, match="differ in their inputs"):
        one.run_inference([*examples(1), {"y": np.zeros(4, np.float32)}], model)
    with pytest.raises(DataError, match="differ in their inputs"):
        one.run_inference([*examples(1), {"x": np.zeros(3, np.float32)}], model)
    with pytest.raises(DataError, match="x: float32"):
        one.run_inference([{"z": np.zeros(4, np.float32)}], model)


def test_what_beam_is_told() -> None:
    one = handler()
    weights = 4 * (FEATURES * 16 + 16 + 16 * 3 + 3)
    assert one.get_resource_hints() == {"min_ram": (2 << 30) + weights + Loading().in_flight_bytes}
    assert handler(resource_hints={}).get_resource_hints() == {}
    batch = rows(0, 100).to_batches()[0]
    assert one.get_num_bytes([batch, *examples(2)]) == batch.nbytes + 2 * 4 * FEATURES
    kwargs = one.batch_elements_kwargs()
    assert kwargs["max_batch_size"] == 8192
    assert [kwargs["element_size_fn"](element) for element in (batch, batch[:0], *examples(1))] == [100, 1, 1]
    assert one.get_metrics_namespace() == "headrace"
    assert not one.share_model_across_processes()
    assert str(model_folder()) in repr(one)


def test_predict_tells_its_types_and_shows_its_model() -> None:
    predict = Predict(str(model_folder() / "saved_model"), batch_rows=32, loading=Loading(device="cpu"))
    shown = {item.key: item.value for item in DisplayData.create_from(predict).items}
    assert shown["model"] == str(model_folder() / "saved_model")
    assert (shown["signature"], shown["batch_rows"], shown["device"]) == ("serving_default", "32", "cpu")
    assert len(shown["digest"]) == 64
    pipeline = beam.Pipeline()
    typed = pipeline | beam.Create(rows(0, 3).to_batches()).with_output_types(pa.RecordBatch) | predict
    assert typed.element_type is pa.RecordBatch
    with pytest.raises(decorators.TypeCheckError, match="RecordBatch"):
        _ = pipeline | "Numbers" >> beam.Create([1]) | "Again" >> Predict(str(model_folder() / "saved_model"))


class Proxy:
    """What another process sees of an object through Python's managers: its methods, and what pickle carries."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._of, name)
        if not callable(method):
            raise AttributeError(name)
        return lambda *given: pickle.loads(pickle.dumps(method(*pickle.loads(pickle.dumps(given)))))


def test_a_model_in_another_process_is_reached_by_its_methods_alone() -> None:
    """So Beam keeps models by key where a machine has several processes."""
    serving = handler(keep=["id"])
    (batch,) = rows(0, 20).to_batches()
    found = serving.run_inference([*examples(2), batch], Proxy(serving.load_model()))  # type: ignore[arg-type]
    assert [sorted(one.inference) for one in found[:2]] == [["output_0"]] * 2
    assert found[2].inference.column("id").to_pylist() == list(range(20))


def test_without_batching_a_record_batch_is_one() -> None:
    serving = handler(keep=["id"])
    (batch,) = rows(0, 20).to_batches()
    (found,) = serving.run_inference(loose(batch), serving.load_model())
    assert found.inference.num_rows == 20
    assert serving.get_num_bytes(loose(batch)) == batch.nbytes


def test_a_row_of_beams_own_is_told_as_any_other_strange_element() -> None:
    assert _rows_of(beam.Row(x=1), 10) == 1
    with pytest.raises(DataError, match="neither a row nor a batch"):
        handler().run_inference([beam.Row(x=1)], handler().load_model())


def test_what_does_not_fit_one_batch_is_an_error_and_not_cut_off() -> None:
    """Lists of nothing take no memory, and overflow their offsets as texts of 2 GiB do."""
    values = pa.nulls(1 << 30)
    lists = pa.ListArray.from_arrays(pa.array([0, 1 << 30], pa.int32()), values)
    part = pa.record_batch({"y": lists})
    assert _joined([part]).num_rows == 1
    with pytest.raises(DataError, match="smaller record batches"):
        _joined([part] * 3)


def test_what_an_update_needs_is_what_the_first_model_needed(tmp_path: Path) -> None:
    """Its custom objects, where a Keras model follows; and Beam's patterns match a SavedModel's file, not its folder."""
    shutil.copy(model_folder() / "model.keras", tmp_path / "next.keras")
    ref = pin_model(str(model_folder() / "model.keras"), custom_objects=["tests.support.jobs"], unsafe=True)
    serving = StreamingModelHandler(ref)
    for update, uri, custom_objects in [
        (tmp_path / "next.keras", tmp_path / "next.keras", ref.custom_objects),
        (model_folder() / "saved_model/saved_model.pb", model_folder() / "saved_model", ()),
    ]:
        serving.update_model_path(str(update))
        (replaced,) = serving.load_model().models
        assert replaced.ref.uri == str(uri)
        assert (replaced.ref.custom_objects, replaced.ref.unsafe) == (custom_objects, True)


def test_no_signature_of_an_address_is_in_a_result(tmp_path: Path) -> None:
    serving = handler(keep=["id"])
    model = serving.load_model()
    model.models[0].ref = replace(model.models[0].ref, uri="https://models.example/m.keras?X-Amz-Signature=SECRET")
    (batch,) = rows(0, 3).to_batches()
    for found in serving.run_inference([*examples(1), batch], model):
        assert found.model_id == "https://models.example/m.keras"
