"""Columns that are encoded as serialized tf.train.Example: the bytes, and what TensorFlow parses from them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.columns.inputs import InputPlan, plan_inputs
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.errors import ColumnError, NullFeature, UnsupportedModel
from headrace.transforms.models.spec import ExampleFeature, ExampleFormat, TensorSpec
from headrace.transforms.nested_arrow import schema_of
from tests.support.example_models import example, sequence_example, sequence_specs, specs

FEATURES = (
    ExampleFeature("age", "int64", (), True),
    ExampleFeature("half", "float32", (), False),
    ExampleFeature("ids", "int64", (None,), False),
    ExampleFeature("pair", "float32", (2,), False),
    ExampleFeature("steps", "float32", (None,), False),
    ExampleFeature("tags", "string", (None,), False),
    ExampleFeature("twos", "int64", (None, 2), False),
    ExampleFeature("word", "string", (), False),
)
SCHEMA = schema_of(
    {
        "age": pa.int64(),
        "half": pa.float32(),
        "ids": pa.list_(pa.int64()),
        "pair": pa.list_(pa.float32(), 2),
        "steps": pa.large_list(pa.float32()),
        "tags": pa.list_(pa.string()),
        "twos": pa.list_(pa.list_(pa.int64(), 2)),
        "word": pa.binary(),
    }
)
INT64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-3, 300), st.sampled_from([127, 128, 2**31, 2**32, 2**56])
)
FLOAT = st.floats(width=32)
TEXT = st.text(max_size=5) | st.just("grün 🚀" * 30)


def fixed(values: st.SearchStrategy[Any], size: int) -> st.SearchStrategy[Any]:
    return st.lists(values, min_size=size, max_size=size)


ROW = st.fixed_dictionaries(
    {
        "age": INT64,
        "half": st.none() | FLOAT,
        "ids": st.none() | st.lists(INT64, max_size=4) | st.just(list(range(-9, 50))),
        "pair": st.none() | fixed(FLOAT, 2),
        "twos": st.none() | st.lists(fixed(INT64, 2), max_size=3),
        "steps": st.none() | st.lists(FLOAT, max_size=40),
        "tags": st.none() | st.lists(TEXT, max_size=3),
        "word": st.none() | st.binary(max_size=9) | st.just(b"\x80" * 300),
    }
)


def word(text: bytes) -> bytes:
    return example({"w": ("string", [text])})


def planned(schema: pa.Schema, features: tuple[ExampleFeature, ...] = FEATURES, **rules: Any) -> InputPlan:
    own = {"tf_example": (("e", ()),)} | rules
    spec = TensorSpec("e", "string", (None,), ExampleFormat(features))
    return plan_inputs(schema, {"e": spec}, {}, rules=ColumnRules(**own), where="f")


def encoded(table: pa.Table, features: tuple[ExampleFeature, ...] = FEATURES, **rules: Any) -> list[bytes]:
    plan = pickle.loads(pickle.dumps(planned(table.schema, features, **rules)))
    (batch,) = table.combine_chunks().to_batches()
    return list(plan.tensors(batch, where="f")["e"].numpy())


def as_example(row: dict[str, Any]) -> bytes:
    """Of a row of `SCHEMA`."""

    def values(one: ExampleFeature) -> Any:
        found = row[one.name]
        if found is None:
            return None
        flat = [value for pair in found for value in pair] if one.name == "twos" else found
        flat = flat if isinstance(flat, list) else [flat]
        return [value.encode() if isinstance(value, str) else value for value in flat]

    return example({one.name: (one.dtype, values(one)) for one in FEATURES})


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=6), skip=st.integers(0, 2))
def test_the_bytes_are_those_of_tensorflows_own_library(rows: list[dict[str, Any]], skip: int) -> None:
    """Of slices too, whose offsets do not begin at 0."""
    import tensorflow as tf

    table = pa.Table.from_pylist(rows[:1] * skip + rows, schema=SCHEMA).combine_chunks().slice(skip)
    (batch,) = table.to_batches()
    found = list(planned(SCHEMA).tensors(batch)["e"].numpy())
    wanted = [as_example(row) for row in rows]
    assert found == wanted
    parsed, own = tf.io.parse_example(found, specs()), tf.io.parse_example(wanted, specs())
    for name in specs():
        one, other = (x.to_tensor() if name == "steps" else x for x in (parsed[name], own[name]))
        one, other = (tf.sparse.to_dense(x) if name in ("ids", "tags") else x for x in (one, other))
        assert one.numpy().tobytes() == other.numpy().tobytes() or one.dtype == tf.string, name
        assert np.array_equal(one.numpy(), other.numpy(), equal_nan=one.dtype == tf.float32), name


def test_no_row_and_rows_without_a_value_are_examples_too() -> None:
    feature = (ExampleFeature("n", "int64", (None,), False),)
    assert encoded(pa.table({"n": pa.array([None, None], pa.list_(pa.int64()))}), feature) == [b"\x0a\x00"] * 2
    plan = planned(SCHEMA)
    empty = pa.RecordBatch.from_pylist([], schema=SCHEMA)
    assert plan.tensors(empty)["e"].shape == (0,)


def test_columns_convert_as_they_do_for_tensors() -> None:
    features = (ExampleFeature("n", "int64", (), True), ExampleFeature("x", "float32", (), True))
    table = pa.table({"n": pa.array([True, False]), "x": pa.array([0.1, 2.0])})
    with pytest.raises(ColumnError, match=r"say --cast x"):
        encoded(table, features)
    assert encoded(table, features, cast=("x",)) == [
        example({"n": ("int64", [1]), "x": ("float32", [0.1])}),
        example({"n": ("int64", [0]), "x": ("float32", [2.0])}),
    ]
    words = pa.table({"w": pa.array(["a", None, "b"]).dictionary_encode()})
    optional = (ExampleFeature("w", "string", (), False),)
    assert encoded(words, optional) == [word(b"a"), b"\x0a\x00", word(b"b")]
    assert encoded(words, optional, fill=(("w", "-"),))[1] == word(b"-")
    nested = pa.table({"s": pa.array([{"w": "a"}, None])})
    spec = TensorSpec("e", "string", (None,), ExampleFormat(optional))
    plan = plan_inputs(nested.schema, {"e": spec}, {"w": ("s.w",)}, rules=ColumnRules(tf_example=(("e", ()),)))
    assert list(plan.tensors(nested.to_batches()[0])["e"].numpy()) == [word(b"a"), b"\x0a\x00"]


@pytest.mark.parametrize(
    ("column", "feature", "row"),
    [
        (pa.array([1, 2, None, 3, None]), ExampleFeature("n", "int64", (), True), {2, 4}),
        (pa.array([[1], None, [2, None], [4]]), ExampleFeature("n", "int64", (None,), False), {2}),
        (pa.array([None, [1, 2], None, [2], [4, 5, 6]]), ExampleFeature("n", "int64", (2,), False), {3, 4}),
        (pa.array([[1, 2], [None, 2], None], pa.list_(pa.int64(), 2)), ExampleFeature("n", "int64", (2,), False), {1}),
    ],
)
def test_rows_that_the_parser_could_not_take_are_named(
    column: pa.Array[Any], feature: ExampleFeature, row: set[int]
) -> None:
    batch = pa.RecordBatch.from_arrays([column], ["n"])
    plan = planned(batch.schema, (feature,))
    with pytest.raises((NullFeature, ColumnError), match=f"in row {10 + min(row)}"):
        plan.tensors(batch, where="f", first_row=10)
    assert plan.unfit(batch, "f", 10).keys() == row


def test_rows_of_one_size_make_large_batches() -> None:
    numbers = tuple(ExampleFeature(f"n{i}", "int64", (), True) for i in range(3))
    assert planned(pa.schema([(f"n{i}", pa.int64()) for i in range(3)]), numbers).row_nbytes == 3 * (16 + 2 + 10)
    assert planned(SCHEMA).row_nbytes is None


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({"tf_example": (("e", ("agee",)),)}, r"names a feature 'agee'.*Did you mean 'age'"),
        ({"tf_example": (("e", ("half",)),)}, r"leaves out the feature 'age'.*no default"),
        ({"tf_example": (("x", ()),)}, r"--tf_example names 'x', but the model lacks that input"),
        ({"pad": (("ids", "0"),)}, r"--pad names the feature 'ids'"),
        (
            {"decode_image": (("pair", (1, 2)),)},
            r"--decode_image pair=1x2 cannot give|--decode_image names the feature",
        ),
        ({"fill": (("e", "x"),)}, r"--fill names 'e', but the model lacks that input"),
    ],
)
def test_mistakes_are_named(rules: dict[str, Any], text: str) -> None:
    with pytest.raises(ColumnError, match=text):
        planned(SCHEMA, **rules)


def test_a_feature_without_a_column_is_not_left_out_unasked() -> None:
    schema = pa.schema([field for field in SCHEMA if field.name != "half"])
    with pytest.raises(
        ColumnError,
        match=r"no column 'half' in f for the feature 'half' of 'e'.*name the features to encode in --tf_example",
    ):
        planned(schema)
    plan = planned(schema, tf_example=(("e", ("age", "ids")),))
    assert plan.columns == ("age", "ids")


def test_what_cannot_be_encoded_is_refused() -> None:
    inputs = {"e": TensorSpec("e", "string", (None,), ExampleFormat((), "tf.train.SequenceExample", "computed keys"))}
    with pytest.raises(UnsupportedModel, match=r"SequenceExample.*computed keys.*--preprocess"):
        plan_inputs(SCHEMA, inputs, {}, rules=ColumnRules(tf_example=(("e", ()),)))
    plain = {"e": TensorSpec("e", "string", (None,))}
    with pytest.raises(ColumnError, match="which no parser of the model takes"):
        plan_inputs(SCHEMA, plain, {}, rules=ColumnRules(tf_example=(("e", ()),)))
    spec = {"e": TensorSpec("e", "string", (None,), ExampleFormat(FEATURES))}
    with pytest.raises(ColumnError, match=r"--feature and --tf_example both name 'e'"):
        plan_inputs(SCHEMA, spec, {"e": ("word",)}, rules=ColumnRules(tf_example=(("e", ()),)))


def test_a_key_that_is_also_an_input_is_named_with_its_input() -> None:
    inputs = {
        "e": TensorSpec("e", "string", (None,), ExampleFormat((ExampleFeature("n", "int64", (), True),))),
        "n": TensorSpec("n", "int64", (None,)),
    }
    batch = pa.RecordBatch.from_pydict({"n": [1, 2], "m": [3, 4]})
    plan = plan_inputs(batch.schema, inputs, {"e.n": ("m",)}, rules=ColumnRules(tf_example=(("e", ()),)))
    assert plan.mapping == {"e.n": ("m",), "n": ("n",)}
    found = plan.tensors(batch)
    assert list(found["e"].numpy()) == [example({"n": ("int64", [3])}), example({"n": ("int64", [4])})]
    assert found["n"].numpy().tolist() == [1, 2]


SEQUENCE_FEATURES = (
    ExampleFeature("clicks", "int64", (None,), False, steps=True),
    ExampleFeature("names", "string", (None, None), False, steps=True),
    ExampleFeature("pairs", "float32", (None, 2), True, steps=True),
    ExampleFeature("spans", "int64", (None, None), False, steps=True),
    ExampleFeature("tags", "string", (None,), False),
    ExampleFeature("user", "int64", (), True),
)
SEQUENCE_SCHEMA = schema_of(
    {
        "clicks": pa.list_(pa.int64()),
        "names": pa.list_(pa.list_(pa.string())),
        "pairs": pa.large_list(pa.list_(pa.float32(), 2)),
        "spans": pa.list_(pa.large_list(pa.int64())),
        "tags": pa.list_(pa.string()),
        "user": pa.int64(),
    }
)
SEQUENCE_ROW = st.fixed_dictionaries(
    {
        "clicks": st.none() | st.lists(INT64, max_size=3) | st.just(list(range(200))),
        "names": st.none() | st.lists(st.lists(TEXT, max_size=2), max_size=3),
        "pairs": st.lists(fixed(FLOAT, 2), max_size=3),
        "spans": st.none() | st.lists(st.lists(INT64, max_size=3), max_size=3),
        "tags": st.none() | st.lists(TEXT, max_size=2),
        "user": INT64,
    }
)


def planned_sequences(schema: pa.Schema, features: tuple[ExampleFeature, ...] = SEQUENCE_FEATURES) -> InputPlan:
    spec = TensorSpec("e", "string", (None,), ExampleFormat(features, "tf.train.SequenceExample"))
    return plan_inputs(schema, {"e": spec}, {}, rules=ColumnRules(tf_example=(("e", ()),)), where="f")


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(SEQUENCE_ROW, min_size=1, max_size=5), skip=st.integers(0, 2))
def test_sequences_are_those_of_tensorflows_own_library(rows: list[dict[str, Any]], skip: int) -> None:
    import tensorflow as tf

    table = pa.Table.from_pylist(rows[:1] * skip + rows, schema=SEQUENCE_SCHEMA).combine_chunks().slice(skip)
    (batch,) = table.to_batches()
    found = list(pickle.loads(pickle.dumps(planned_sequences(SEQUENCE_SCHEMA))).tensors(batch)["e"].numpy())
    wanted = [sequence_example(row, SEQUENCE_FEATURES) for row in rows]
    assert found == wanted
    context, lists = sequence_specs()
    parsed, own = (tf.io.parse_sequence_example(of, context, lists)[:2] for of in (found, wanted))
    flat = [tf.nest.flatten(some, expand_composites=True) for some in (parsed, own)]
    for one, other in zip(*flat, strict=True):
        assert np.array_equal(one.numpy(), other.numpy(), equal_nan=one.dtype == tf.float32)


def test_a_feature_list_needs_lists_as_deep_as_its_own() -> None:
    for shape in ((None,), (None, None), (None, 2)):
        steps = (ExampleFeature("s", "int64", shape, False, steps=True),)
        kinds: list[Any] = [pa.int64(), pa.list_(pa.int64()), pa.list_(pa.list_(pa.int64()))]
        deep = len(shape)
        planned_sequences(pa.schema([("s", kinds[deep])]), steps)
        with pytest.raises(ColumnError, match=r"Column 's' in f does not fit tensor 's'"):
            planned_sequences(pa.schema([("s", kinds[deep - 1])]), steps)


def test_rows_that_a_sequence_cannot_hold_are_named() -> None:
    pairs = (ExampleFeature("pairs", "float32", (None, 2), True, steps=True),)
    lists: Any = [[[1.0, 2.0]], None, [[3.0, None]], [[4.0, 5.0], [6.0, 7.0, 8.0]], [None]]
    batch = pa.RecordBatch.from_arrays([pa.array(lists, pa.list_(pa.list_(pa.float32())))], ["pairs"])
    plan = planned_sequences(batch.schema, pairs)
    with pytest.raises(NullFeature, match="in row 11"):
        plan.tensors(batch, where="f", first_row=10)
    assert plan.unfit(batch, "f", 10).keys() == {1, 2, 3, 4}
