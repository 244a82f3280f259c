"""Rules held against what slow Python makes of the same rows: every kind of leaf, sliced, null, empty, nested."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.columns.casts import UncastableError, cast
from headrace.transforms.columns.inputs import ColumnRules, plan_inputs, plan_outputs
from headrace.transforms.errors import ColumnError, DataError, NullFeature
from headrace.transforms.models.spec import TensorSpec
from headrace.transforms.nested_arrow import child as child_of
from headrace.transforms.nested_arrow import value_type

# Arrow's type, TensorFlow's dtype, what --fill and --pad say and mean, and values that differ from both.
LEAVES: list[tuple[pa.DataType, str, str, str, Any, Any, st.SearchStrategy[Any]]] = [
    (pa.int8(), "int8", "-2", "-1", -2, -1, st.integers(0, 127)),
    (pa.uint16(), "int64", "-2", "-1", -2, -1, st.integers(0, 65535)),
    (pa.float32(), "float64", "-2", "-1.5", -2.0, -1.5, st.floats(0, 1000, width=32)),
    (pa.float64(), "float32", "-2", "-1.5", -2.0, -1.5, st.integers(0, 2**24).map(float)),
    (pa.bool_(), "bool", "true", "false", True, False, st.booleans()),
    (pa.timestamp("us", "UTC"), "int64", "-2", "-1", -2, -1, st.integers(0, 2**40)),
    (pa.date32(), "int32", "-2", "-1", -2, -1, st.integers(0, 20000)),
    (pa.string(), "string", "ü", "", "ü".encode(), b"", st.text(max_size=5).map(str.encode)),
    (pa.large_binary(), "string", "ü", "-", "ü".encode(), b"-", st.binary(max_size=5)),
    (pa.dictionary(pa.int8(), pa.string()), "string", "ü", "-", "ü".encode(), b"-", st.sampled_from([b"a", b"bc"])),
]
FLOATS = {"float16": st.floats(width=16), "float32": st.floats(width=32), "float64": st.floats()}
checked = settings(max_examples=250, deadline=None)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[pa.Array[Any], list[Any], int, tuple[Any, ...]]:
    """A sliced column of lists `depth` deep, its rows as Python has them, the depth, and its leaf."""
    leaf = draw(st.sampled_from(LEAVES))
    depth, nulls = draw(st.integers(0, 3)), draw(st.booleans())
    values: st.SearchStrategy[Any] = st.one_of(st.none(), leaf[-1]) if nulls else leaf[-1]
    kind = leaf[0]
    for _ in range(depth):
        size = draw(st.sampled_from((None, None, 2)))
        # Arrow's conversion from Python does not fill the space of null fixed lists of dictionaries.
        hole = nulls and not (size and pa.types.is_dictionary(leaf[0]))
        lists = st.lists(values, min_size=size or 0, max_size=size or 3)
        values = st.one_of(st.none(), lists) if hole and draw(st.booleans()) else lists
        large = size is None and draw(st.booleans())
        kind = pa.large_list(kind) if large else pa.list_(kind, -1 if size is None else size)
    rows = draw(st.lists(values, max_size=6))
    start, cut = draw(st.integers(0, 3)), draw(st.integers(0, 6))
    array = made(rows, kind)
    if draw(st.booleans()):
        array = pa.concat_arrays([array.slice(0, cut), array.slice(cut)])
    return array.slice(start), rows[start:], depth, leaf


def made(rows: list[Any], kind: pa.DataType) -> pa.Array[Any]:
    plain = pa.string() if "dictionary" in str(kind) else None
    array = pa.array(rows, replaced(kind, plain) if plain else kind)
    return array.cast(kind) if plain and pa.types.is_dictionary(kind) else array if not plain else encoded(array, kind)


def replaced(kind: pa.DataType, leaf: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return leaf
    inner = replaced(value_type(kind), leaf)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner, kind.list_size)
    return pa.large_list(inner) if pa.types.is_large_list(kind) else pa.list_(inner)


def encoded(array: pa.Array[Any], kind: pa.DataType) -> pa.Array[Any]:
    """The nested strings with their leaves as a dictionary, which Arrow's conversions do not make."""
    if pa.types.is_dictionary(kind):
        return array.dictionary_encode().cast(kind)
    child = encoded(child_of(array), value_type(kind))
    return pa.Array.from_buffers(kind, len(array), array.buffers()[: kind.num_buffers], array.null_count, 0, [child])


def longest(rows: Any, depth: int, sizes: list[int], at: int = 0) -> list[int]:
    """The greatest length of the lists at each depth."""
    if at < depth:
        for one in rows:
            if one is not None:
                sizes[at] = max(sizes[at], len(one))
                longest(one, depth, sizes, at + 1)
    return sizes


def full(value: Any, sizes: list[int], fixed: list[int | None], fill: Any, pad: Any) -> Any:
    """The value as it stands in the tensor; a null fixed list is one of nulls."""
    if not sizes:
        return fill if value is None else value
    if value is None and fixed[0] is not None:
        value = [None] * sizes[0]
    inside = [full(one, sizes[1:], fixed[1:], fill, pad) for one in value or []]
    return inside + [np.full(sizes[1:], pad, object).tolist() for _ in range(sizes[0] - len(inside))]


def fixed_sizes(kind: pa.DataType) -> list[int | None]:
    sizes: list[int | None] = []
    while hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        sizes.append(kind.list_size if pa.types.is_fixed_size_list(kind) else None)
        kind = kind.value_type
    return sizes


def first_null(rows: list[Any]) -> int | None:
    def has(value: Any) -> bool:
        return value is None or (isinstance(value, list) and any(map(has, value)))

    return next((row for row, value in enumerate(rows) if has(value)), None)


@given(drawn(), st.booleans())
@checked
def test_padded_and_filled_columns_are_what_python_makes_of_the_rows(column: Any, member: bool) -> None:
    array, rows, depth, (_, dtype, fill, pad, filled, padded, _) = column
    fixed = fixed_sizes(array.type)
    batch, name = pa.record_batch({"x": array}), "x"
    if member:
        batch, name = pa.record_batch({"s": pa.StructArray.from_arrays([array], ["x"])}), "s.x"
    rules = ColumnRules(pad=(("x", pad),), fill=(("x", fill),), cast=("x",))
    spec = TensorSpec("x", dtype, (None,) * (depth + 1))
    plan = pickle.loads(pickle.dumps(plan_inputs(batch.schema, {"x": spec}, {"x": (name,)}, rules=rules)))
    by_batch = [
        size if size is not None else most for size, most in zip(fixed, longest(rows, depth, [0] * depth), strict=True)
    ]
    tensor = plan.tensors(batch)["x"]
    assert tuple(tensor.shape) == (len(rows), *by_batch)
    assert tensor.dtype.name == dtype
    expected = [full(row, by_batch, fixed, filled, padded) for row in rows]
    assert tensor.numpy().tolist() == expected


@given(drawn())
@checked
def test_without_a_fill_the_first_null_is_told_with_its_row(column: Any) -> None:
    array, rows, depth, (_, dtype, _, pad, *_) = column
    batch = pa.record_batch({"x": array})
    spec = TensorSpec("x", dtype, (None,) * (depth + 1))
    plan = plan_inputs(batch.schema, {"x": spec}, {}, rules=ColumnRules(pad=(("x", pad),), cast=("x",)))
    null = first_null(rows)
    if null is None:
        assert len(plan.tensors(batch)["x"]) == len(rows)
        return
    with pytest.raises(NullFeature, match=rf"'x' of f is null in row {50 + null}\."):
        plan.tensors(batch, where="f", first_row=50)


@given(drawn(), st.integers(0, 2))
@checked
def test_the_row_that_is_told_is_the_first_that_fails_alone(column: Any, most: int) -> None:
    """Nulls, long lists and values out of bounds in one batch: rows before the one that is told are sound."""
    array, rows, depth, (_, dtype, _, pad, *_) = column
    batch = pa.record_batch({"x": array})
    spec = TensorSpec("x", {"int64": "int8", "float64": "float16"}.get(dtype, dtype), (None, *(most,) * depth))
    try:
        plan = plan_inputs(batch.schema, {"x": spec}, {}, rules=ColumnRules(pad=(("x", pad),), cast=("x",)))
    except ColumnError:
        return

    def fails(row: int) -> bool:
        try:
            plan.tensors(batch.slice(row, 1))
        except DataError:
            return True
        return False

    bad = next((row for row in range(len(rows)) if fails(row)), None)
    if bad is None:
        plan.tensors(batch)
        return
    with pytest.raises(DataError, match=rf"\brow {50 + bad}\b"):
        plan.tensors(batch, first_row=50)


@given(drawn(), st.sampled_from(("auto", "list", "tensor")))
@checked
def test_what_was_padded_goes_back_to_a_column_of_any_form(column: Any, prediction_type: str) -> None:
    array, rows, depth, (_, dtype, fill, pad, *_) = column
    batch = pa.record_batch({"x": array})
    rules = ColumnRules(pad=(("x", pad),), fill=(("x", fill),), cast=("x",), prediction_type=prediction_type)
    spec = TensorSpec("x", dtype, (None,) * (depth + 1))
    tensor = plan_inputs(batch.schema, {"x": spec}, {}, rules=rules).tensors(batch)["x"]
    for shape in ((None, *tensor.shape[1:]), spec.shape):
        plan = pickle.loads(pickle.dumps(plan_outputs({"x": TensorSpec("x", dtype, shape)}, {}, rules=rules)))
        (back,) = plan.columns({"x": tensor}, len(rows))
        back.validate(full=True)
        assert back.type == plan.fields[0].type
        if isinstance(back.type, pa.FixedShapeTensorType):
            assert 0 in tensor.shape or back.to_numpy_ndarray().tolist() == tensor.numpy().tolist()
        else:
            assert back.to_pylist() == tensor.numpy().tolist()


@given(
    st.sampled_from(("int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64")),
    st.sampled_from(("int8", "uint8", "int16", "uint32", "int32", "int64", "uint64", "bool")),
    st.data(),
)
@checked
def test_a_cast_to_whole_numbers_keeps_cuts_or_tells(source: str, target: str, data: st.DataObject) -> None:
    if source.startswith("float"):
        edges = [sign * 2.0**bits for bits in (7, 8, 15, 16, 31, 32, 63, 64) for sign in (1, -1)]
        drawn_values = st.one_of(FLOATS[source], st.sampled_from(edges))
    else:
        info = np.iinfo(source)
        edges = [2**bits + step for bits in (7, 8, 15, 16, 31, 32, 63) for step in (-1, 0)]
        kept = [edge for edge in edges if edge <= info.max]
        drawn_values = st.one_of(st.integers(int(info.min), int(info.max)), st.sampled_from([0, 1, *kept]))
    with np.errstate(over="ignore"):
        values = np.array(data.draw(st.lists(drawn_values, min_size=1, max_size=8)), source)
    expected = [whole(value, target) for value in values.tolist()]
    if None in expected:
        with pytest.raises(UncastableError) as caught:
            cast(values, target)
        assert caught.value.index == expected.index(None)
    else:
        assert cast(values, target).tolist() == expected


def whole(value: Any, target: str) -> Any:
    if target == "bool":
        return bool(value) if value in (0, 1) else None
    if value != value or abs(value) == float("inf"):
        return None
    info = np.iinfo(target)
    return int(value) if int(info.min) <= int(value) <= int(info.max) else None
