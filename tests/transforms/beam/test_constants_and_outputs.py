"""`outputs=` and `constants=` of `Predict` and `StreamingModelHandler`, as `--outputs` and `--constant` of a job."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that

from headrace.transforms.beam.model_handler import StreamingModelHandler
from headrace.transforms.beam.predict import Predict
from headrace.transforms.errors import HeadraceError

CONSTANTS = {"t": 0.5, "w": np.array([1, 2.5], np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`y` is x / t, `z` is x * sum(w), `labels` has no row for each row."""
    import tensorflow as tf

    def call(x: Any, t: Any, w: Any) -> Any:
        return {"y": x / t, "z": x * tf.reduce_sum(w, 1), "labels": tf.constant(["a", "b", "c"])}

    specs = [tf.TensorSpec(shape, "float32", name) for name, shape in (("x", [None]), ("t", []), ("w", [None, 2]))]
    folder = tmp_path_factory.mktemp("constants") / "m"
    tf.saved_model.save(tf.Module(), str(folder), signatures=tf.function(call).get_concrete_function(*specs))
    return str(folder)


def _batch() -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"x": pa.array([1, 2, 3], pa.float32())})


def test_predict_takes_constants_and_makes_columns_of_the_chosen_outputs(model: str) -> None:
    def check(found: list[pa.RecordBatch]) -> None:
        assert pa.Table.from_batches(found).to_pydict() == {"z": [3.5, 7.0, 10.5]}

    with beam.Pipeline() as pipeline:
        predict = Predict(model, outputs=["z"], constants=CONSTANTS, keep=[])
        assert_that(pipeline | beam.Create([0]) | beam.Map(lambda _: _batch()) | predict, check)


def test_a_handler_takes_constants_for_batches_and_for_rows(model: str) -> None:
    handler = StreamingModelHandler(model, outputs=["y", "z"], constants=CONSTANTS, keep=[], resource_hints={})
    served = handler.load_model()
    (of_batch,) = handler.run_inference([_batch()], served)
    assert of_batch.inference.to_pydict() == {"y": [2.0, 4.0, 6.0], "z": [3.5, 7.0, 10.5]}
    of_rows = list(handler.run_inference([{"x": np.float32(x)} for x in (1, 2, 3)], served))
    assert [one.inference["y"] for one in of_rows] == [2.0, 4.0, 6.0]
    assert set(of_rows[0].inference) == {"y", "z"}


def test_outputs_without_rows_are_left_out_of_what_rows_get(model: str) -> None:
    """However many rows there are: `labels` has three values."""
    handler = StreamingModelHandler(model, constants=CONSTANTS, resource_hints={})
    for rows in ([{"x": 1.0}, {"x": 2.0}], [1.0, 2.0, 3.0]):
        found = list(handler.run_inference(rows, handler.load_model()))  # type: ignore[arg-type]
        assert [one.inference["z"] for one in found] == [3.5, 7.0, 10.5][: len(rows)]
        assert set(found[0].inference) == {"y", "z"}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"outputs": ["nope"], "constants": CONSTANTS}, "nope"),
        ({"outputs": "z", "constants": CONSTANTS}, "outputs is one text"),
        ({"outputs": ["labels"], "constants": CONSTANTS}, "labels"),
        ({"constants": {"t": "warm", "w": [1, 2]}}, "warm"),
        ({"constants": {"s": 1}}, "'s'"),
        ({"constants": {"t": object()}}, "'t'"),
    ],
)
@pytest.mark.parametrize("kind", [Predict, StreamingModelHandler])
def test_mistakes_are_found_when_it_is_constructed(kind: Any, model: str, how: dict[str, Any], said: str) -> None:
    with pytest.raises(HeadraceError, match=said):
        kind(model, **how)
