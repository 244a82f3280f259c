"""What --fill, --pad and --cast allow, and what is refused with them still."""

from __future__ import annotations

import pickle
import re
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.transforms.columns.casts import cast, casts_exactly, numpy_dtype
from headrace.transforms.columns.inputs import ColumnRules, plan_inputs
from headrace.transforms.columns.rules import tensor_rules
from headrace.transforms.errors import ColumnError, NullFeature
from headrace.transforms.models.spec import TensorSpec
from headrace.transforms.nested_arrow import schema_of
from tests.support.loose import loose

PAD: dict[str, Any] = {"pad": (("x", "-1"),)}
FILL: dict[str, Any] = {"fill": (("x", "-2"),)}
CAST: dict[str, Any] = {"cast": ("x",)}


def read(column: pa.Array[Any], dtype: str, *inner: int | None, **rules: Any) -> Any:
    batch = pa.record_batch({"x": column})
    plan = plan_inputs(batch.schema, {"x": TensorSpec("x", dtype, (None, *inner))}, {}, rules=ColumnRules(**rules))
    tensor = pickle.loads(pickle.dumps(plan)).tensors(batch, where="f", first_row=100)["x"]
    assert tensor.dtype.name == dtype
    return tensor.numpy().tolist()


def refused(said: str, error: type[Exception] = ColumnError) -> Any:
    return pytest.raises(error, match=re.escape(said))


# Times and decimals

NOON = datetime(1970, 1, 2, 12)
BERLIN = datetime(1970, 1, 2, 13, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("value", "kind", "dtype", "number"),
    [
        (NOON, pa.timestamp("s"), "int64", 129600),
        (NOON, pa.timestamp("us"), "int64", 129600 * 10**6),
        (BERLIN, pa.timestamp("ms", "Europe/Berlin"), "int64", 129600 * 10**3),
        (timedelta(seconds=-2), pa.duration("ns"), "int64", -2 * 10**9),
        (date(1970, 1, 2), pa.date32(), "int32", 1),
        (date(1970, 1, 2), pa.date32(), "int64", 1),
        (date(1970, 1, 2), pa.date64(), "int64", 86_400_000),
        (time(0, 0, 3), pa.time32("ms"), "int32", 3000),
        (time(0, 0, 3), pa.time64("us"), "int64", 3 * 10**6),
    ],
    ids=str,
)
def test_a_time_is_the_integer_that_arrow_keeps(value: Any, kind: pa.DataType, dtype: str, number: int) -> None:
    column = pa.array([value, None, value], kind)
    assert read(column.slice(2), dtype) == [number]
    assert read(column, dtype, fill=(("x", "7"),)) == [number, 7, number]
    assert read(column.slice(2).dictionary_encode(), dtype) == [number]
    with refused("say --cast x."):
        read(column.slice(2), "float32")
    assert read(column.slice(2), "float64", **CAST) == [number]


def test_times_of_another_unit_than_planned_are_refused() -> None:
    plan = plan_inputs(pa.schema([("x", pa.timestamp("us"))]), {"x": TensorSpec("x", "int64", (None,))}, {})
    with refused("has another type than the job was planned with. Expected: timestamp[us]. Found: timestamp[ms]."):
        plan.tensors(pa.record_batch({"x": pa.array([1], pa.timestamp("ms"))}))
    zoned = pa.record_batch({"x": pa.array([1], pa.timestamp("us", "UTC"))})
    assert plan.tensors(zoned)["x"].numpy().tolist() == [1]


def test_a_time_is_not_taken_for_the_model_s_only_input_unasked() -> None:
    schema = schema_of({"when": pa.timestamp("us"), "count": pa.int64()})
    inputs = {"x": TensorSpec("x", "int64", (None,))}
    assert plan_inputs(schema, inputs, {}).columns == ("count",)
    assert plan_inputs(schema, inputs, {"x": ("when",)}).columns == ("when",)


@pytest.mark.parametrize(
    "kind", [pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal128(20, 2), pa.decimal256(40, 2)], ids=str
)
def test_a_decimal_becomes_a_fraction_where_a_cast_is_allowed(kind: pa.DataType) -> None:
    column = pa.array([Decimal("9.99"), Decimal("1.25"), None, Decimal("-0.10")], kind).slice(1)
    for dtype in ("float64", "float32"):
        with refused("say --cast x."):
            read(column, dtype)
        expected = np.array([1.25, -2, -0.1], dtype).tolist()
        assert read(column, dtype, **CAST, **FILL) == expected
    with refused("A decimal becomes a fraction only"):
        read(column, "int64", **CAST)


@pytest.mark.parametrize("scale", [1, 2, 4, 9])
def test_a_decimal_is_the_nearest_fraction(scale: int) -> None:
    digits = np.random.default_rng(1).integers(-(10**8), 10**8, 2_000).tolist()
    values = [Decimal(n).scaleb(-scale) for n in digits]
    column = pa.array(values, pa.decimal128(20, scale))
    for one in (column, column.dictionary_encode()):
        assert read(one, "float64", **CAST) == [float(value) for value in values]


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int32, np.float64])
def test_a_cast_to_bfloat16_is_to_the_nearest(kind: Any) -> None:
    """Not to the nearest of what lies nearest in float32: next to the middle between two, that is another."""
    noise = np.random.default_rng(3)
    middles = (2 * noise.integers(128, 256, 500) + 1) * 2 ** noise.integers(0, 20 if kind == np.int32 else 50, 500)
    values = np.concatenate([middles + step for step in (-1, 0, 1)]).astype(kind)
    values = np.concatenate([values, -values]) if kind != np.uint64 else values
    found = np.array(cast(values, "bfloat16"), np.float64)
    bits = np.array(found, np.float32).view(np.uint32)
    for step in (-(1 << 16), 1 << 16):
        neighbours = (bits + np.int64(step)).astype(np.uint32).view(np.float32).astype(np.float64).tolist()
        for value, nearest, other in zip(values.tolist(), found.tolist(), neighbours, strict=True):
            assert abs(Fraction(value) - Fraction(nearest)) <= abs(Fraction(value) - Fraction(other)), value


# Casts that may change a value


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "cast"),
    [
        ([1, -(2**31), 2**31 - 1], pa.int64(), "int32", [1, -(2**31), 2**31 - 1]),
        ([0, 127], pa.uint64(), "int8", [0, 127]),
        ([-1.9, 2.9, -0.5, -128.9, 127.9], pa.float64(), "int8", [-1, 2, 0, -128, 127]),
        ([-(2.0**31)], pa.float32(), "int32", [-(2**31)]),
        ([-(2.0**63)], pa.float64(), "int64", [-(2**63)]),
        ([2**24 + 1, 2**62 + 1], pa.int64(), "float32", [2.0**24, 2.0**62]),
        ([0.1, float("inf"), float("-inf"), 1e-60], pa.float64(), "float32", [np.float32(0.1), np.inf, -np.inf, 0.0]),
        ([65504, 65519], pa.int32(), "float16", [65504, 65504]),
        ([1.2, 3e38], pa.float32(), "bfloat16", [1.203125, float.fromhex("0x1.c4p+127")]),
        ([1, 2**63], pa.uint64(), "bfloat16", [1, 2.0**63]),
        ([0, 1, 1], pa.int16(), "bool", [False, True, True]),
        ([0.0, -0.0, 1.0], pa.float32(), "bool", [False, False, True]),
        ([True, False], pa.bool_(), "uint8", [1, 0]),
    ],
)
def test_a_cast_rounds_or_cuts_where_it_is_allowed(values: Any, kind: Any, dtype: str, cast: Any) -> None:
    column = pa.array([*values[:1], *values], kind).slice(1)
    assert read(column, dtype, **CAST) == cast
    if kind != pa.bool_():
        with refused("Values could change, so nothing is cast"):
            read(column, dtype)


@pytest.mark.parametrize(
    ("bad", "kind", "dtype", "found"),
    [
        (2**31, pa.int64(), "int32", "2147483648"),
        (-1, pa.int8(), "uint64", "-1"),
        (2**63, pa.uint64(), "int64", "9223372036854775808"),
        (2.0**31, pa.float32(), "int32", "2.1474836e+09"),
        (2.0**63, pa.float64(), "int64", "9.2233720368"),
        (float("nan"), pa.float64(), "int64", "nan"),
        (float("-inf"), pa.float16(), "int64", "-inf"),
        (1e39, pa.float64(), "float32", "1e+39"),
        (65520, pa.int32(), "float16", "65520"),
        (3.4e38, pa.float32(), "bfloat16", "3.4"),
        (2, pa.uint8(), "bool", "2"),
        (float("nan"), pa.float32(), "bool", "nan"),
    ],
)
def test_what_has_no_counterpart_names_its_row(bad: Any, kind: pa.DataType, dtype: str, found: str) -> None:
    flat = pa.array([1, 0, 1, bad, 1, bad], kind)
    said = re.escape(f"that --cast cannot turn into {dtype}") + ".*Found: " + re.escape(found)
    with pytest.raises(ColumnError, match=f"has a value in row 102 {said}"):
        read(flat.slice(1), dtype, **CAST)
    with pytest.raises(ColumnError, match=f"has a value in row 101 {said}"):
        read(pa.FixedSizeListArray.from_arrays(flat, 2), dtype, 2, **CAST)


def test_what_stands_under_a_null_is_not_cast() -> None:
    under = pa.Array.from_buffers(
        pa.float64(), 3, [pa.py_buffer(b"\x05"), pa.py_buffer(loose(np.array([1, np.nan, 3])))], null_count=1
    )
    assert read(under, "int32", **CAST, **FILL) == [1, -2, 3]


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float32", "float64", "int8", "uint8", "int32", "uint64"])
@pytest.mark.parametrize("source", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_a_cast_is_exact_where_the_outermost_numbers_and_their_neighbours_stay(source: str, target: str) -> None:
    bounds = np.iinfo(source)
    values = [int(bounds.min), int(bounds.min) + 1, int(bounds.max) - 1, int(bounds.max)]
    with np.errstate(all="ignore"):
        kept = [
            int(value) if np.isfinite(value) else None for value in np.array(values, source).astype(numpy_dtype(target))
        ]
    assert casts_exactly(source, target) == (kept == values)


def test_columns_of_any_number_are_packed_where_a_cast_is_allowed() -> None:
    batch = pa.record_batch({"a": [1.5, None], "b": [2**24 + 1, 2], "c": pa.array([1, None], pa.timestamp("s"))})
    inputs, features = {"x": TensorSpec("x", "float32", (None, 3))}, {"x": ("a", "b", "c")}
    plan = plan_inputs(batch.schema, inputs, features, rules=ColumnRules(**CAST, **FILL))
    assert plan.tensors(batch)["x"].numpy().tolist() == [[1.5, 2**24, 1], [-2, 2, -2]]
    half = {"x": TensorSpec("x", "bfloat16", (None, 3))}
    plan = plan_inputs(batch.schema, half, features, rules=ColumnRules(**CAST, **FILL))
    assert plan.tensors(batch)["x"].numpy().astype("float32").tolist() == [[1.5, 2**24, 1], [-2, 2, -2]]


@pytest.mark.parametrize("kind", ["int8", "uint16", "int64", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["int16", "uint64", "bfloat16", "float16", "float32", "float64", "bool"])
def test_columns_of_one_type_are_packed_as_each_alone(kind: str, dtype: str) -> None:
    values = {"c": [1, 0, 1, 1, 0], "a": [0, 1, 1, 0, 1], "b": [1, 1, 0, 0, 1]}
    columns = {name: pa.array(np.array(column, kind)) for name, column in values.items()}
    batch = pa.record_batch(columns).slice(1, 3)

    def packed(*names: str) -> Any:
        inputs = {"x": TensorSpec("x", dtype, (None, len(names)))}
        plan = pickle.loads(pickle.dumps(plan_inputs(batch.schema, inputs, {"x": names}, rules=ColumnRules(**CAST))))
        tensor = plan.tensors(batch)["x"]
        assert tensor.dtype.name == dtype
        return tensor.numpy().astype("float64").tolist()

    assert packed("a", "b", "c", "a") == [[1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 1, 0]]
    assert packed("a", "a") == [[one, one] for (one,) in packed("a")]


def test_what_columns_of_one_type_cannot_give_is_said_of_the_column() -> None:
    schema = pa.schema({"a": pa.float64(), "b": pa.float64()})
    inputs, features = {"x": TensorSpec("x", "int8", (None, 2))}, {"x": ("a", "b")}
    plan = plan_inputs(schema, inputs, features, rules=ColumnRules(**CAST))
    assert plan.tensors(pa.record_batch({"a": [1.5, 2.0], "b": [-1.0, 3.9]}))["x"].numpy().tolist() == [[1, -1], [2, 3]]
    with refused("Column 'b' of file has a value in row 8 that --cast cannot turn into int8"):
        plan.tensors(pa.record_batch({"a": [1.5, 2.0], "b": [-1.0, 300.0]}), where="file", first_row=7)
    with refused("Column 'b' of file is null in row 7", NullFeature):
        plan.tensors(pa.record_batch({"a": [1.5, 2.0], "b": [None, 1.0]}), where="file", first_row=7)
    with refused("Column 'b' of file has another type than the job was planned with"):
        plan.tensors(pa.record_batch({"a": [1.5], "b": pa.array([1], pa.int8())}), where="file", first_row=7)
    with refused("Column 'a' of file has another type than the job was planned with"):
        plan.tensors(
            pa.record_batch({"a": pa.array([1], pa.int8()), "b": pa.array([1], pa.int8())}), where="file", first_row=7
        )


# Nulls


@pytest.mark.parametrize(
    ("column", "dtype", "fill", "filled"),
    [
        (pa.array([1.5, None, None]), "float64", "nan", [1.5, np.nan, np.nan]),
        (pa.array([1, None], pa.int16()), "float32", "0.5", [1.0, 0.5]),
        (pa.array([True, None]), "bool", "true", [True, True]),
        (pa.array(["é", None, ""]), "string", "ü", ["é".encode(), "ü".encode(), b""]),
        (pa.array(["a", None]), "string", "\udcff", [b"a", b"\xff"]),
        (pa.array([b"\xff", None], pa.large_binary()), "string", "", [b"\xff", b""]),
        (pa.array(["a", None], pa.string_view()), "string", "-", [b"a", b"-"]),
        (pa.array(["a", None]).dictionary_encode(), "string", "-", [b"a", b"-"]),
        (pa.array([None, None], pa.float32()), "float32", "3", [3.0, 3.0]),
    ],
    ids=str,
)
def test_nulls_are_filled_with_a_value_of_the_tensor(column: pa.Array[Any], dtype: str, fill: str, filled: Any) -> None:
    assert str(read(column, dtype, fill=(("x", fill),))) == str(filled)
    with refused("is null in row 10", NullFeature):
        read(column, dtype)


def test_a_null_fixed_list_is_one_of_nulls() -> None:
    pairs = pa.array([[1, 2], None, [None, 4]], pa.list_(pa.int32(), 2))
    assert read(pairs, "int32", 2, **FILL) == [[1, 2], [-2, -2], [-2, 4]]
    assert read(pairs.slice(1), "int32", 2, **FILL) == [[-2, -2], [-2, 4]]
    deep = pa.array([[[1, 2]], None, [None]], pa.list_(pa.list_(pa.int32(), 2), 1))
    assert read(deep, "int32", 1, 2, **FILL) == [[[1, 2]], [[-2, -2]], [[-2, -2]]]


def test_a_null_list_is_empty_only_where_it_is_padded_and_filled() -> None:
    lists = pa.array([[1], None, [2, None]])
    with refused("is null in row 101", NullFeature):
        read(lists, "int64", None, **PAD)
    with refused("Say --pad x=VALUE too: then a null list counts as an empty one.", NullFeature):
        read(lists, "int64", None, **FILL)
    assert read(lists, "int64", None, **FILL, **PAD) == [[1, -1], [-1, -1], [2, -2]]


def test_what_stands_under_a_null_list_is_nowhere_in_the_tensor() -> None:
    offsets, mask = pa.array([0, 2, 5, 6, 8], pa.int32()), pa.array([False, True, False, True])
    for values in (pa.array(range(8)), pa.array([str(n) for n in range(8)])):
        lists = pa.ListArray.from_arrays(offsets, values, mask=mask)
        dtype, pad = ("int64", -1) if values.type == pa.int64() else ("string", b"-1")
        first, last = loose(values.take([0, 1]).to_pylist()), loose(values[5].as_py())
        if dtype == "string":
            first, last = [one.encode() for one in first], last.encode()
        assert read(lists, dtype, None, **FILL, **PAD) == [first, [pad, pad], [last, pad], [pad, pad]]
        assert read(lists.slice(1), dtype, 2, **FILL, **PAD) == [[pad, pad], [last, pad], [pad, pad]]
        assert read(lists.slice(1, 1), dtype, None, **FILL, **PAD) == [[]]


# Padding


def test_lists_are_padded_to_the_longest_of_the_batch_or_to_the_dimension_of_the_model() -> None:
    lists = pa.array([[9] * 9, [1], [], [2, 3]]).slice(1)
    assert read(lists, "int64", None, **PAD) == [[1, -1], [-1, -1], [2, 3]]
    assert read(lists, "int64", 3, **PAD) == [[1, -1, -1], [-1, -1, -1], [2, 3, -1]]
    with refused("list of another length in row 102. Expected: at most 1 values. Found: 2 values. Shorten"):
        read(lists, "int64", 1, **PAD)
    with refused("list of another length in row 101. Expected: 1 values, as in the first list. Found: 0 values."):
        read(lists, "int64", None)
    assert read(lists.slice(3), "int64", None, **PAD) == []


def test_one_long_list_does_not_take_all_memory() -> None:
    lists = pa.ListArray.from_arrays(pa.array([0, *range(1, 1025), 2**20], pa.int32()), pa.array(np.zeros(2**20, "b")))
    with refused("in row 1124. Expected: at most 261888 values, since 1025 lists of the batch are padded alike."):
        read(lists, "int8", None, **PAD)
    assert len(read(lists.slice(1024), "int8", None, **PAD)[0]) == 2**20 - 1024


def test_sequences_are_padded_at_every_level_that_varies() -> None:
    boxes = pa.array([[[1, 2]], [], [[3, 4], [5, 6]]], pa.list_(pa.list_(pa.float32(), 2)))
    assert read(boxes, "float32", None, 2, **PAD) == [[[1, 2], [-1, -1]], [[-1, -1]] * 2, [[3, 4], [5, 6]]]
    words = pa.array([[["a"], ["bé", ""]], [], [[], ["c", "d", "e"]]])
    assert read(words, "string", 2, None, pad=(("x", "_"),)) == [
        [[b"a", b"_", b"_"], ["bé".encode(), b"", b"_"]],
        [[b"_"] * 3] * 2,
        [[b"_"] * 3, [b"c", b"d", b"e"]],
    ]


def test_lists_that_need_no_padding_are_lent() -> None:
    memory = pa.py_buffer(pa.allocate_buffer(64 * 8))
    leaf = pa.Array.from_buffers(pa.float32(), 128, [None, memory])
    batch = pa.record_batch({"x": pa.ListArray.from_arrays(pa.array(range(0, 129, 16), pa.int32()), leaf)})
    plan = plan_inputs(batch.schema, {"x": TensorSpec("x", "float32", (None, None))}, {}, rules=ColumnRules(**PAD))
    assert np.asarray(memoryview(plan.tensors(batch)["x"])).ctypes.data == memory.address


# Rules that do not fit the model, refused before any data


@pytest.mark.parametrize(
    ("rules", "dtype", "said"),
    [
        ({"pad": (("pixls", "0"),)}, "float32", "--pad names 'pixls', but the model lacks that input. Found: inputs pixels"),
        ({"pad": (("pixls", "0"),)}, "float32", "Did you mean 'pixels'?"),
        ({"fill": (("y", "0"),)}, "float32", "--fill names 'y', but the model lacks that input"),
        ({"cast": ("y",)}, "float32", "--cast names 'y', but the model lacks that input"),
        ({"decode_image": (("y", (2, 2)),)}, "float32", "--decode_image names 'y', but the model lacks that input"),
        ({"pad": (("pixels", "0"), ("pixels", "1"))}, "float32", "--pad names tensor 'pixels' twice"),
        ({"fill": (("pixels", "x"),)}, "float32", "--fill pixels=x gives no value of tensor 'pixels'"),
        ({"fill": (("pixels", "x"),)}, "float32", "Expected: a value of float32 [None, 2]. Found: 'x'"),
        ({"fill": (("pixels", "1e39"),)}, "float32", "gives no value"),
        ({"fill": (("pixels", "70000"),)}, "float16", "gives no value"),
        ({"fill": (("pixels", "1.5"),)}, "int8", "Expected: a value of int8 [None, 2] (-128 to 127)"),
        ({"pad": (("pixels", "256"),)}, "uint8", "(0 to 255)"),
        ({"pad": (("pixels", "yes"),)}, "bool", "(true or false)"),
        ({"fill": (("pixels", "0"),)}, "complex64", "gives no value"),
    ],
)  # fmt: skip
def test_a_rule_that_does_not_fit_the_model_is_refused(rules: Any, dtype: str, said: str) -> None:
    inputs = {"pixels": TensorSpec("pixels", dtype, (None, 2))}
    with refused(said):
        plan_inputs(pa.schema([("pixels", pa.list_(pa.float32(), 2))]), inputs, {}, rules=ColumnRules(**rules))


def test_a_star_casts_every_input_but_images() -> None:
    inputs = {
        name: TensorSpec(name, dtype, (None, *inner))
        for name, dtype, inner in [("a", "float32", ()), ("b", "int64", ()), ("photo", "float32", (2, 2, 3))]
    }
    rules = ColumnRules(cast=("b", "*"), decode_image=(("photo", (2, 2)),))
    assert {name: rule.cast for name, rule in tensor_rules(rules, inputs).items()} == {
        "a": True,
        "b": True,
        "photo": False,
    }
    with pytest.raises(ColumnError, match="both name tensor 'photo'"):
        tensor_rules(ColumnRules(cast=("*", "photo"), decode_image=rules.decode_image), inputs)
    starred = {"*": TensorSpec("*", "int64", (None,)), "b": inputs["b"]}  # a name like any other
    assert [rule.cast for rule in tensor_rules(ColumnRules(cast=("*",)), starred).values()] == [True, False]


def test_rules_are_values() -> None:
    rules = ColumnRules(pad=(("x", "0"),), decode_image=(("y", (2, 3)),))
    assert pickle.loads(pickle.dumps(rules)) == rules
    assert hash(rules) == hash(pickle.loads(pickle.dumps(rules)))
