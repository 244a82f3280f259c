"""What users of Beam's own model handlers rely on, as Beam's tests of `apache_beam.ml.inference` state it.

docs/beam.md has the table, with what is not as there and why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, MaybeKeyedModelHandler, PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from headrace import StreamingModelHandler
from headrace.transforms.errors import DataError, HeadraceError, InvalidRequest
from tests.support.loose import loose


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`y = 2 x` of one float; it fails for a batch in which any is above 1,000."""
    import tensorflow as tf

    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def serve(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(x, 1000.0)]):
            return {"y": 2.0 * x}

    module.serve = serve
    path = tmp_path_factory.mktemp("models") / "double"
    tf.saved_model.save(module, str(path), signatures=module.serve)
    return str(path)


@pytest.fixture(scope="module")
def total(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two inputs."""
    import tensorflow as tf

    module = tf.Module()
    specs = [tf.TensorSpec([None], tf.float32, name) for name in "ab"]
    module.serve = tf.function(lambda a, b: {"y": a + b}, input_signature=specs)
    path = tmp_path_factory.mktemp("models") / "total"
    tf.saved_model.save(module, str(path), signatures=module.serve)
    return str(path)


def handler(model: str, **how: Any) -> StreamingModelHandler:
    return StreamingModelHandler(model, resource_hints={}, **how)


def run(build: Callable[[beam.Pipeline], None]) -> dict[tuple[str, str], int]:
    """Runs it; its counters by namespace and name."""
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    found: dict[tuple[str, str], int] = {}
    for one in result.metrics().query()["counters"]:
        key = (one.key.metric.namespace, one.key.metric.name)
        found[key] = found.get(key, 0) + one.result
    return found


def numbers(results: Iterable[PredictionResult]) -> list[float]:
    return [float(one.inference["y"]) for one in results]


def ten_with_a_bad_one() -> list[Any]:
    return [np.float32(5000 if k == 6 else k) for k in range(10)]


# Batching


def test_what_is_given_reaches_beams_batching(double: str) -> None:
    length = len
    given = {"min_batch_size": 5, "max_batch_size": 20, "max_batch_duration_secs": 30}
    kwargs = handler(double, **given, batch_length_fn=length, batch_bucket_boundaries=[10, 50]).batch_elements_kwargs()
    assert {name: kwargs[name] for name in given} == given
    assert (kwargs["length_fn"], kwargs["bucket_boundaries"]) == (length, [10, 50])
    beam.BatchElements(**kwargs)


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        ({}, 8192, 8192),
        ({"max_batch_size": 70}, 70, 70),
        ({"min_batch_size": 7}, 7, 8192),
        ({"min_batch_size": 10_000}, 10_000, 10_000),
        ({"max_batch_size": 20_000}, 20_000, 20_000),
        ({"batch_rows": 32}, 32, 32),
        ({"batch_rows": 32, "max_batch_size": 8}, 8, 8),
    ],
)
def test_the_bounds_fit_together_whichever_are_given(double: str, given: Any, least: int, most: int) -> None:
    kwargs = handler(double, **given).batch_elements_kwargs()
    assert (kwargs["min_batch_size"], kwargs["max_batch_size"]) == (least, most)
    assert not {"max_batch_duration_secs", "length_fn", "bucket_boundaries", "max_batch_weight"} & kwargs.keys()
    beam.BatchElements(**kwargs)


def test_no_call_has_more_rows_than_max_batch_size(double: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run_inference = StreamingModelHandler.run_inference

    def counted(self: Any, batch: Any, *given: Any) -> Any:
        calls.append(len(batch))
        return run_inference(self, batch, *given)

    monkeypatch.setattr(StreamingModelHandler, "run_inference", counted)
    run(
        lambda p: assert_that(
            p | beam.Create([np.float32(k) for k in range(50)]) | RunInference(handler(double, max_batch_size=8)), len
        )
    )
    assert sum(calls) == 50
    assert max(calls) <= 8


def test_a_weight_bounds_batches_where_elements_have_one(double: str) -> None:
    kwargs = handler(double, max_batch_weight=100, element_size_fn=len).batch_elements_kwargs()
    assert kwargs["max_batch_size"] == 100
    assert kwargs["element_size_fn"] is len
    beam.BatchElements(**kwargs)
    with pytest.raises(InvalidRequest, match="element_size_fn"):
        handler(double, max_batch_weight=100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_batch_size": 9, "max_batch_size": 8},
        {"max_batch_size": 0},
        {"min_batch_size": -1},
        {"max_batch_duration_secs": -1},
    ],
)
def test_bounds_that_cannot_be_are_refused_when_it_is_constructed(double: str, wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        handler(double, **wrong)


def test_boundaries_without_lengths_are_refused(double: str) -> None:
    with pytest.raises(ValueError, match="length_fn"):
        beam.BatchElements(**handler(double, batch_bucket_boundaries=[10]).batch_elements_kwargs())


def test_batches_wait_no_longer_than_max_batch_duration(double: str) -> None:
    """Which takes Beam's stateful batching."""

    def build(pipeline: beam.Pipeline) -> None:
        model = handler(double, max_batch_duration_secs=1)
        found = pipeline | beam.Create([np.float32(k) for k in range(5)]) | RunInference(model)
        assert_that(found | beam.Map(lambda one: float(one.inference["y"])), equal_to([0.0, 2.0, 4.0, 6.0, 8.0]))

    run(build)


# Sharing


@pytest.mark.parametrize(
    "given", [{"large_model": True}, {"model_copies": 2}, {"large_model": True, "model_copies": 1}]
)
def test_beams_sharing_is_accepted_and_ours_stays(double: str, given: Any) -> None:
    """With Beam's, every batch would go to another process."""
    assert not handler(double, **given).share_model_across_processes()
    assert handler(double, **given).model_copies() == 1


def test_environment_variables_are_set_before_the_model_loads(double: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_TEST_OF_BEAM", raising=False)
    run(
        lambda p: assert_that(
            p | beam.Create([1.0]) | RunInference(handler(double, env_vars={"HEADRACE_TEST_OF_BEAM": "7"})), len
        )
    )
    assert os.environ.pop("HEADRACE_TEST_OF_BEAM") == "7"


# Elements


@pytest.mark.parametrize(
    "elements",
    [
        [np.float32(1), np.float32(2)],
        [np.array(1, np.float32), np.array(2, np.float32)],
        [1.0, 2.0],
        [{"x": 1.0}, np.float32(2)],
        [[1.0], [2.0]],
    ],
)
def test_a_bare_array_is_the_only_input(double: str, elements: list[Any]) -> None:
    serving = handler(double)
    if isinstance(elements[0], list):  # of another shape than the model's
        with pytest.raises(DataError):
            serving.run_inference(elements, serving.load_model())
        return
    found = serving.run_inference(elements, serving.load_model())
    assert numbers(found) == [2.0, 4.0]
    assert [one.example for one in found] == elements


def test_tensors_are_rows_too(double: str) -> None:
    import tensorflow as tf

    serving = handler(double)
    assert numbers(serving.run_inference([tf.constant(3.0)], serving.load_model())) == [6.0]


def test_a_bare_array_is_none_of_two_inputs(total: str) -> None:
    serving = handler(total)
    with pytest.raises(DataError, match="neither a row nor a batch"):
        serving.run_inference(loose([np.float32(1)]), serving.load_model())
    assert numbers(serving.run_inference([{"a": 1.0, "b": 2.0}], serving.load_model())) == [3.0]


def test_keys_stay_with_their_results(double: str) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        keyed = pipeline | beam.Create([(f"k{k}", np.float32(k)) for k in range(5)])
        found = keyed | RunInference(KeyedModelHandler(handler(double)))
        both = found | beam.MapTuple(lambda key, one: (key, float(one.inference["y"])))
        assert_that(both, equal_to([(f"k{k}", 2.0 * k) for k in range(5)]))
        maybe = (
            pipeline
            | "Plain" >> beam.Create([np.float32(4)])
            | "Maybe" >> RunInference(MaybeKeyedModelHandler(handler(double)))
        )
        assert_that(maybe | "Y" >> beam.Map(lambda one: float(one.inference["y"])), equal_to([8.0]), "maybe")

    run(build)


def test_a_model_for_each_key(double: str, tmp_path: Path) -> None:
    from apache_beam.ml.inference.base import KeyModelMapping

    def build(pipeline: beam.Pipeline) -> None:
        models = [KeyModelMapping(["a"], handler(double)), KeyModelMapping(["b", "c"], handler(double))]
        found = pipeline | beam.Create([("a", 1.0), ("b", 2.0), ("c", 3.0)]) | RunInference(KeyedModelHandler(models))
        assert_that(
            found | beam.MapTuple(lambda key, one: (key, float(one.inference["y"]))),
            equal_to([("a", 2.0), ("b", 4.0), ("c", 6.0)]),
        )

    run(build)


def test_functions_before_and_after(double: str) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        model = handler(double).with_preprocess_fn(float).with_postprocess_fn(lambda one: float(one.inference["y"]) + 1)
        assert_that(pipeline | beam.Create(["1", "2"]) | RunInference(model), equal_to([3.0, 5.0]))

    run(build)


def test_batches_of_ones_own(double: str) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        found = pipeline | beam.Create([[1.0, 2.0], [3.0]]) | RunInference(handler(double).with_no_batching())
        assert_that(found | beam.Map(lambda one: float(one.inference["y"])), equal_to([2.0, 4.0, 6.0]))

    run(build)


# What is counted


@pytest.mark.parametrize("namespace", [None, "mine"])
def test_inferences_are_rows(double: str, namespace: str | None) -> None:
    batches = [pa.record_batch({"x": np.full(100, k, "f4")}) for k in range(3)]

    def build(pipeline: beam.Pipeline) -> None:
        _ = (
            pipeline
            | beam.Create([*batches, np.float32(1)])
            | RunInference(handler(double), metrics_namespace=namespace)
        )

    counted = run(build)
    assert counted["headrace", "rows"] == 301
    # Beam counts elements; a namespace of the user's own is not told to a handler.
    assert counted[namespace or "headrace", "num_inferences"] == (4 if namespace else 301)
    assert namespace is None or ("headrace", "num_inferences") not in counted


def test_inferences_of_prebatched_and_keyed_elements_are_rows(double: str) -> None:
    batch = pa.record_batch({"x": np.ones(100, "f4")})

    def prebatched(pipeline: beam.Pipeline) -> None:
        _ = pipeline | beam.Create([batch]) | RunInference(handler(double).with_no_batching())

    def keyed(pipeline: beam.Pipeline) -> None:
        _ = pipeline | beam.Create([("k", batch)]) | RunInference(KeyedModelHandler(handler(double)))

    assert run(prebatched)["headrace", "num_inferences"] == 100
    assert run(keyed)["headrace", "num_inferences"] == 100


def test_a_failed_batch_is_counted(double: str) -> None:
    serving = handler(double)
    with pytest.raises(DataError, match="fails on a batch"):
        serving.run_inference(loose([np.float32(5000)]), serving.load_model())


# What is refused and what fails


def test_inference_args_are_refused_with_a_value_error(double: str) -> None:
    serving = handler(double)
    with pytest.raises(ValueError, match="temperature") as refused:
        _ = beam.Pipeline() | beam.Create([1.0]) | RunInference(serving, inference_args={"temperature": 1})
    assert isinstance(refused.value, HeadraceError)
    with pytest.raises(ValueError, match="temperature"):
        serving.run_inference(loose([1.0]), serving.load_model(), {"temperature": 1})
    serving.validate_inference_args(None)
    serving.validate_inference_args({})


def test_a_row_that_fails_goes_alone(double: str) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        main, other = (
            pipeline | beam.Create(ten_with_a_bad_one()) | RunInference(handler(double)).with_exception_handling()
        )
        good = [2.0 * k for k in range(10) if k != 6]
        assert_that(main | beam.Map(lambda one: float(one.inference["y"])), equal_to(good))
        assert_that(other.failed_inferences | beam.Map(_told), equal_to([([5000.0], "DataError", True)]), "bad")

    counted = run(build)
    assert (counted["headrace", "rows"], counted["headrace", "bad_rows"]) == (9, 1)


def _told(failed: Any) -> Any:
    elements, (kind, text, lines) = failed
    return [float(one) for one in elements], kind.__name__, "less" in text and bool(lines)


def test_a_row_of_a_record_batch_that_fails_goes_alone(double: str) -> None:
    values = np.arange(10, dtype=np.float32)
    values[[2, 7]] = 5000
    batch = pa.record_batch({"x": values, "id": np.arange(10)})

    def build(pipeline: beam.Pipeline) -> None:
        model = handler(double, keep=["id"])
        main, other = pipeline | beam.Create([batch]) | RunInference(model).with_exception_handling()
        good = [k for k in range(10) if k not in (2, 7)]
        rows = main | beam.FlatMap(
            lambda one: zip(one.inference["id"].to_pylist(), one.inference["y"].to_pylist(), strict=True)
        )
        assert_that(rows, equal_to([(k, 2.0 * k) for k in good]))
        assert_that(
            main | "As many" >> beam.Map(lambda one: one.example["id"].to_pylist()), equal_to([good]), "example"
        )
        failed = other.failed_inferences | "Ids" >> beam.FlatMap(lambda one: one[0][0]["id"].to_pylist())
        assert_that(failed, equal_to([2, 7]), "bad")

    run(build)


def test_batches_that_fail_wholly_and_strange_elements_go_alone_too(double: str) -> None:
    batch = pa.record_batch({"y": ["a"], "z": ["b"]})

    def build(pipeline: beam.Pipeline) -> None:
        elements = [batch, np.float32(5000), {"wrong": 1.0}, object, np.float32(1)]
        main, other = pipeline | beam.Create(elements) | RunInference(handler(double)).with_exception_handling()
        assert_that(main | beam.Map(lambda one: float(one.inference["y"])), equal_to([2.0]))
        kinds = other.failed_inferences | "Kinds" >> beam.Map(lambda one: (len(one[0]), one[1][0].__name__))
        assert_that(kinds, equal_to([(1, "ColumnError"), (1, "DataError"), (1, "DataError"), (1, "DataError")]), "bad")

    run(build)


def test_keyed_batches_fail_as_a_whole_with_their_keys(double: str) -> None:
    """Beam pairs keys with results by their places."""

    def build(pipeline: beam.Pipeline) -> None:
        keyed = pipeline | beam.Create([("a", np.float32(1)), ("b", np.float32(5000))])
        main, other = keyed | RunInference(KeyedModelHandler(handler(double))).with_exception_handling()
        everything = (
            main | beam.Map(lambda one: [one[0]]),
            other.failed_inferences | "Keys" >> beam.Map(lambda one: [key for key, _ in one[0]]),
        ) | beam.Flatten()
        assert_that(everything | beam.FlatMap(lambda keys: keys), equal_to(["a", "b"]))

    run(build)


def test_without_exception_handling_it_fails_and_loses_nothing(double: str) -> None:
    with pytest.raises(Exception, match="fails on a batch"):
        run(lambda p: assert_that(p | beam.Create(ten_with_a_bad_one()) | RunInference(handler(double)), len))


def test_other_exceptions_than_those_handled_fail_it(double: str) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        model = RunInference(handler(double)).with_exception_handling(exc_class=KeyError)
        _ = pipeline | beam.Create(ten_with_a_bad_one()) | model

    with pytest.raises(Exception, match="fails on a batch"):
        run(build)


def test_functions_before_and_after_leave_failures_to_the_row(double: str) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        model = (
            handler(double).with_preprocess_fn(np.float32).with_postprocess_fn(lambda one: float(one.inference["y"]))
        )
        main, other = pipeline | beam.Create(["1", "5000", "x"]) | RunInference(model).with_exception_handling()
        assert_that(main, equal_to([2.0]))
        assert_that(
            other.failed_inferences | beam.Map(lambda one: [float(e) for e in one[0]]), equal_to([[5000.0]]), "bad"
        )
        assert_that(other.failed_preprocessing[0] | "Said" >> beam.Map(lambda one: one[0]), equal_to(["x"]), "before")

    run(build)


def test_beams_wrapper_has_the_names_that_are_looked_for() -> None:
    """Private names: where they change, a failing row would take its batch with it."""
    from apache_beam.ml.inference import base
    from apache_beam.transforms import core

    wrapper = core._ExceptionHandlingWrapperDoFn(beam.DoFn(), "bad", Exception, False, None, False)
    assert (wrapper._dead_letter_tag, wrapper._exc_class) == ("bad", Exception)
    for name in ("OOMProtectedFn", "_RunInferenceDoFn", "_PreProcessingModelHandler", "_PostProcessingModelHandler"):
        assert hasattr(base, name)
