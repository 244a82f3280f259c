"""Column to tensor and back is the identity, whatever the kind, the nesting and the slice."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headrace.transforms.columns.casts import casts_exactly
from headrace.transforms.columns.inputs import plan_inputs, plan_outputs
from headrace.transforms.errors import ColumnError, NullFeature
from headrace.transforms.models.spec import TensorSpec
from headrace.transforms.nested_arrow import flat
from tests.support.loose import loose

NUMBERS = {
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}
STRINGS: tuple[pa.DataType, ...] = (
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.large_binary(),
    pa.string_view(),
    pa.binary_view(),
    pa.dictionary(pa.int16(), pa.string()),
)
given_columns = settings(max_examples=150, deadline=None)


@dataclass
class Drawn:
    """`rows` rows of `array`, a slice of `whole` from `first` on; each row has the shape `dims`; `leaves` are all values."""

    dtype: str
    dims: tuple[int, ...]
    whole: pa.Array[Any]
    first: int
    rows: int
    leaves: Any

    @property
    def batch(self) -> pa.RecordBatch:
        return pa.record_batch({"c": self.whole.slice(self.first, self.rows)})

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec("c", self.dtype, (None, *self.dims))


@st.composite
def drawn_columns(draw: st.DrawFn, extensions: bool = True) -> Drawn:
    dims = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    first, rows, after = draw(st.integers(0, 17)), draw(st.integers(0, 9)), draw(st.integers(0, 2))
    skipped, per_row = draw(st.integers(0, 9)), math.prod(dims)
    count = (first + rows + after) * per_row
    dtype = draw(st.sampled_from((*NUMBERS, "bool", "string")))
    leaves: Any
    kind: pa.DataType
    array: pa.Array[Any]
    whole: pa.Array[Any]
    if dtype in NUMBERS:
        size = np.dtype(dtype).itemsize
        bits = draw(st.binary(min_size=size * (skipped + count), max_size=size * (skipped + count)))
        array = pa.Array.from_buffers(loose(NUMBERS[dtype]), skipped + count, [None, pa.py_buffer(bits)])
        leaves = np.frombuffer(bits, f"u{size}")
    elif dtype == "bool":
        leaves = np.array(draw(st.lists(st.booleans(), min_size=skipped + count, max_size=skipped + count)), np.bool_)
        array = pa.array(leaves.tolist(), pa.bool_())
    else:
        kind = draw(st.sampled_from(STRINGS))
        one = st.binary(max_size=20) if "binary" in str(kind) else st.text(max_size=20).map(str.encode)
        leaves = draw(st.lists(one, min_size=skipped + count, max_size=skipped + count))
        array = pa.array(leaves, pa.binary()).cast(pa.string() if "string" in str(kind) else pa.binary())
        array = array.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else array.cast(kind)
    array = loose(array.slice(skipped))
    if extensions and dims and 0 not in dims and dtype != "string" and draw(st.booleans()):
        storage = pa.FixedSizeListArray.from_arrays(array, per_row)
        whole = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(array.type, dims), storage)
    else:
        whole = nest(draw, array, (first + rows + after, *dims))
    start = skipped + first * per_row
    return Drawn(dtype, dims, whole, first, rows, leaves[start : start + rows * per_row])


def nest(draw: st.DrawFn, array: pa.Array[Any], shape: tuple[int, ...]) -> pa.Array[Any]:
    for level in reversed(range(1, len(shape))):
        lists, length = math.prod(shape[:level]), shape[level]
        form = draw(st.sampled_from(("fixed", "list", "large")))
        if form == "fixed" and length:
            array = pa.FixedSizeListArray.from_arrays(array, length)
        else:
            made = loose(pa.LargeListArray if form == "large" else pa.ListArray)
            array = made.from_arrays(pa.array([length * i for i in range(lists + 1)], made_offsets(form)), array)
    return array


def made_offsets(form: str) -> pa.DataType:
    return pa.int64() if form == "large" else pa.int32()


def same_leaves(array: pa.Array[Any], drawn: Drawn) -> bool:
    """Held together by pyarrow's own flatten(), to the bit."""
    while not pa.types.is_primitive(array.type) and not pa.types.is_binary(array.type):
        array = array.storage if isinstance(array, pa.ExtensionArray) else flat(array)
    if drawn.dtype == "string":
        return array.to_pylist() == drawn.leaves
    values = np.array(array.to_pylist(), np.bool_) if drawn.dtype == "bool" else array.to_numpy()
    return values.tobytes() == drawn.leaves.tobytes()


@given(drawn_columns())
@given_columns
def test_there_and_back_is_the_identity(drawn: Drawn) -> None:
    plan = pickle.loads(pickle.dumps(plan_inputs(drawn.batch.schema, {"c": drawn.spec}, {})))
    tensor = plan.tensors(drawn.batch)["c"]
    assert tuple(tensor.shape) == (drawn.rows, *drawn.dims)
    assert tensor.dtype.name == drawn.dtype
    if drawn.dtype == "string":
        assert tensor.numpy().ravel().tolist() == drawn.leaves
    else:
        assert tensor.numpy().tobytes() == drawn.leaves.tobytes()
    back = pickle.loads(pickle.dumps(plan_outputs({"c": drawn.spec}, {})))
    (array,) = back.columns({"c": tensor}, drawn.rows)
    array.validate(full=True)
    assert len(array) == drawn.rows
    assert array.type == back.fields[0].type
    assert same_leaves(array, drawn)


@given(drawn_columns(), st.data())
@given_columns
def test_dimensions_that_vary_go_there_and_back(drawn: Drawn, data: st.DataObject) -> None:
    assume(drawn.rows and 0 not in drawn.dims[:-1])  # an empty list cannot say how long lists within it would be
    shape = tuple(None if data.draw(st.booleans()) else dim for dim in drawn.dims)
    spec = TensorSpec("c", drawn.dtype, (None, *shape))
    tensor = plan_inputs(drawn.batch.schema, {"c": spec}, {}).tensors(drawn.batch)["c"]
    assert tuple(tensor.shape) == (drawn.rows, *drawn.dims)
    (array,) = plan_outputs({"c": spec}, {}).columns({"c": tensor}, drawn.rows)
    array.validate(full=True)
    assert same_leaves(array, drawn)


@given(drawn_columns(extensions=False), st.data())
@given_columns
def test_a_null_at_any_level_is_told_with_its_row(drawn: Drawn, data: st.DataObject) -> None:
    if pa.types.is_dictionary(drawn.batch.schema.field("c").type):
        drawn.whole = drawn.whole.cast(pa.string())
    rows = loose(drawn.whole.to_pylist())
    assume(rows)
    row = data.draw(st.integers(0, len(rows) - 1))
    at, place = rows, row
    for _ in range(data.draw(st.integers(0, len(drawn.dims)))):
        if not at[place]:
            break
        at, place = at[place], data.draw(st.integers(0, len(at[place]) - 1))
    at[place] = None
    drawn.whole = pa.array(rows, drawn.whole.type)
    plan = plan_inputs(drawn.batch.schema, {"c": drawn.spec}, {})
    if not drawn.first <= row < drawn.first + drawn.rows:
        plan.tensors(drawn.batch)
        return
    with pytest.raises(NullFeature, match=f"'c' of gs://b/f is null in row {1000 + row - drawn.first}\\."):
        plan.tensors(drawn.batch, where="gs://b/f", first_row=1000)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.integers(0, 11),
    st.sampled_from((pa.list_(pa.int32()), pa.large_list(pa.int32()))),
    st.sampled_from((None, 2, 3)),
)
@given_columns
def test_a_list_of_another_length_is_told_with_its_row(
    lengths: list[int], first: int, kind: pa.DataType, wanted: int | None
) -> None:
    batch = pa.record_batch({"c": pa.array([[7] * length for length in lengths], kind)}).slice(first)
    plan = plan_inputs(batch.schema, {"c": TensorSpec("c", "int32", (None, wanted))}, {})
    rest = lengths[first:]
    wrong = [row for row, length in enumerate(rest) if length != (rest[0] if wanted is None else wanted)]
    if not wrong:
        assert plan.tensors(batch)["c"].shape[0] == len(rest)
        return
    with pytest.raises(ColumnError, match=f"another length in row {5 + wrong[0]}\\..*Found: {rest[wrong[0]]} values"):
        plan.tensors(batch, first_row=5)


SAMPLES = sorted({sign * (2**bits + step) for bits in range(65) for step in (-1, 0, 1) for sign in (1, -1)})


@pytest.mark.parametrize("source", [*NUMBERS, "bool"])
@pytest.mark.parametrize("target", [*NUMBERS, "bool", "bfloat16"])
def test_a_cast_is_allowed_exactly_where_no_value_can_change(source: str, target: str) -> None:
    import tensorflow as tf

    if source.startswith("float"):
        info = np.finfo(source)
        samples = np.array([0.5, -1.5, info.max, info.tiny, info.eps, 2.0 + 2 * info.eps], source)
    elif source == "bool":
        samples = np.array([False, True])
    else:
        low, high = np.iinfo(source).min, np.iinfo(source).max
        samples = np.array([sample for sample in SAMPLES if low <= sample <= high], source)
    with np.errstate(all="ignore"):
        cast = samples.astype(tf.as_dtype(target).as_numpy_dtype)
        kept = all(
            bool(np.isfinite(np.float64(b))) and int(a * 1) == int(b * 1) and float(a) == float(b)
            for a, b in zip(samples.tolist(), cast.tolist(), strict=True)
        )
    batch = pa.record_batch({"c": pa.array(samples.tolist(), NUMBERS.get(source, pa.bool_()))})
    spec = TensorSpec("c", target, (None,))
    assert kept == (casts_exactly(source, target) or source == target)
    if kept:
        tensor = plan_inputs(batch.schema, {"c": spec}, {}).tensors(batch)["c"]
        assert tensor.dtype.name == target
        assert tensor.numpy().tolist() == cast.tolist()
    else:
        with pytest.raises(ColumnError, match=f"Expected: {target} .*Found: .* write the column as {target}"):
            plan_inputs(batch.schema, {"c": spec}, {})


@given(
    drawn_columns(),
    st.sampled_from((*NUMBERS, "bool", "string", "bfloat16")),
    st.one_of(st.none(), st.lists(st.sampled_from((None, 0, 1, 2, 3, 4, 6, 9)), max_size=3).map(tuple)),
)
@settings(max_examples=400, deadline=None)
def test_what_is_planned_works_and_all_else_is_refused_before_data(
    drawn: Drawn, dtype: str, inner: tuple[int | None, ...] | None
) -> None:
    """A plan that was made fails only for lengths that the schema does not tell, and gives the tensor that was asked."""
    spec = TensorSpec("c", dtype, None if inner is None else (None, *inner))
    try:
        plan = plan_inputs(drawn.batch.schema, {"c": spec}, {})
    except ColumnError:
        return
    varies = "list<" in str(drawn.whole.type).replace("fixed_size_list<", "")
    try:
        tensor = plan.tensors(drawn.batch)["c"]
    except ColumnError:
        assert varies
        return
    assert tensor.dtype.name == dtype
    assert tensor.shape[0] == drawn.rows
    if inner is not None:
        assert tensor.shape.is_compatible_with(spec.shape)
    if drawn.rows:
        assert math.prod(tensor.shape) == len(drawn.leaves)
