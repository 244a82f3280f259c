"""The columns that a model's outputs become."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.transforms.columns.inputs import plan_outputs
from headrace.transforms.errors import ColumnError, UnsupportedModel
from tests.transforms.columns.test_tensors import refused, specs


@pytest.mark.parametrize(
    ("dtype", "shape", "kind"),
    [
        ("float32", (None,), pa.float32()),
        ("float16", (None,), pa.float16()),
        ("bfloat16", (None,), pa.float32()),
        ("uint8", (None,), pa.uint8()),
        ("bool", (None,), pa.bool_()),
        ("string", (None,), pa.binary()),
        ("float32", (None, 10), pa.list_(pa.field("element", pa.float32(), False), 10)),
        ("float32", (None, None), pa.list_(pa.field("element", pa.float32(), False))),
        ("float32", (None, 2, 3), pa.fixed_shape_tensor(pa.float32(), [2, 3])),
        (
            "string",
            (None, 2, 3),
            pa.list_(pa.field("e", pa.list_(pa.field("e", pa.binary(), False), 3), False), 2),
        ),
        (
            "int8",
            (None, 2, None),
            pa.list_(pa.field("e", pa.list_(pa.field("e", pa.int8(), False)), False), 2),
        ),
    ],
)
def test_the_type_of_a_column_is_known_before_the_first_row(
    dtype: str, shape: tuple[int | None, ...], kind: pa.DataType
) -> None:
    import tensorflow as tf

    plan = pickle.loads(pickle.dumps(plan_outputs(specs(x=(dtype, shape)), {"x": "y"})))
    (field,) = plan.fields
    assert field == pa.field("y", kind, nullable=False)
    for rows in (0, 3):
        tensor = tf.zeros((rows, *(2 if dim is None else dim for dim in shape[1:])), dtype)
        (array,) = plan.columns({"x": tensor}, rows)
        array.validate(full=True)
        assert array.type == kind
        assert len(array) == rows


def test_a_bfloat16_is_told_exactly() -> None:
    import tensorflow as tf

    # The smallest there is, another of the smallest, 1.5, the infinities, a NaN.
    bits = np.array([0x0001, 0x8080, 0x3FC0, 0x7F80, 0xFF80, 0x7FC0], np.uint16)
    plan = plan_outputs(specs(x=("bfloat16", (None,))), {"x": "y"})
    (array,) = plan.columns({"x": tf.constant(bits.view(tf.bfloat16.as_numpy_dtype))}, len(bits))
    assert (array.to_numpy().view(np.uint32) == bits.astype(np.uint32) << 16).all()


def test_columns_survive_parquet() -> None:
    import tensorflow as tf

    outputs = specs(
        p=("float32", (None, 3)),
        s=("string", (None,)),
        b=("bool", (None,)),
        t=("float16", (None, 2, 2)),
        v=("int8", (None, None)),
    )
    results = {
        "p": tf.random.uniform((4, 3)),
        "s": tf.constant(["é", "", "\0", "xyz"]),
        "b": tf.constant([True, False, True, True]),
        "t": tf.cast(tf.random.uniform((4, 2, 2)), "float16"),
        "v": tf.ones((4, 5), "int8"),
    }
    plan = plan_outputs(outputs, {})
    table = pa.table(plan.columns(results, 4), schema=pa.schema(plan.fields))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    back = pq.read_table(pa.BufferReader(sink.getvalue()))
    assert back.equals(table)
    assert back.schema.equals(table.schema)
    assert back["s"].to_pylist() == ["é".encode(), b"", b"\0", b"xyz"]
    assert back["p"].to_pylist() == results["p"].numpy().tolist()


@pytest.mark.parametrize(
    ("dtype", "shape", "said"),
    [
        ("float32", (), "does not depend on the batch"),
        ("float32", (1, 4), "does not depend on the batch"),
        ("float32", None, "has no known rank"),
        ("complex64", (None,), "has a dtype that Arrow cannot hold"),
        ("resource", (None,), "has a dtype that Arrow cannot hold"),
    ],
)
def test_an_output_that_is_no_column_is_refused_with_a_reason(dtype: str, shape: Any, said: str) -> None:
    with refused(UnsupportedModel, f"The model's output 'x' {said}"):
        plan_outputs(specs(x=(dtype, shape)), {})


@pytest.mark.parametrize(
    ("predictions", "said"),
    [
        (
            {"scor": "s"},
            (
                "The model has no output 'scor'. Expected: the name of one of its outputs. "
                "Found: outputs label, score. Did you mean 'score'?"
            ),
        ),
        ({"score": "label"}, "The outputs 'label' and 'score' would both become the column 'label'."),
        ({"score": "x", "label": "x"}, "The outputs 'label' and 'score' would both become the column 'x'."),
    ],
)
def test_names_of_columns_are_checked(predictions: Mapping[str, str], said: str) -> None:
    with refused(ColumnError, said):
        plan_outputs(specs(label=("int64", (None,)), score=("float32", (None,))), predictions)
    swapped = plan_outputs(
        specs(label=("int64", (None,)), score=("float32", (None,))), {"label": "score", "score": "label"}
    )
    assert [field.name for field in swapped.fields] == ["score", "label"]


@pytest.mark.parametrize("shape", [(), (1, 4), (3, 5), (3,), (3, 4, 1)])
def test_a_result_that_has_not_a_row_for_each_row_names_the_output(shape: tuple[int, ...]) -> None:
    import tensorflow as tf

    plan = plan_outputs(specs(x=("float32", (None, 4))), {})
    with refused(
        UnsupportedModel, "output 'x' has another shape than its rows and its signature say. Expected: [3, 4]"
    ):
        plan.columns({"x": tf.zeros(shape)}, 3)
