"""A SavedModel may give a `tf.RaggedTensor`, which becomes a column of lists, or a sparse one, of pairs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace import load_model
from headrace.transforms.columns.inputs import ColumnRules, plan_inputs, plan_outputs
from headrace.transforms.errors import DataError, UnsupportedModel
from headrace.transforms.models.load import describe_model
from headrace.transforms.models.spec import TensorSpec


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    import tensorflow as tf

    class Ragged(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def __call__(self, text: Any) -> dict[str, Any]:
            words = tf.strings.split(text)
            letters = tf.strings.unicode_split(words, "UTF-8")
            pairs = tf.RaggedTensor.from_row_splits(tf.ones((words.nrows() * 2, 2)), tf.range(words.nrows() + 1) * 2)
            return {"words": words, "letters": letters, "lengths": tf.strings.length(words), "pairs": pairs}

    folder = str(tmp_path_factory.mktemp("ragged") / "model")
    model = Ragged()
    tf.saved_model.save(model, folder, signatures=model.__call__)
    return folder


def test_more_values_than_a_list_column_counts_are_refused() -> None:
    import tensorflow as tf

    plan = plan_outputs({"y": TensorSpec("y", "float32", (None, None, 0))}, {})
    splits = tf.constant([0, 2**31], tf.int64)
    ragged = tf.RaggedTensor.from_row_splits(tf.zeros((2**31, 0)), splits, validate=False)  # of no bytes
    with pytest.raises(DataError, match=r"at most 2147483647 values in lists\. Found: 2147483648"):
        plan.columns({"y": ragged}, 1)


@pytest.mark.parametrize("prediction_type", ["auto", "list", "tensor"])
def test_ragged_outputs_become_lists(exported: str, prediction_type: str) -> None:
    model = load_model(exported)
    assert model.outputs["words"] == TensorSpec("words", "string", (None, None))
    assert model.outputs["letters"].shape == (None, None, None)
    assert model.outputs["pairs"].shape == (None, None, 2)
    signature = describe_model(exported).signatures["serving_default"]
    assert signature.outputs == model.outputs

    batch = pa.record_batch({"text": ["one été", "", "a"]})
    results = model.call(plan_inputs(batch.schema, model.inputs, {}).tensors(batch))
    plan = plan_outputs(model.outputs, {}, rules=ColumnRules(prediction_type=prediction_type))
    columns = pickle.loads(pickle.dumps(plan)).columns(results, 3)
    for column, field in zip(columns, plan.fields, strict=True):
        column.validate(full=True)
        assert column.type == field.type
    found = {field.name: column.to_pylist() for field, column in zip(plan.fields, columns, strict=True)}
    e = "é".encode()
    assert found == {
        "words": [[b"one", "été".encode()], [], [b"a"]],
        "letters": [[[b"o", b"n", b"e"], [e, b"t", e]], [], [[b"a"]]],
        "lengths": [[3, 5], [], [1]],
        "pairs": [[[1.0, 1.0]] * 2] * 3,
    }
    empty = model.call(plan_inputs(batch.schema, model.inputs, {}).tensors(batch.slice(0, 0)))
    assert [column.to_pylist() for column in plan.columns(empty, 0)] == [[]] * 4


def test_a_ragged_result_of_other_rows_is_refused(exported: str) -> None:
    import tensorflow as tf

    plan = plan_outputs({"y": TensorSpec("y", "int32", (None, None))}, {})
    with pytest.raises(UnsupportedModel, match="another shape than its rows"):
        plan.columns({"y": tf.ragged.constant([[1], [2, 3]])}, 3)


def test_a_sparse_output_of_three_dimensions_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    class Sparse(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2, 2], tf.float32, "x")])
        def __call__(self, x: Any) -> dict[str, Any]:
            return {"y": tf.sparse.from_dense(x)}

    model, folder = Sparse(), str(tmp_path / "model")
    tf.saved_model.save(model, folder, signatures=model.__call__)
    with pytest.raises(UnsupportedModel, match=r"'y' is sparse, and of other dimensions than rows and positions"):
        plan_outputs(load_model(folder).outputs, {})
