"""Ragged and sparse inputs from columns of lists: what `tf.ragged.constant` and `tf.sparse` make of the same values."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.columns.inputs import InputPlan, plan_inputs, plan_outputs
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.errors import ColumnError, NullFeature, UnsupportedModel
from headrace.transforms.models.spec import Composite, TensorSpec

RAGGED = {rank: Composite("ragged", tuple(f"x{i}" for i in range(rank + 1))) for rank in (1, 2)}
SPARSE = Composite("sparse", ("x", "x_1", "x_2"))
NUMBERS = st.integers(-5, 5)
LISTS = {
    "int64": NUMBERS,
    "float32": st.floats(width=32),
    "string": st.text(max_size=3),
    "bool": st.booleans(),
}


def planned(schema: pa.Schema, spec: TensorSpec, *columns: str, **rules: Any) -> InputPlan:
    features = {"x": columns} if columns else {}
    return pickle.loads(pickle.dumps(plan_inputs(schema, {"x": spec}, features, rules=ColumnRules(**rules), where="f")))


def made(plan: InputPlan, table: pa.Table, skip: int = 0) -> Any:
    """As TensorFlow's own kind."""
    import tensorflow as tf

    (batch,) = table.combine_chunks().to_batches()
    parts = plan.tensors(batch.slice(skip), where="f", first_row=skip)
    composite = plan.inputs[0].spec.composite
    assert composite is not None
    assert tuple(parts) == composite.parts
    values = list(parts.values())
    if composite.kind == "sparse":
        return tf.SparseTensor(*values)
    return tf.RaggedTensor.from_nested_row_splits(values[0], values[1:])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(sorted(LISTS)), rank=st.sampled_from([1, 2]), skip=st.integers(0, 2))
def test_ragged_rows_of_slices_equal_tensorflows(data: st.DataObject, dtype: str, rank: int, skip: int) -> None:
    import tensorflow as tf

    lists: Any = st.lists(LISTS[dtype], max_size=4)
    for _ in range(rank - 1):
        lists = st.lists(lists, max_size=3)
    rows = data.draw(st.lists(lists, min_size=1, max_size=6))
    kind = {"int64": pa.int64(), "float32": pa.float32(), "string": pa.string(), "bool": pa.bool_()}[dtype]
    inner: Any = kind if rank == 1 else pa.list_(kind)
    of: Any = pa.large_list(inner) if data.draw(st.booleans()) else pa.list_(inner)
    table = pa.table({"x": pa.array(rows[:1] * skip + rows, of)})
    spec = TensorSpec("x", dtype, (None,) * (rank + 1), composite=RAGGED[rank])
    found = made(planned(table.schema, spec), table, skip)
    wanted = tf.ragged.constant(rows, dtype, ragged_rank=rank)
    assert found.dtype == wanted.dtype
    assert len(found.nested_row_splits) == rank
    for one, other in zip(found.nested_row_splits, wanted.nested_row_splits, strict=True):
        assert np.array_equal(one, other)
    assert found.flat_values.numpy().tolist() == wanted.flat_values.numpy().tolist() or dtype == "float32"
    assert found.flat_values.numpy().tobytes() == wanted.flat_values.numpy().tobytes() or dtype == "string"
    # A list's values are the first of its row, as TensorFlow has it.
    sparse = made(planned(table.schema, TensorSpec("x", dtype, spec.shape, composite=SPARSE)), table, skip)
    own = wanted.to_sparse()
    assert np.array_equal(sparse.indices, own.indices)
    assert sparse.values.numpy().tobytes() == own.values.numpy().tobytes() or dtype == "string"
    assert list(sparse.dense_shape) == list(own.dense_shape)


def test_dense_dimensions_splits_of_int32_casts_and_fixed_lists() -> None:
    composite = Composite("ragged", ("v", "s"), "int32")
    spec = TensorSpec("x", "float32", (None, None, 2), composite=composite)
    table = pa.table({"x": pa.array([[[1, 2]], [], [[3, 4], [5, 6]]], pa.list_(pa.list_(pa.int64(), 2)))})
    with pytest.raises(ColumnError, match="--cast x"):
        planned(table.schema, spec)
    found = made(planned(table.schema, spec, cast=("x",)), table)
    assert found.to_list() == [[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]]
    assert found.row_splits.dtype.name == "int32"
    fixed = pa.table({"x": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2))})
    flat = TensorSpec("x", "float32", (None, None), composite=composite)
    assert made(planned(fixed.schema, flat), fixed, 1).to_list() == [[3.0, 4.0], [5.0, 6.0]]
    with pytest.raises(ColumnError, match=r"does not fit tensor 'x'.*ragged float32 \[None, None, 2\]"):
        planned(fixed.schema, spec)
    held = TensorSpec("x", "float32", (None, 2, None), composite=RAGGED[2])
    uneven = pa.table({"x": pa.array([[[1.0], [2.0, 3.0]], [[4.0]]], pa.list_(pa.list_(pa.float32())))})
    with pytest.raises(ColumnError, match=r"another length in row 1\. Expected: 2 values\. Found: 1 values"):
        made(planned(uneven.schema, held), uneven)


def test_nulls_name_their_row_and_are_filled_only_if_asked() -> None:
    spec = TensorSpec("x", "int64", (None, None), composite=RAGGED[1])
    table = pa.table({"x": pa.array([[1], [], [2, None], None], pa.list_(pa.int64()))})
    plan = planned(table.schema, spec)
    (batch,) = table.to_batches()
    with pytest.raises(NullFeature, match="null in row 3"):
        plan.tensors(batch.slice(3), where="f", first_row=3)
    assert sorted(plan.unfit(batch, "f", 0)) == [2, 3]
    assert made(planned(table.schema, spec, fill=(("x", "7"),)), table).to_list() == [[1], [], [2, 7], []]
    with pytest.raises(ColumnError, match="--pad names the ragged input 'x', which needs none"):
        planned(table.schema, spec, pad=(("x", "0"),))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 9), st.floats(width=32), max_size=5), min_size=1, max_size=5),
    st.booleans(),
)
def test_positions_and_values_undo_what_a_sparse_output_becomes(rows: list[dict[int, float]], one: bool) -> None:
    """Both ways: two columns, and one of the structs that an output becomes."""
    table = pa.table(
        {
            "at": pa.array([list(row) for row in rows], pa.list_(pa.int32())),
            "v": pa.array([list(row.values()) for row in rows], pa.list_(pa.float32())),
        }
    )
    spec = TensorSpec("x", "float32", (None, 10), composite=SPARSE)
    sparse = made(planned(table.schema, spec, "at", "v"), table)
    assert list(sparse.dense_shape) == [len(rows), 10]
    output = plan_outputs({"y": TensorSpec("y", "float32", (None, 10), composite=Composite("sparse"))}, {})
    (column,) = output.columns({"y": sparse}, len(rows))
    column.validate(full=True)
    assert column.type == output.fields[0].type
    listed: Any = column.to_pylist()
    found = [[(pair["index"], pair["value"]) for pair in row] for row in listed]
    assert str(found) == str([sorted(row.items()) for row in rows])
    again = pa.table({"y": column})
    back = made(planned(again.schema, spec, *(["y"] if one else ["y.index", "y.value"])), again)
    assert np.array_equal(back.indices, sparse.indices)
    assert back.values.numpy().tobytes() == sparse.values.numpy().tobytes()


@pytest.mark.parametrize(
    ("at", "values", "said", "rows"),
    [
        (
            [[0], [10]],
            [[1.0], [2.0]],
            r"position that is out of range, or twice .* in row 1\. .*below 10\. Found: 10",
            [1],
        ),
        ([[-1], [1]], [[1.0], [2.0]], r"in row 0\. .*Found: -1", [0]),
        ([[0], [4, 1, 4]], [[1.0], [2.0, 3.0, 4.0]], r"twice in one list, in row 1\. .*Found: 4", [1]),
        ([[0], [], [1]], [[1.0], [2.0], [3.0]], r"different lengths in row 1\. .*Found: 0 positions", [1]),
    ],
)
def test_wrong_positions_name_the_row(at: Any, values: Any, said: str, rows: list[int]) -> None:
    table = pa.table({"at": pa.array(at, pa.list_(pa.int64())), "v": pa.array(values, pa.list_(pa.float32()))})
    plan = planned(table.schema, TensorSpec("x", "float32", (None, 10), composite=SPARSE), "at", "v")
    with pytest.raises(ColumnError, match=said):
        made(plan, table)
    (batch,) = table.to_batches()
    assert sorted(plan.unfit(batch, "f", 0)) == rows


def test_lists_longer_than_a_sparse_tensor_and_what_cannot_be_planned() -> None:
    table = pa.table({"x": pa.array([[1.0], [1.0, 2.0, 3.0]], pa.list_(pa.float32())), "n": [1.0, 2.0]})
    spec = TensorSpec("x", "float32", (None, 2), composite=SPARSE)
    with pytest.raises(ColumnError, match=r"in row 1\. Expected: at most 2 values\. Found: 3 values"):
        made(planned(table.schema, spec), table)
    with pytest.raises(ColumnError, match="Column 'n' in f does not fit tensor 'x'"):
        planned(table.schema, spec, "n")
    for columns in (["x", "x", "x"], ["n", "x"]):
        with pytest.raises(ColumnError):
            planned(table.schema, spec, *columns)
    with pytest.raises(ColumnError, match="2 columns do not fit tensor 'x'"):
        planned(table.schema, TensorSpec("x", "float32", (None, None), composite=RAGGED[1]), "x", "x")
    with pytest.raises(UnsupportedModel, match="no known rank"):
        planned(table.schema, TensorSpec("x", "float32", None, composite=SPARSE))
    with pytest.raises(UnsupportedModel, match="is sparse, and of other dimensions"):
        plan_outputs({"y": TensorSpec("y", "float32", (None, 2, 2), composite=Composite("sparse"))}, {})
