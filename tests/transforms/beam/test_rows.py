"""Which Arrow type a field of Beam's rows has, which Beam type a prediction; and values on their way between them."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.beam.rows import plan_rows, to_batch, to_values
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.errors import ColumnError, DataError, InvalidRequest
from headrace.transforms.models.spec import Signature, TensorSpec
from headrace.transforms.predicting.batch_predictor import request_batches


class Customer(NamedTuple):
    age: float
    tags: Sequence[str]


class Order(NamedTuple):
    id: int
    at: Timestamp
    pixels: Sequence[np.float32]
    customer: Optional[Customer]  # noqa: UP045 - Beam makes a schema of it


def planned(outputs: dict[str, tuple[str, tuple[int | None, ...]]], element_type: Any = Order, **how: Any) -> Any:
    """The plan of rows for a model that takes `pixels` [batch, 2]."""
    specs = {name: TensorSpec(name, dtype, shape) for name, (dtype, shape) in outputs.items()}
    signature = Signature("serve", {"pixels": TensorSpec("pixels", "float32", (None, 2))}, specs)
    asked = {"features": None, "predictions": None, "keep": None} | how
    request = request_batches("serve", batch_rows="auto", rules=ColumnRules(prediction_type="list"), **asked)
    return plan_rows(element_type, signature, request)


def fields_of(plan: Any) -> dict[str, Any]:
    return dict(plan.row_type._fields)


def test_kept_fields_have_their_own_types_and_predictions_those_of_the_signature() -> None:
    plan = planned({"score": ("float32", (None, 3)), "best": ("int64", (None,)), "text": ("string", (None,))})
    assert plan.fed == pa.schema([pa.field("pixels", pa.list_(pa.field("item", pa.float32(), False)), False)])
    assert plan.kept == ("id", "at", "customer")
    found = fields_of(plan)
    assert list(found) == ["id", "at", "customer", "score", "best", "text"]
    assert found["score"] == Sequence[np.float32]
    assert (found["best"], found["text"]) == (np.int64, bytes)
    assert "Timestamp" in str(found["at"])


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("uint8", np.int16), ("uint16", np.int32), ("uint32", np.int64), ("float16", np.float32), ("bool", bool)],
)
def test_numbers_that_beam_lacks_become_the_next_larger_ones(dtype: str, kind: Any) -> None:
    assert fields_of(planned({"y": (dtype, (None,))}))["y"] is kind


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"outputs": {"y": ("uint64", (None,))}}, "uint64"),
        ({"outputs": {"a b": ("float32", (None,))}}, "'a b' cannot be a field"),
        ({"outputs": {"y": ("float32", (None,))}, "features": {"pixels": "at"}}, "Timestamp"),
        ({"outputs": {"y": ("float32", (None,))}, "keep": ["idd"]}, "'idd'"),
        ({"outputs": {"id": ("float32", (None,))}}, "would both be 'id'"),
    ],
)
def test_what_does_not_fit_is_refused_while_the_pipeline_is_built(how: Any, said: str) -> None:
    with pytest.raises(ColumnError, match=said):
        planned(**how)


def test_elements_without_a_schema_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="rows with a schema"):
        planned({"y": ("float32", (None,))}, element_type=dict[str, int])


def test_rows_within_rows_become_structs() -> None:
    kind = pa.schema({"customer": pa.struct([("age", pa.float64()), ("tags", pa.list_(pa.string()))])})
    rows = [Order(1, Timestamp(0), [], Customer(3.5, ["a"])), Order(2, Timestamp(0), [], None)]
    assert to_batch(rows, kind).to_pylist() == [{"customer": {"age": 3.5, "tags": ["a"]}}, {"customer": None}]


def test_a_value_of_another_type_is_an_error_that_names_its_field() -> None:
    with pytest.raises(DataError, match="'age' is not what the rows' schema says"):
        to_batch([beam.Row(age="old")], pa.schema({"age": pa.int64()}))


leaves = {
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.bool_(): st.booleans(),
    pa.binary(): st.binary(max_size=3),
    pa.string(): st.text(max_size=3),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_values_survive_a_record_batch(data: st.DataObject) -> None:
    kind: Any
    value: Any
    kind, value = data.draw(st.sampled_from(list(leaves.items())))
    for _ in range(data.draw(st.integers(0, 2))):
        size = data.draw(st.integers(0, 3))
        fixed = data.draw(st.booleans())
        value = st.lists(value, min_size=size if fixed else 0, max_size=size)
        kind = pa.list_(kind, size) if fixed else pa.list_(kind)
    values = data.draw(st.lists(value, max_size=5))
    batch = to_batch([beam.Row(x=one) for one in values], pa.schema({"x": kind}))
    start = data.draw(st.integers(0, len(values)))
    assert to_values(batch.column(0)[start:]) == values[start:]


def test_beams_schemas_are_as_they_were() -> None:
    """What Beam calls internal: a row type is made from fields, and gives a schema that a coder takes."""
    kind = planned({"y": ("float32", (None, 3))}).row_type
    assert isinstance(kind, RowTypeConstraint)
    coder = beam.coders.RowCoder.from_type_hint(kind, None)
    row = beam.Row(id=1, at=Timestamp(5), customer=Customer(1.5, ["a"]), y=[0.5, 1.5, 2.5])
    again = coder.decode(coder.encode(row))
    assert (again.id, again.at, again.customer.age, list(again.y)) == (1, Timestamp(5), 1.5, [0.5, 1.5, 2.5])
