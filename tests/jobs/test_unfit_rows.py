"""Rows that no tensor can be made of: all are found at once, each with the error that it has alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.columns.inputs import InputPlan, plan_inputs
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.errors import ColumnError, NullFeature
from headrace.transforms.models.spec import TensorSpec
from headrace.transforms.nested_arrow import schema_of

INT32, DOUBLES = pa.int64(), pa.list_(pa.float64())
VALUES = st.one_of(st.none(), st.integers(-5, 5), st.integers(2**31, 2**40))
LISTS = st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(-2, 2), st.just(1e300)), max_size=4))


def planned(pad: bool) -> InputPlan:
    schema = schema_of({"n": INT32, "v": DOUBLES, "s": pa.struct([("m", pa.string())])})
    specs = {
        "n": TensorSpec("n", "int32", (None,)),
        "v": TensorSpec("v", "float32", (None, 3)),
        "m": TensorSpec("m", "string", (None,)),
    }
    rules = ColumnRules(cast=("n", "v"), pad=(("v", "0"),) if pad else ())
    return plan_inputs(schema, specs, {"n": ("n",), "v": ("v",), "m": ("s.m",)}, rules=rules)


def batch_of(rows: list[tuple[Any, Any, Any]]) -> pa.RecordBatch:
    n, v, m = zip(*rows, strict=True)
    structs = pa.array([None if one is None else {"m": one} for one in m], pa.struct([("m", pa.string())]))
    return pa.RecordBatch.from_arrays([pa.array(n, INT32), pa.array(v, DOUBLES), structs], ["n", "v", "s"])


def alone(plan: InputPlan, batch: pa.RecordBatch, first_row: int) -> dict[int, str]:
    """As one row after the other tells."""
    found = {}
    for i in range(batch.num_rows):
        try:
            plan.tensors(batch.slice(i, 1), where="f", first_row=first_row + i)
        except (ColumnError, NullFeature) as error:
            found[i] = str(error)
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(VALUES, LISTS, st.one_of(st.none(), st.text(max_size=3))), min_size=1, max_size=30),
    st.booleans(),
)
def test_each_row_has_the_error_that_it_has_alone(rows: list[tuple[Any, Any, Any]], pad: bool) -> None:
    plan, batch = planned(pad), batch_of(rows)
    assert plan.unfit(batch, "f", 100) == alone(plan, batch, 100)


def test_an_image_that_cannot_be_decoded_is_found_among_nulls() -> None:
    import tensorflow as tf

    png = tf.io.encode_png(np.zeros((2, 2, 3), np.uint8)).numpy()
    spec = {"x": TensorSpec("x", "float32", (None, 2, 2, 3))}
    plan = plan_inputs(pa.schema([("x", pa.binary())]), spec, {}, rules=ColumnRules(decode_image=(("x", (2, 2)),)))
    batch = pa.RecordBatch.from_arrays([pa.array([png, b"no", None, png, b""], pa.binary())], ["x"])
    assert plan.unfit(batch, "f", 0) == alone(plan, batch, 0)
    assert sorted(plan.unfit(batch, "f", 0)) == [1, 2, 4]


def test_what_differs_only_from_other_rows_is_not_unfit() -> None:
    spec = {"x": TensorSpec("x", "float64", (None, None))}
    plan = plan_inputs(pa.schema([("x", DOUBLES)]), spec, {})
    assert plan.unfit(pa.RecordBatch.from_arrays([pa.array([[1.0], [1.0, 2.0]], DOUBLES)], ["x"]), "f", 0) == {}


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


@pytest.mark.parametrize("bad", [None, 2**40])
def test_the_work_grows_as_the_rows_do(bad: int | None) -> None:
    plan = plan_inputs(
        pa.schema([("n", INT32)]), {"n": TensorSpec("n", "int32", (None,))}, {}, rules=ColumnRules(cast=("n",))
    )

    def taken(rows: int) -> float:
        values = [bad if i % 20 == 7 else i for i in range(rows)]
        batch = pa.RecordBatch.from_arrays([pa.array(values, INT32)], ["n"])
        assert len(plan.unfit(batch, "f", 0)) == len(range(7, rows, 20))
        return seconds(lambda: plan.unfit(batch, "f", 0))

    small, large = taken(20_000), taken(80_000)
    assert large < 8 * small or large < 0.05
