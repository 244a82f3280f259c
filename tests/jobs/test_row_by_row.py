"""Models that make one row of any batch, as many detectors do: called with one row at a time, or `--batch_size=1` is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace
from headrace.transforms.beam.model_handler import StreamingModelHandler
from tests.support.around import record_of, save_signature
from tests.support.jobs import put_table, read_output

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
X = np.random.default_rng(3).normal(size=(7, 4)).astype(np.float32)


def table() -> pa.Table:
    return pa.table({"id": range(len(X)), "x": pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 4)})


def first_only(x: Any) -> dict[str, Any]:
    """Of a batch, the model looks at the first row."""
    import tensorflow as tf

    return {"boxes": tf.reshape(x[0] * 2.0, [1, 2, 2]), "score": tf.reshape(tf.math.tanh(x[0, 0]), [1])}


def given(place: Path, model: str, name: str = "out") -> dict[str, Any]:
    put_table(f"{place}/in/a.parquet", table())
    return {"model": model, "input": f"{place}/in/*", "output": f"{place}/{name}", "report": "none"}


def test_one_row_at_a_time_equals_the_model_called_so(tmp_path: Path) -> None:
    import tensorflow as tf

    model = save_signature(tmp_path / "m", first_only, {"x": ([None, 4], "float32")})
    flags = given(tmp_path, model)
    told = headrace.plan(**flags).text
    assert "of 1 row (the model makes one row of any batch)" in told
    headrace.run(**flags)
    loaded = tf.saved_model.load(model)
    rows = [loaded.signatures["serving_default"](x=tf.constant(X[i : i + 1])) for i in range(len(X))]
    for found in (read_output(f"{tmp_path}/out"), headrace.predict(model, table())):
        assert found["score"].to_numpy().tobytes() == np.concatenate([one["score"] for one in rows]).tobytes()
        assert np.array_equal(
            np.array(found["boxes"].to_pylist()), np.concatenate([one["boxes"] for one in rows]).reshape(-1, 4)
        )
    with pytest.raises(headrace.InvalidRequest, match=r"batch that a model is fixed to: 1"):
        headrace.plan(**flags, batch_size=4)
    handler = StreamingModelHandler(model, resource_hints={})
    found = [one.inference["score"] for one in handler.run_inference([{"x": x} for x in X], handler.load_model())]
    assert np.array(found, np.float32).tobytes() == np.concatenate([one["score"] for one in rows]).tobytes()


def test_beside_an_output_with_rows_it_is_left_out_or_asked_for_row_by_row(tmp_path: Path) -> None:
    import tensorflow as tf

    def call(x: Any) -> dict[str, Any]:
        return {"y": x * 2.0, "mean": tf.reduce_mean(x, 0, keepdims=True)}

    model = save_signature(tmp_path / "m", call, {"x": ([None, 4], "float32")})
    flags = given(tmp_path, model)
    assert headrace.predict(model, table()).column_names == ["id", "y"]
    assert headrace.predict(model, table(), batch_size=1).column_names == ["id", "y"]
    with pytest.raises(headrace.UnsupportedModel, match=r"'mean' does not depend on the batch.*batch_size=1"):
        headrace.plan(**flags, outputs=["mean"])
    headrace.run(**flags, outputs=["y", "mean"], batch_size=1)
    found = read_output(f"{tmp_path}/out")
    assert np.array_equal(np.array(found["mean"].to_pylist(), np.float32), X)
    assert record_of(f"{tmp_path}/out")["batch_size"] == 1


def test_an_output_that_hides_it_names_the_flag(tmp_path: Path) -> None:
    import tensorflow as tf

    def call(x: Any) -> dict[str, Any]:
        return {"y": tf.boolean_mask(x, tf.range(tf.shape(x)[0]) < 1)}

    model = save_signature(tmp_path / "m", call, {"x": ([None, 4], "float32")})
    with pytest.raises(
        headrace.UnsupportedModel, match=r"another shape than its rows.*Predict row by row.*batch_size=1"
    ):
        headrace.predict(model, table())
    found = headrace.predict(model, table(), batch_size=1)
    assert np.array_equal(np.array(found["y"].to_pylist(), np.float32), X)


def detector(path: Path, rows: int | None) -> str:
    """Its boxes have no shape before the first call: TFLite's own post-processing makes them."""
    import tensorflow as tf

    numbers = {"max_detections": 3, "max_classes_per_detection": 1, "num_classes": 2}
    scales = {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}
    fractions = {"nms_score_threshold": 0.1, "nms_iou_threshold": 0.6} | scales
    attributes = [f'attr {{ key: "{key}" value {{ i: {value} }} }}' for key, value in numbers.items()]
    attributes += [f'attr {{ key: "{key}" value {{ f: {value} }} }}' for key, value in fractions.items()]
    attributes.append('attr { key: "use_regular_nms" value { b: false } }')

    @tf.function(experimental_implements=f'name: "TFLite_Detection_PostProcess" {" ".join(attributes)}')
    def post_process(boxes: Any, scores: Any, anchors: Any) -> Any:
        return tuple(tf.constant(0.0, name=name) for name in ("boxes", "classes", "scores", "count"))

    anchors = tf.constant([[0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2], [0.8, 0.7, 0.1, 0.3], [0.4, 0.6, 0.3, 0.1]])

    @tf.function(input_signature=[tf.TensorSpec([rows, 4], tf.float32, "x")])
    def serve(x: Any) -> dict[str, Any]:
        boxes = tf.reshape(tf.concat([x, x * 0.5, -x, x * 0.25], 0)[:4], [1, 4, 4])
        scores = tf.reshape(tf.sigmoid(tf.concat([x, -x, x * 2.0], 1))[0], [1, 4, 3])
        found = post_process(boxes, scores, anchors)
        return dict(zip(("boxes", "classes", "scores", "count"), found, strict=True))

    module = tf.Module()
    module.serve = serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], module)
    converter.allow_custom_ops = True
    path.write_bytes(converter.convert())
    return str(path)


def test_a_tflite_detector_with_post_processing(tmp_path: Path) -> None:
    import tensorflow as tf

    model = detector(tmp_path / "m.tflite", 1)
    interpreter = tf.lite.Interpreter(model_path=model)
    wanted: dict[str, list[Any]] = {}
    for x in X:
        runner = interpreter.get_signature_runner()
        for name, array in runner(x=x[None]).items():
            wanted.setdefault(name, []).append(array[0])
    flags = given(tmp_path, model)
    headrace.run(**flags)
    for found in (read_output(f"{tmp_path}/out"), headrace.predict(model, table())):
        assert set(wanted) <= set(found.column_names)
        for name, values in wanted.items():
            assert np.array_equal(np.array(found[name].to_pylist(), np.float32), np.stack(values)), name
    loaded = headrace.load_model(model)
    for name, values in loaded.predict({"x": X}).items():
        assert values.tobytes() == np.stack(wanted[name]).tobytes()
