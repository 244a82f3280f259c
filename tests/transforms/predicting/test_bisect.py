"""A batch of which some rows fail, or which is too large: what is predicted, in which pieces, and what is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.columns.plan import ColumnChoice, plan_columns
from headrace.transforms.errors import DataError, JobError, NullFeature
from headrace.transforms.jobs.user_functions import AppliedFunction
from headrace.transforms.models.model import Model
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.models.spec import Signature, TensorSpec
from headrace.transforms.nested_arrow import schema_of
from headrace.transforms.output.bad_rows import BadRow
from headrace.transforms.predicting.bisection import Bisection, half, pieces
from headrace.transforms.predicting.predictor import Predictor

WHERE = "gs://bucket/in.parquet"
SCHEMA = schema_of({"id": pa.int64(), "x": pa.float32()})
BAD = 1000.0  # a value that the model refuses


class Calls:
    """A model of one column, y = 2 x, that notes the rows of each call; `fits` says how many it has memory for."""

    def __init__(self, fits: Callable[[Any], bool] = lambda _: True, batch: int | None = None) -> None:
        self.rows: list[int] = []
        self._fits = fits
        spec = TensorSpec("x", "float32", (batch,))
        outputs = {"y": TensorSpec("y", "float32", (batch,))}
        ref = ModelRef("memory://model", "saved_model", ())
        self.model = Model(ref, "serving_default", {"x": spec}, outputs, self._call, parameters=0, nbytes=0)

    def _call(self, tensors: Any) -> dict[str, Any]:
        import tensorflow as tf

        x = tensors["x"]
        self.rows.append(int(x.shape[0]))
        if not self._fits(x):
            raise tf.errors.ResourceExhaustedError(None, None, f"OOM when allocating {x.shape}")
        tf.debugging.assert_less(x, BAD, "the value is out of bounds")
        return {"y": 2 * x}

    def predictor(self, **more: Any) -> Predictor:
        signature = Signature("serving_default", self.model.inputs, self.model.outputs)
        return Predictor(plan_columns(SCHEMA, [(signature, ColumnChoice())], ["id"]), [self.model], **more)


def table(rows: int, bad: Sequence[int] = ()) -> pa.RecordBatch:
    x = np.arange(rows, dtype=np.float32) / 8
    x[list(bad)] = BAD
    return pa.RecordBatch.from_arrays([pa.array(np.arange(rows)), pa.array(x)], schema=SCHEMA)


def bisected(
    predictor: Predictor, batch: pa.RecordBatch, batch_rows: int, first_row: int = 0
) -> tuple[Bisection, list[BadRow], list[pa.RecordBatch]]:
    bad: list[BadRow] = []
    bisection = Bisection(predictor, WHERE, batch_rows, bad.append)
    results: list[pa.RecordBatch] = []
    for start in range(0, batch.num_rows, batch_rows):
        results += bisection(batch.slice(start, batch_rows), first_row + start)
    return bisection, bad, results


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_row_is_predicted_in_order_or_told_as_bad_and_pieces_say_how(data: Any) -> None:
    rows = data.draw(st.integers(1, 60))
    bad_rows = sorted(data.draw(st.sets(st.integers(0, rows - 1))))
    batch_rows, fits = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    first_row = data.draw(st.integers(0, 5))
    calls, batch = Calls(lambda x: x.shape[0] <= fits), table(rows, bad_rows)
    bisection, bad, results = bisected(calls.predictor(), batch, batch_rows, first_row)
    assert [one.row - first_row for one in bad] == bad_rows
    good = [row for row in range(rows) if row not in bad_rows]
    assert [row for result in results for row in result["id"].to_pylist()] == good
    assert [y for result in results for y in result["y"].to_pylist()] == [row / 4 for row in good]
    assert all(one.values.to_pylist() == batch.slice(one.row - first_row, 1).to_pylist() for one in bad)
    assert bisection.predicted_rows + bisection.bad_rows == rows
    computed = [(first_row + result["id"][0].as_py(), result.num_rows) for result in results]
    assert computed == list(pieces(first_row, rows, batch_rows, bisection.splits, {one.row for one in bad}))
    assert all(count <= fits for _, count in computed)


def test_a_bad_row_is_told_with_its_stage_and_reason_in_few_calls() -> None:
    calls = Calls()
    _, bad, _ = bisected(calls.predictor(), table(1024, [700]), 1024)
    assert [(one.row, one.stage, one.where) for one in bad] == [(700, "model", WHERE)]
    assert "the value is out of bounds" in bad[0].error
    assert len(calls.rows) == 1 + 2 * 10


def test_without_dead_letters_the_first_bad_row_is_named_in_few_calls() -> None:
    calls = Calls()
    bisection = Bisection(calls.predictor(), WHERE, 4096)
    with pytest.raises(
        DataError, match=rf"Row 70345 \(counted from 0\) of {WHERE} cannot be predicted: the model fails on it"
    ) as caught:
        list(bisection(table(4096, [345, 346, 4000]), 70_000))
    assert caught.value.stage == "model"
    assert "the value is out of bounds" in str(caught.value)
    assert isinstance(caught.value.__cause__, DataError)
    assert len(calls.rows) <= 1 + 12 + 1


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_rows_that_no_model_can_be_fed_with_are_found_at_once(data: Any) -> None:
    rows, batch_rows = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 70))
    what = {i: data.draw(st.sampled_from(["", "", "null", "model", "preprocess"])) for i in range(rows)}
    calls, applied = Calls(), AppliedFunction(refuse_negative, "mine:refuse_negative", SCHEMA)
    values = [{"": i / 8, "null": None, "model": BAD, "preprocess": -1.0}[one] for i, one in what.items()]
    batch = table(rows).set_column(1, "x", pa.array(values, pa.float32()))
    more = {"preprocess": applied} if "preprocess" in what.values() else {}
    bisection, bad, results = bisected(calls.predictor(**more), batch, batch_rows, 5)
    stages = {i + 5: "features" if one == "null" else one for i, one in what.items() if one}
    assert {one.row: one.stage for one in bad} == stages
    assert all(one.values.to_pylist() == batch.slice(one.row - 5, 1).to_pylist() for one in bad)
    computed = [(5 + result["id"][0].as_py(), result.num_rows) for result in results]
    assert computed == list(pieces(5, rows, batch_rows, bisection.splits, stages))
    assert [row for result in results for row in result["id"].to_pylist()] == [i for i in what if not what[i]]
    if set(what.values()) <= {"", "null"}:
        assert len(calls.rows) <= -(-rows // batch_rows)


def refuse_negative(batch: pa.RecordBatch) -> pa.RecordBatch:
    if any(value is not None and value < 0 for value in batch["x"].to_pylist()):
        raise ValueError("negative")
    return batch


def test_a_message_that_names_the_row_is_left_as_it_is() -> None:
    batch = table(64).set_column(1, "x", pa.array([0.0] * 40 + [None] + [0.0] * 23, pa.float32()))
    with pytest.raises(NullFeature) as caught:
        list(Bisection(Calls().predictor(), WHERE, 64)(batch, 100))
    assert "row 140" in caught.value.what
    assert "cannot be predicted" not in caught.value.what
    _, bad, results = bisected(Calls().predictor(), batch, 64, 100)
    assert [(one.row, one.stage) for one in bad] == [(140, "features")]
    assert sum(result.num_rows for result in results) == 63


def refuse_marked(batch: pa.RecordBatch) -> pa.RecordBatch:
    if 13 in batch["id"].to_pylist():
        raise KeyError("unlucky")
    return batch


@pytest.mark.parametrize("stage", ["preprocess", "postprocess"])
def test_rows_that_a_function_fails_on(stage: str) -> None:
    schema = SCHEMA if stage == "preprocess" else schema_of({"id": pa.int64(), "y": pa.float32()})
    applied = AppliedFunction(refuse_marked, "mine:refuse_marked", schema)
    _, bad, results = bisected(Calls().predictor(**{stage: applied}), table(20), 20)
    assert [(one.row, one.stage) for one in bad] == [(13, stage)]
    assert bad[0].values.schema.names == ["id", "x"]
    assert "KeyError: 'unlucky'" in bad[0].error
    assert sum(result.num_rows for result in results) == 19


def no_two_alike(batch: pa.RecordBatch) -> pa.RecordBatch:
    if batch.num_rows > 1 and 5 in batch["id"].to_pylist():
        raise ValueError("these differ")
    return batch


def test_rows_that_fail_only_together_are_no_bad_rows_but_an_error() -> None:
    predictor = Calls().predictor(preprocess=AppliedFunction(no_two_alike, "mine:no_two_alike", SCHEMA))
    bad: list[BadRow] = []
    for on_bad in (None, bad.append):
        with pytest.raises(DataError, match=r"rows \d+-\d+ fail together, and none of them alone"):
            list(Bisection(predictor, WHERE, 16, on_bad)(table(16), 0))
    assert not bad


def test_a_batch_that_is_too_large_is_halved_and_the_next_begin_small() -> None:
    calls = Calls(lambda x: x.shape[0] <= 20)
    predictor = calls.predictor()
    bisection, bad, _ = bisected(predictor, table(150), 100)
    assert calls.rows == [100, 64, 32, 16, 16, 16, 16, 16, 16, 4, 16, 16, 16, 2]
    assert (bad, bisection.halved, bisection.splits) == ([], 3, [(0, 16)])
    calls.rows.clear()
    again, _, _ = bisected(predictor, table(32), 100, 500)
    assert calls.rows == [16, 16]
    assert again.splits == [(500, 16)]


def test_one_row_that_fits_into_no_memory_is_bad_and_makes_no_other_batch_small() -> None:
    calls = Calls(lambda x: float(x.numpy().max()) < 100)
    batch = table(64).set_column(1, "x", pa.array([1.0] * 33 + [500.0] + [1.0] * 30, pa.float32()))
    predictor = calls.predictor()
    bisection, bad, results = bisected(predictor, batch, 64)
    assert [(one.row, one.stage) for one in bad] == [(33, "model")]
    assert "ResourceExhaustedError" in bad[0].error
    assert sum(result.num_rows for result in results) == 63
    assert predictor.limit.rows is None
    computed = [(result["id"][0].as_py(), result.num_rows) for result in results]
    assert computed == list(pieces(0, 64, 64, bisection.splits, {33}))
    with pytest.raises(DataError, match=r"Row 33 .*ResourceExhausted") as caught:
        list(Bisection(predictor, WHERE, 64)(batch, 0))
    assert type(caught.value) is DataError


def test_a_model_fixed_to_a_batch_that_memory_does_not_hold_is_told_at_once() -> None:
    calls = Calls(lambda _: False, batch=8)
    with pytest.raises(JobError, match="Memory does not hold a batch of the model"):
        bisected(calls.predictor(), table(8), 8)
    assert calls.rows == [8]


def run_out(batch: pa.RecordBatch) -> pa.RecordBatch:
    if batch.num_rows > 4:
        raise MemoryError
    return batch


def test_memory_that_a_function_lacks_halves_the_batch_too() -> None:
    applied = AppliedFunction(run_out, "mine:run_out", SCHEMA)
    bisection, bad, results = bisected(Calls().predictor(preprocess=applied), table(16), 16)
    assert [result.num_rows for result in results] == [4, 4, 4, 4]
    assert (bad, bisection.halved) == ([], 2)


def test_mistakes_of_the_code_are_not_taken_for_bad_rows() -> None:
    batch = table(8).rename_columns(["id", "z"])
    with pytest.raises(KeyError):
        bisected(Calls().predictor(), batch, 8)


@pytest.mark.parametrize(("rows", "left"), [(2, 1), (3, 2), (4, 2), (5, 4), (4096, 2048), (4097, 4096)])
def test_the_left_part_is_the_largest_power_of_two_below_all(rows: int, left: int) -> None:
    assert half(rows) == left


def test_compiled_models_are_filled_up_so_that_pieces_cost_no_trace() -> None:
    import tensorflow as tf

    calls = Calls()
    calls.model.call = lambda tensors: {"y": 2 * tensors["x"]}
    applied = AppliedFunction(refuse_marked, "mine:refuse_marked", SCHEMA)
    predictor = calls.predictor(preprocess=applied, jit_rows=16)
    _, bad, results = bisected(predictor, table(40), 16)
    assert [one.row for one in bad] == [13]
    assert sum(result.num_rows for result in results) == 39
    assert predictor.traces == 1
    assert tf.executing_eagerly()
