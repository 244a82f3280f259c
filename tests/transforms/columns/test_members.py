"""Members of structs as features, by their dotted path."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pyarrow as pa
import pytest

from headrace.transforms.columns.inputs import ColumnRules, plan_inputs
from headrace.transforms.errors import ColumnError, NullFeature
from headrace.transforms.models.spec import TensorSpec

PAYLOAD = pa.struct(
    [
        ("pixels", pa.list_(pa.float32(), 2)),
        ("meta", pa.struct([("size", pa.int32()), ("name.raw", pa.string())])),
        ("words", pa.list_(pa.struct([("id", pa.int16())]))),
    ]
)
ROWS = [
    {"pixels": [row, row + 0.5], "meta": {"size": row, "name.raw": f"é{row}"}, "words": [{"id": row}, {"id": -row}]}
    for row in range(5)
]
BATCH = pa.record_batch({"payload": pa.array(ROWS, PAYLOAD), "meta": pa.array(range(5), pa.int64())})


def read(batch: pa.RecordBatch, feature: str, dtype: str, shape: tuple[int | None, ...], **rules: Any) -> Any:
    inputs = {"x": TensorSpec("x", dtype, shape)}
    plan = pickle.loads(pickle.dumps(plan_inputs(batch.schema, inputs, {"x": (feature,)}, rules=ColumnRules(**rules))))
    return plan.tensors(batch, where="f", first_row=100)["x"].numpy().tolist()


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_a_member_is_read_at_any_depth_and_of_any_slice(start: int) -> None:
    part, rows = BATCH.slice(start), ROWS[start:]
    assert read(part, "payload.pixels", "float32", (None, 2)) == [row["pixels"] for row in rows]
    assert read(part, "payload.meta.size", "int64", (None,)) == [row["meta"]["size"] for row in rows]  # type: ignore[index]
    assert read(part, "payload.words.id", "int16", (None, 2)) == [[n, -n] for n in range(start, 5)]


def test_a_member_whose_own_name_has_a_dot_is_found() -> None:
    names = [f"é{row}".encode() for row in range(5)]
    assert read(BATCH, "payload.meta.name.raw", "string", (None,)) == names


def test_a_column_whose_own_name_has_a_dot_wins_over_a_path() -> None:
    batch = BATCH.append_column("payload.meta.size", pa.array([9] * 5, pa.int32()))
    assert read(batch, "payload.meta.size", "int32", (None,)) == [9] * 5
    plan = plan_inputs(batch.schema, {"x": TensorSpec("x", "int32", (None,))}, {"x": ("payload.meta.size",)})
    assert plan.columns == plan.whole_columns == ("payload.meta.size",)


def test_the_struct_is_read_but_is_no_feature_as_a_whole() -> None:
    inputs = {"a": TensorSpec("a", "float32", (None, 2)), "b": TensorSpec("b", "int64", (None, 2))}
    plan = plan_inputs(BATCH.schema, inputs, {"a": ("payload.pixels",), "b": ("meta", "payload.meta.size")})
    assert plan.mapping == {"a": ("payload.pixels",), "b": ("meta", "payload.meta.size")}
    assert plan.columns == ("payload", "meta")
    assert plan.whole_columns == ("meta",)
    assert plan.row_nbytes == 2 * 4 + 2 * 8
    assert plan.tensors(BATCH)["b"].numpy().tolist() == [[n, n] for n in range(5)]


@pytest.mark.parametrize(("null", "row"), [("payload", 101), ("meta", 102), ("size", 103)])
def test_a_null_at_any_level_of_the_struct_is_a_null_of_the_member(null: str, row: int) -> None:
    rows: list[Any] = [dict(one) for one in ROWS]
    if null == "payload":
        rows[1] = None
    elif null == "meta":
        rows[2]["meta"] = None
    else:
        rows[3]["meta"] = {"size": None}
    batch = pa.record_batch({"payload": pa.array(rows, PAYLOAD)})
    with pytest.raises(NullFeature, match=f"Column 'payload.meta.size' of f is null in row {row}\\."):
        read(batch, "payload.meta.size", "int64", (None,))
    assert read(batch, "payload.meta.size", "int64", (None,), fill=(("x", "-1"),)) == [
        -1 if 100 + n == row else n for n in range(5)
    ]


def test_a_null_deep_in_an_early_row_is_told_before_one_in_a_later() -> None:
    rows: list[Any] = [dict(one) for one in ROWS]
    rows[4] = None
    rows[2]["words"] = [{"id": 1}, None]
    with pytest.raises(NullFeature, match=re.escape("'payload.words.id' of f is null in row 102.")):
        read(pa.record_batch({"payload": pa.array(rows, PAYLOAD)}), "payload.words.id", "int16", (None, 2))


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ("payload.pixel", "There is no column 'payload.pixel' in f for tensor 'x'.*Did you mean 'payload.pixels'"),
        ("payload.meta.nothing", "There is no column 'payload.meta.nothing'"),
        ("meta.size", "There is no column 'meta.size'.*Did you mean 'meta'"),
        ("payload.pixels.x", "There is no column 'payload.pixels.x'"),
        ("payload.", "There is no column 'payload.'"),
        ("payload.meta", "does not fit.*Name one of its members: --feature x=MEMBER, of payload.meta.size, payload"),
        ("payload", "does not fit.*of payload.pixels, payload.meta, payload.words"),
    ],
)
def test_a_path_that_leads_nowhere_names_what_there_is(feature: str, said: str) -> None:
    with pytest.raises(ColumnError, match=said):
        plan_inputs(BATCH.schema, {"x": TensorSpec("x", "int32", (None,))}, {"x": (feature,)}, where="f")


def test_two_members_of_one_name_are_refused() -> None:
    schema = pa.schema([("s", pa.struct([("a", pa.int32()), ("a", pa.int32())]))])
    with pytest.raises(ColumnError, match=re.escape("There is no column 's.a'")):
        plan_inputs(schema, {"x": TensorSpec("x", "int32", (None,))}, {"x": ("s.a",)})


def test_a_file_whose_struct_has_more_members_in_another_order_reads_the_same() -> None:
    plan = plan_inputs(BATCH.schema, {"x": TensorSpec("x", "float32", (None, 2))}, {"x": ("payload.pixels",)})
    other = pa.struct([("new", pa.bool_()), ("pixels", pa.list_(pa.float32(), 2))])
    batch = pa.record_batch({"payload": pa.array([{"new": True, "pixels": [1, 2]}], other)})
    assert plan.tensors(batch)["x"].numpy().tolist() == [[1, 2]]
    without = pa.record_batch({"payload": pa.array([{"new": True}], pa.struct([("new", pa.bool_())]))})
    with pytest.raises(ColumnError, match="has another type than the job was planned with"):
        plan.tensors(without)
