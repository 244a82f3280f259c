from __future__ import annotations

import gc
import pickle
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.transforms.columns.inputs import InputPlan, OutputPlan, plan_inputs, plan_outputs
from headrace.transforms.errors import ColumnError, NullFeature, UnsupportedModel
from headrace.transforms.models.spec import TensorSpec
from tests.support.loose import loose

IMAGES = pa.array([list(range(row, row + 4)) for row in range(3)], pa.list_(pa.float32(), 4))
BATCH = pa.record_batch(
    {
        "id": pa.array([10, 11, 12], pa.int64()),
        "pixels": IMAGES,
        "name": pa.array(["é", "", "\0x"]),
        "a": pa.array([1, 2, 3], pa.int16()),
        "b": pa.array([0.5, 1.5, 2.5], pa.float32()),
        "flag": pa.array([True, False, True]),
    }
)


def specs(**shapes: tuple[str, tuple[int | None, ...] | None]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, dtype, shape) for name, (dtype, shape) in shapes.items()}


def read(batch: pa.RecordBatch, dtype: str, shape: tuple[int | None, ...] | None, *columns: str) -> Any:
    plan = plan_inputs(batch.schema, specs(x=(dtype, shape)), {"x": columns})
    return plan.tensors(batch)["x"]


def refused(error: type[Exception], said: str) -> Any:
    return pytest.raises(error, match=re.escape(said))


# Which column feeds which tensor


def test_a_plan_tells_its_columns_its_mapping_and_its_bytes_a_row() -> None:
    inputs = specs(pixels=("float32", (None, 2, 2)), tab=("bfloat16", (None, 2)), flag=("bool", (None, 1)))
    plan = plan_inputs(BATCH.schema, inputs, {"tab": ("flag", "flag")})
    assert plan.mapping == {"pixels": ("pixels",), "tab": ("flag", "flag"), "flag": ("flag",)}
    assert plan.columns == ("pixels", "flag")
    assert plan.row_nbytes == 4 * 4 + 2 * 2 + 1
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan_inputs(BATCH.schema, specs(name=("string", (None,))), {}).row_nbytes is None


def test_one_tensor_and_one_fitting_column_need_no_mapping() -> None:
    assert plan_inputs(BATCH.schema, specs(serving=("float32", (None, 2, 2, 1))), {}).columns == ("pixels",)
    with refused(ColumnError, "Several columns fit the model's only input 'x' in gs://b/f. Expected: one column for"):
        plan_inputs(BATCH.schema, specs(x=("float32", (None, 1))), {}, where="gs://b/f")
    with refused(ColumnError, "No column fits the model's only input 'x'. Expected: one column for float32 [None, 5]"):
        plan_inputs(BATCH.schema, specs(x=("float32", (None, 5))), {})


def test_a_missing_column_names_the_nearest() -> None:
    said = (
        "There is no column 'pixel' in f.parquet for tensor 'x'. Expected: float32 [None, 4]. Found: columns id, pixels"
    )
    with refused(ColumnError, said) as caught:
        plan_inputs(BATCH.schema, specs(x=("float32", (None, 4))), {"x": ("pixel",)}, where="f.parquet")
    assert str(caught.value).endswith("Did you mean 'pixels'? Say --feature x=COLUMN.")


def test_an_unknown_tensor_names_those_that_exist() -> None:
    said = "The model has no input 'pixls'. Expected: the name of one of its inputs. Found: inputs pixels. Did you mean"
    with refused(ColumnError, f"{said} 'pixels'?"):
        plan_inputs(BATCH.schema, specs(pixels=("float32", (None, 4))), {"pixls": ("pixels",)})


def test_a_column_that_is_there_twice_is_refused() -> None:
    schema = pa.schema([("x", pa.int32()), ("x", pa.int32())])
    with refused(ColumnError, "There are several columns 'x' for tensor 'x'."):
        plan_inputs(schema, specs(x=("int32", (None,))), {})


@pytest.mark.parametrize("shape", [(), (1,), (32, 4)])
def test_an_input_without_a_batch_dimension_is_refused(shape: tuple[int, ...]) -> None:
    with refused(UnsupportedModel, "The model's input 'pixels' has no batch dimension"):
        plan_inputs(BATCH.schema, specs(pixels=("float32", shape)), {})


@pytest.mark.parametrize(
    "kind",
    [
        pa.null(),
        pa.month_day_nano_interval(),
        pa.struct([("y", pa.float32())]),
        pa.list_(pa.struct([("y", pa.float32())])),
        pa.struct([]),
        pa.map_(pa.string(), pa.float32()),
        pa.list_view(pa.float32()),
        pa.dictionary(pa.int8(), pa.string_view()),
        pa.fixed_shape_tensor(pa.float32(), [2, 2], permutation=[1, 0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "int64", "string", "bool"])
def test_a_kind_that_no_handler_reads_is_refused(kind: pa.DataType, dtype: str) -> None:
    with refused(ColumnError, f"Column 'x' does not fit tensor 'x'. Expected: {dtype} of any shape. Found: {kind}."):
        plan_inputs(pa.schema([("x", kind)]), specs(x=(dtype, None)), {})


def test_a_dtype_that_no_column_has_is_refused() -> None:
    with refused(ColumnError, "Expected: complex64 [None]. Found: float."):
        plan_inputs(BATCH.schema, specs(b=("complex64", (None,))), {})


def test_a_float64_column_for_a_float32_tensor_is_refused_with_the_cure() -> None:
    with refused(ColumnError, "Values could change, so nothing is cast: write the column as float32, or say --cast x."):
        plan_inputs(pa.schema([("x", pa.float64())]), specs(x=("float32", (None,))), {})


# Shapes


@pytest.mark.parametrize(
    ("inner", "fits"),
    [
        (None, (4,)),
        ((4,), (4,)),
        ((None,), (4,)),
        ((2, 2), (2, 2)),
        ((4, 1), (4, 1)),
        ((1, 4), (1, 4)),
        ((2, 2, 1), (2, 2, 1)),
        ((), None),
        ((5,), None),
        ((2, 3), None),
        ((None, 2), None),
        ((2, None), None),
    ],
)
@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 4), pa.fixed_shape_tensor(pa.float32(), [4])], ids=str)
def test_a_flat_list_takes_the_shape_of_the_tensor(
    inner: tuple[int | None, ...] | None, fits: tuple[int, ...] | None, kind: pa.DataType
) -> None:
    column = IMAGES if pa.types.is_fixed_size_list(kind) else pa.ExtensionArray.from_storage(loose(kind), IMAGES)
    batch = pa.record_batch({"c": column})
    shape = None if inner is None else (None, *inner)
    if fits is None:
        with refused(ColumnError, "Column 'c' does not fit tensor 'x'"):
            read(batch, "float32", shape, "c")
        return
    tensor = read(batch, "float32", shape, "c")
    assert tensor.numpy().tolist() == np.array(loose(IMAGES).to_pylist()).reshape(3, *fits).tolist()


def test_nested_lists_may_lack_or_add_dimensions_of_one_but_are_never_folded() -> None:
    image = pa.list_(pa.list_(pa.uint8(), 3), 2)
    batch = pa.record_batch({"c": pa.array([[[1, 2, 3], [4, 5, 6]]], image)})
    assert read(batch, "float32", (None, 2, 3, 1), "c").numpy().tolist() == [[[[1], [2], [3]], [[4], [5], [6]]]]
    for inner in ((3, 2), (6,), (3, 2, 1)):
        with refused(ColumnError, "does not fit"):
            read(batch, "float32", (None, *inner), "c")


@pytest.mark.parametrize("inner", [(), (1,), (None,), (1, 1)])
def test_a_scalar_column_fits_a_vector_of_one(inner: tuple[int | None, ...]) -> None:
    tensor = read(BATCH, "int64", (None, *inner), "id")
    assert tensor.numpy().ravel().tolist() == [10, 11, 12]
    assert tensor.shape.rank == 1 + len(inner)


def test_lists_of_one_length_are_held_to_the_length_that_the_tensor_has() -> None:
    batch = pa.record_batch({"c": pa.array([[1, 2, 3, 4], [5, 6, 7, 8]], pa.list_(pa.int32()))})
    assert read(batch, "int32", (None, 2, 2), "c").numpy().tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert read(batch.slice(0, 0), "int32", (None, 2, 2), "c").shape == (0, 2, 2)
    with refused(ColumnError, "Column 'c' has a list of another length in row 0. Expected: 6 values. Found: 4 values."):
        read(batch, "int32", (None, 6), "c")


def test_a_list_of_another_length_within_a_list_is_told_with_its_row() -> None:
    rows = [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 9], [9]]]
    batch = pa.record_batch({"c": pa.array(rows, pa.list_(pa.list_(pa.int32()), 2))})
    with refused(ColumnError, "in row 2. Expected: 2 values, as in the first list. Found: 1 values."):
        read(batch, "int32", (None, None, None), "c")
    with refused(ColumnError, "in row 1. Expected: 2 values. Found: 1 values."):
        read(batch.slice(1), "int32", (None, 2, 2), "c")


def test_binary_of_fixed_width_is_a_string() -> None:
    batch = pa.record_batch({"c": pa.array([b"abc", b"\0\xff\0", b"xyz"], pa.binary(3))})
    assert read(batch.slice(1), "string", (None, 1), "c").numpy().tolist() == [[b"\0\xff\0"], [b"xyz"]]


@pytest.mark.parametrize(
    "column",
    [pa.array([7, 5, 7], pa.int16()), pa.array([0.5, 1, 0.5]), BATCH["name"], pa.array([b"ab", b"c\0"], pa.binary(2))],
    ids=lambda column: str(column.type),
)
def test_a_dictionary_reads_as_its_values(column: pa.Array[Any]) -> None:
    encoded = pa.record_batch({"c": column.dictionary_encode()}).slice(1)
    dtype = str(column.type) if column.type == pa.int16() else "float64" if column.type == pa.float64() else "string"
    expected = read(pa.record_batch({"c": column}).slice(1), dtype, (None, 1), "c").numpy().tolist()
    assert read(encoded, dtype, (None, 1), "c").numpy().tolist() == expected
    if dtype != "string":
        pairs = [[value, value] for (value,) in expected]
        assert read(encoded, dtype, (None, 2), "c", "c").numpy().tolist() == pairs


def test_a_wider_type_changes_no_value_not_even_those_nearest_to_zero() -> None:
    smallest = [float(np.finfo(np.float32).smallest_subnormal), -1e-40, 0.0]
    columns = {"a": pa.array(smallest, pa.float32()), "half": pa.array(np.array([6e-8, -1e-7, 0.0], np.float16))}
    batch = pa.record_batch({**columns, "list": pa.array([[x] for x in smallest], pa.list_(pa.float32(), 1))})
    exact = np.array(smallest, np.float32).astype(np.float64)
    assert read(batch, "float64", (None,), "a").numpy().tolist() == exact.tolist()
    assert read(batch, "float64", (None, 1), "list").numpy()[:, 0].tolist() == exact.tolist()
    assert read(batch, "float64", (None, 2), "a", "a").numpy()[:, 0].tolist() == exact.tolist()
    assert read(batch, "float32", (None,), "half").numpy().tolist() == loose(columns["half"]).to_pylist()


def test_scalar_columns_are_packed_in_the_order_given() -> None:
    assert read(BATCH, "float32", (None, 3), "b", "flag", "a").numpy().tolist() == [
        [0.5, 1, 1],
        [1.5, 0, 2],
        [2.5, 1, 3],
    ]
    assert read(BATCH, "float32", None, "a", "b").shape == (3, 2)
    assert read(BATCH, "float64", (None, 2, 1), "a", "b").shape == (3, 2, 1)
    assert read(BATCH, "bfloat16", (None, None), "flag", "flag").numpy().tolist() == [[1, 1], [0, 0], [1, 1]]
    assert read(BATCH.slice(0, 0), "float32", (None, 2), "a", "b").shape == (0, 2)
    names = [["é".encode()] * 2, [b""] * 2, [b"\0x"] * 2]
    assert read(BATCH, "string", (None, 2), "name", "name").numpy().tolist() == names
    with refused(ColumnError, "2 columns do not fit tensor 'x'. Expected: float32 [None, 3]. Found: a, b."):
        read(BATCH, "float32", (None, 3), "a", "b")
    with refused(ColumnError, "Only scalar columns can be packed side by side."):
        read(BATCH, "float32", (None, 5), "a", "pixels")
    with refused(ColumnError, "Column 'id' does not fit tensor 'x'"):
        read(BATCH, "float32", (None, 2), "a", "id")


# Data that the plan cannot know


def test_a_null_names_file_column_row_and_cure() -> None:
    batch = pa.record_batch({"x": pa.array([1.0, None, None], pa.float32())})
    plan = plan_inputs(batch.schema, specs(x=("float32", (None,))), {})
    with pytest.raises(NullFeature) as caught:
        plan.tensors(batch, where="gs://b/f.parquet", first_row=4096)
    assert str(caught.value) == (
        "Column 'x' of gs://b/f.parquet is null in row 4097. Expected: a value in every row: it is a feature of the "
        "model. Found: 2 nulls in this batch. Fill or drop these rows before predicting, or say --fill x=VALUE."
    )


def test_a_null_in_a_dictionary_is_a_null() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), pa.array(["a", None]))
    with refused(NullFeature, "Column 'c' is null in row 1"):
        read(pa.record_batch({"c": column}), "string", (None,), "c")


def test_a_batch_of_another_type_than_planned_is_refused_before_its_memory_is_read() -> None:
    plan = plan_inputs(pa.schema([("x", pa.int32())]), specs(x=("int32", (None,))), {})
    with refused(ColumnError, "has another type than the job was planned with. Expected: int32. Found: int64."):
        plan.tensors(pa.record_batch({"x": pa.array([1], pa.int64())}), where="f")


def test_files_may_differ_in_what_they_call_items_and_whether_these_may_be_null() -> None:
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), 4)
    plan = pickle.loads(
        pickle.dumps(plan_inputs(pa.schema([("pixels", kind)]), specs(pixels=("float32", (None, 4))), {}))
    )
    assert plan.tensors(BATCH)["pixels"].numpy().tolist() == loose(IMAGES).to_pylist()


def test_chunks_that_were_combined_are_read_right() -> None:
    table = pa.concat_tables([pa.table([column.slice(1) for column in BATCH.columns], BATCH.schema.names)] * 3)
    (batch,) = table.combine_chunks().to_batches()
    assert read(batch, "string", (None,), "name").numpy().tolist() == [b"", b"\0x"] * 3
    assert read(batch, "bool", (None,), "flag").numpy().tolist() == [False, True] * 3
    assert read(batch, "float32", (None, 4), "pixels").numpy().tolist() == loose(IMAGES).to_pylist()[1:] * 3


# Memory


def test_aligned_columns_are_lent_and_others_copied() -> None:
    import tensorflow as tf

    memory = pa.py_buffer(pa.allocate_buffer(4 * 16 * 8))
    np.frombuffer(loose(memory), np.float32)[:] = np.arange(16 * 8)
    leaf = pa.Array.from_buffers(pa.float32(), 16 * 8, [None, memory])
    batch = pa.record_batch({"c": pa.FixedSizeListArray.from_arrays(leaf, 8)})
    for start in (0, 2, 1, 3):
        part = batch.slice(start)
        tensor = read(part, "float32", (None, 4, 2), "c")
        lent = np.asarray(memoryview(tensor)).ctypes.data == memory.address + start * 32
        assert lent == (start % 2 == 0)
        product = tf.matmul(tf.reshape(tensor, (-1, 8)), tf.ones((8, 3)))
        assert product[:, 0].numpy().tolist() == [sum(row) for row in loose(part.column(0).to_pylist())]


@pytest.mark.parametrize("dtype", ["float32", "bool", "string", "bfloat16"])
def test_columns_outlive_the_tensors_they_came_from_and_tensors_their_batch(dtype: str) -> None:
    import tensorflow as tf

    rows = 5000
    source = tf.range(rows) % 2
    tensor = tf.strings.as_string(source) if dtype == "string" else tf.cast(source, dtype)
    plan = plan_outputs(specs(x=(dtype, (None,))), {})
    (array,) = plan.columns({"x": tensor}, rows)
    del source, tensor
    kind = "float32" if dtype == "bfloat16" else dtype
    batch = pa.record_batch({"x": array})
    again = read(batch, kind, (None,), "x")
    del batch
    gc.collect()
    overwritten = [tf.fill((rows,), float(n)) + 1 for n in range(50)]
    expected = [b"0", b"1"] if dtype == "string" else [0, 1]
    assert array.to_pylist() == expected * (rows // 2)
    del array
    gc.collect()
    overwritten += [tf.fill((rows,), float(n)) + 1 for n in range(50)]
    assert again.numpy().tolist() == expected * (rows // 2)


def test_numeric_outputs_are_tensorflow_s_own_memory() -> None:
    import tensorflow as tf

    tensor = tf.random.uniform((100, 10))
    (array,) = plan_outputs(specs(x=("float32", (None, 10))), {}).columns({"x": tensor}, 100)
    assert loose(array).values.buffers()[1].address == np.asarray(memoryview(tensor)).ctypes.data


def test_a_variable_that_a_model_updates_later_does_not_change_a_column() -> None:
    import tensorflow as tf

    variable = tf.Variable(tf.zeros(1000))
    (array,) = plan_outputs(specs(x=("float32", (None,))), {}).columns({"x": variable.read_value()}, 1000)
    variable.assign_add(tf.ones(1000))
    variable.scatter_nd_update([[0]], [7.0])
    assert array.to_pylist() == [0.0] * 1000


def test_plans_are_values() -> None:
    assert plan_outputs({}, {}) == OutputPlan(())
    assert plan_inputs(BATCH.schema, {}, {}) == InputPlan(())
