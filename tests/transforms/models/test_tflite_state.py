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
