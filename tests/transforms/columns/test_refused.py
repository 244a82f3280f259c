"""Every kind of column against every dtype of a tensor: what is refused is refused by the plan, what is planned works."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.transforms.columns.inputs import ColumnRules, plan_inputs, plan_outputs
from headrace.transforms.errors import ColumnError, UnsupportedModel
from headrace.transforms.models.spec import TensorSpec
from tests.support.loose import loose

FLOATS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
INTEGERS = [f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u")]
DTYPES = [
    "bool",
    *INTEGERS,
    *FLOATS,
    "string",
    "complex64",
    "complex128",
    "float8_e5m2",
    "float8_e4m3fn",
    "int4",
    "uint4",
    "qint8",
    "quint16",
    "resource",
    "variant",
]
SCALARS: dict[str, tuple[pa.DataType, Any]] = {
    "bool": (pa.bool_(), True),
    **{name: (pa.type_for_alias(loose(name)), 1) for name in INTEGERS},
    **{name: (pa.type_for_alias(loose(name)), 1) for name in ("float16", "float32", "float64")},
    "string": (pa.string(), "1"),
    "large_string": (pa.large_string(), "1"),
    "string_view": (pa.string_view(), "1"),
    "binary": (pa.binary(), b"1"),
    "large_binary": (pa.large_binary(), b"1"),
    "binary_view": (pa.binary_view(), b"1"),
    "binary(1)": (pa.binary(1), b"1"),
    "timestamp": (pa.timestamp("us"), 1),
    "zoned": (pa.timestamp("ns", "UTC"), 1),
    "date32": (pa.date32(), 1),
    "date64": (pa.date64(), 0),
    "time32": (pa.time32("ms"), 1),
    "time64": (pa.time64("ns"), 1),
    "duration": (pa.duration("s"), 1),
    "decimal32": (pa.decimal32(3, 1), Decimal(1)),
    "decimal128": (pa.decimal128(3, 1), Decimal(1)),
    "decimal256": (pa.decimal256(3, 1), Decimal(1)),
    "dictionary": (pa.dictionary(pa.int32(), pa.int16()), 1),
    "null": (pa.null(), None),
    "interval": (pa.month_day_nano_interval(), (0, 0, 0)),
}
# The number that a column is, where it is another than its own type.
READS_AS = {
    "timestamp": "int64",
    "zoned": "int64",
    "date32": "int32",
    "date64": "int64",
    "time32": "int32",
    "time64": "int64",
    "duration": "int64",
    "dictionary": "int16",
}
BYTES = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view", "binary(1)"}


def may(kind: str, dtype: str, cast: bool) -> bool:
    """Said once more, from what the types can hold."""
    if kind in BYTES or dtype == "string":
        return kind in BYTES and dtype == "string"
    if kind.startswith("decimal"):
        return cast and dtype in FLOATS
    own = READS_AS.get(kind, kind)
    if own in ("null", "interval") or dtype not in ("bool", *INTEGERS, *FLOATS):
        return False
    if cast or own == dtype or own == "bool":
        return True
    if own in FLOATS:
        return dtype in FLOATS and FLOATS[own] <= FLOATS[dtype] and dtype != "bfloat16"
    if dtype in FLOATS:
        return int(np.iinfo(own).max).bit_length() <= FLOATS[dtype]
    return dtype != "bool" and np.iinfo(dtype).min <= np.iinfo(own).min and np.iinfo(own).max <= np.iinfo(dtype).max


def wrapped(kind: str, form: str) -> pa.Array[Any]:
    """Two rows of the value, in lists or structs."""
    plain, value = SCALARS[kind]
    array = pa.array([value] * 2, pa.int16() if kind == "dictionary" else plain)
    array = array.dictionary_encode() if kind == "dictionary" else array
    offsets = pa.array([0, 1, 2], pa.int32())
    if form == "list":
        return pa.ListArray.from_arrays(offsets, array)
    if form == "fixed":
        return pa.FixedSizeListArray.from_arrays(array, 1)
    if form == "member":
        return pa.StructArray.from_arrays([pa.FixedSizeListArray.from_arrays(array, 1)], ["m"])
    return array


@pytest.mark.parametrize("form", ["scalar", "list", "fixed", "member"])
@pytest.mark.parametrize("kind", SCALARS)
def test_a_plan_is_made_exactly_for_what_can_be_read(kind: str, form: str) -> None:
    batch = pa.record_batch({"x": wrapped(kind, form)})
    feature = "x.m" if form == "member" else "x"
    for dtype in DTYPES:
        for cast in (False, True):
            inputs = {"x": TensorSpec("x", dtype, (None, 1))}
            rules = ColumnRules(cast=("x",) if cast else ())
            try:
                plan = plan_inputs(batch.schema, inputs, {"x": (feature,)}, rules=rules)
            except ColumnError:
                assert not may(kind, dtype, cast), f"{kind} is refused for {dtype}, cast {cast}"
                continue
            assert may(kind, dtype, cast), f"{kind} is taken for {dtype}, cast {cast}"
            tensor = plan.tensors(batch)["x"]
            assert (tensor.dtype.name, tuple(tensor.shape)) == (dtype, (2, 1))
            assert plan.tensors(batch.slice(1, 0))["x"].shape == (0, 1)


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("a", pa.int32())]),
        pa.map_(pa.string(), pa.int32()),
        pa.list_(pa.map_(pa.string(), pa.int32())),
        pa.list_view(pa.int32()),
        pa.large_list_view(pa.int32()),
        pa.run_end_encoded(pa.int32(), pa.int32()),
        pa.dense_union([pa.field("a", pa.int32())]),
        pa.dictionary(pa.int8(), loose(pa.list_(pa.int32()))),
        pa.fixed_shape_tensor(pa.int32(), [2, 3], permutation=[1, 0]),
        pa.uuid(),
    ],
    ids=str,
)
def test_kinds_that_no_tensor_holds_are_refused_for_every_dtype(kind: pa.DataType) -> None:
    for dtype in DTYPES:
        with pytest.raises(ColumnError, match="Column 'x' does not fit tensor 'x'"):
            plan_inputs(
                pa.schema([("x", kind)]), {"x": TensorSpec("x", dtype, None)}, {}, rules=ColumnRules(cast=("x",))
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prediction_type", ["auto", "list", "tensor"])
@pytest.mark.parametrize("inner", [(), (2,), (None,), (2, 3), (2, None)], ids=str)
def test_an_output_is_a_column_or_refused_with_its_reason(dtype: str, prediction_type: str, inner: Any) -> None:
    import tensorflow as tf

    outputs = {"y": TensorSpec("y", dtype, (None, *inner))}
    rules = ColumnRules(prediction_type=prediction_type)
    if dtype not in ("bool", *INTEGERS, *FLOATS, "string"):
        with pytest.raises(UnsupportedModel, match="output 'y' has a dtype that Arrow cannot hold"):
            plan_outputs(outputs, {}, rules=rules)
        return
    plan = plan_outputs(outputs, {}, rules=rules)
    least = {"auto": 2, "list": 9, "tensor": 1}[prediction_type]
    is_tensor = isinstance(plan.fields[0].type, pa.FixedShapeTensorType)
    assert is_tensor == (len(inner) >= least and None not in inner and dtype not in ("bool", "string"))
    shape = (4, *(5 if dim is None else dim for dim in inner))
    values = np.arange(np.prod(shape)).reshape(shape) % 2
    result = tf.strings.as_string(values) if dtype == "string" else tf.cast(values, dtype)
    (column,) = plan.columns({"y": result}, 4)
    column.validate(full=True)
    assert column.type == plan.fields[0].type
    expected = np.char.encode(values.astype(str)) if dtype == "string" else values
    assert (
        loose(column).to_numpy_ndarray() if is_tensor else np.array(column.to_pylist())
    ).tolist() == expected.tolist()


def test_a_prediction_type_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(ColumnError, match=r"'tensors'.*one of auto, list, tensor.*Did you mean 'tensor'"):
        plan_outputs({}, {}, rules=ColumnRules(prediction_type="tensors"))
