"""TFLite models that assign to variables, and operations that nothing resolves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import CorruptModel, UnsupportedModel
from headrace.transforms.models import tflite
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.pin import pin_model

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


def _converted(folder: Path, module: Any, concrete: Any, **options: Any) -> Path:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    converter.experimental_enable_resource_variables = True
    for name, value in options.items():
        setattr(converter, name, value)
    path = folder / "model.tflite"
    path.write_bytes(converter.convert())
    return path


@pytest.mark.parametrize("rows", [1, None])
def test_no_row_sees_what_another_assigned(tmp_path: Path, rows: int | None) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.total = tf.Variable([0.0])

    def call(x: Any) -> Any:
        module.total.assign_add([1.0])
        return {"y": x + module.total}

    concrete = tf.function(call).get_concrete_function(tf.TensorSpec([rows, 1], tf.float32, "x"))
    path = _converted(tmp_path, module, concrete)
    assert tflite._Flatbuffer(pin_model(str(path)), path.read_bytes()).keeps_state
    model = load_model(str(path))
    (name,) = model.inputs
    for _ in range(3):
        (found,) = model.predict({name: np.zeros((4, 1), np.float32)}).values()
        assert found.ravel().tolist() == [1.0] * 4


def test_a_model_that_only_reads_its_variables_keeps_its_interpreter(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable([2.0])
    concrete = tf.function(lambda x: {"y": x * module.w}).get_concrete_function(tf.TensorSpec([None, 1], tf.float32))
    path = _converted(tmp_path, module, concrete)
    assert not tflite._Flatbuffer(pin_model(str(path)), path.read_bytes()).keeps_state


def test_a_custom_operation_that_nothing_resolves_is_found_before_any_row(tmp_path: Path) -> None:
    import tensorflow as tf

    concrete = tf.function(lambda x: {"y": tf.linalg.det(x)}).get_concrete_function(
        tf.TensorSpec([1, 2, 2], tf.float32)
    )
    path = _converted(tmp_path, tf.Module(), concrete, allow_custom_ops=True)
    for use in (describe_model, load_model):
        with pytest.raises(UnsupportedModel, match="MatrixDeterminant"):
            use(str(path))


def test_every_signature_s_operations_are_looked_for(tmp_path: Path) -> None:
    """The first one that is called need not be the one that lacks an operation."""
    import tensorflow as tf

    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1, 2, 2], tf.float32, "x")])
        def doubled(self, x: Any) -> Any:
            return {"y": x * 2.0}

        @tf.function(input_signature=[tf.TensorSpec([1, 2, 2], tf.float32, "x")])
        def determined(self, x: Any) -> Any:
            return {"y": tf.linalg.det(x)}

    module = Two()
    signatures = {"doubled": module.doubled, "determined": module.determined}
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "m"), signature_keys=list(signatures))
    converter.allow_custom_ops = True
    path = tmp_path / "model.tflite"
    path.write_bytes(converter.convert())
    assert load_model(str(path), "doubled").predict({"x": np.ones((1, 2, 2), np.float32)})["y"].max() == 2.0
    with pytest.raises(UnsupportedModel, match="MatrixDeterminant"):
        load_model(str(path), "determined")


def test_flex_operations_run_or_are_refused_before_any_row(tmp_path: Path) -> None:
    """TensorFlow's interpreter is built with them or without: 2.21 is not."""
    import tensorflow as tf

    concrete = tf.function(lambda x: {"y": tf.strings.as_string(x)}).get_concrete_function(
        tf.TensorSpec([None], tf.float32, "x")
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    path = tmp_path / "model.tflite"
    path.write_bytes(converter.convert())
    native = tf.lite.Interpreter(model_content=path.read_bytes())
    try:
        native.allocate_tensors()
    except RuntimeError:
        for use in (describe_model, load_model):
            with pytest.raises(UnsupportedModel, match=r"SELECT_TF_OPS.*FlexAsString"):
                use(str(path))
    else:
        found = load_model(str(path)).predict({"x": np.array([1.5], np.float32)})
        assert found["y"].tolist() == [b"1.500000"]


def test_flex_operations_are_judged_by_the_names_that_tensorflow_has() -> None:
    found = tflite._operations(frozenset({"ADD", "FlexRandomUniform", "FlexWriteFile", "FlexPyFunc", "RANDOM_UNIFORM"}))
    assert found.random == ("RANDOM_UNIFORM", "RandomUniform")
    assert found.outside == ("WriteFile",)
    assert found.python == ("PyFunc",)


@pytest.mark.parametrize("at", [4, 20, 40, 100])
def test_damaged_offsets_are_an_error_of_ours(tmp_path: Path, at: int) -> None:
    import tensorflow as tf

    concrete = tf.function(lambda x: {"y": x + 1.0}).get_concrete_function(tf.TensorSpec([None, 1], tf.float32))
    path = _converted(tmp_path, tf.Module(), concrete)
    data = bytearray(path.read_bytes())
    data[at : at + 4] = b"\xff\xff\xff\x7f" if at != 4 else data[4:8]
    try:
        names, state = tflite._operation_names(pin_model(str(path)), bytes(data))
    except CorruptModel:
        return
    assert names
    assert not state
