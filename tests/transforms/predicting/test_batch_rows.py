"""`auto`: rows per batch from schema and signature alone."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transforms.columns.plan import ColumnChoice, choose_batch_rows, plan_columns, rows_that_fit
from headrace.transforms.models.spec import Signature, TensorSpec
from headrace.transforms.nested_arrow import schema_of

MIB = 1 << 20


def signature(
    inputs: dict[str, tuple[str, tuple[int | None, ...]]], outputs: dict[str, tuple[int | None, ...]]
) -> Signature:
    return Signature(
        "serving_default",
        {name: TensorSpec(name, dtype, (None, *shape)) for name, (dtype, shape) in inputs.items()},
        {name: TensorSpec(name, "float32", (None, *shape)) for name, shape in outputs.items()},
    )


def floats(*shape: int) -> pa.DataType:
    kind: pa.DataType = pa.float32()
    for dim in reversed(shape):
        kind = pa.list_(kind, dim)
    return kind


SMALL_NETWORK = signature({"x": ("float32", (64,))}, {"y": (10,)})
IMAGES = signature({"x": ("float32", (224, 224, 3))}, {"y": (1000,)})
EMBEDDING = signature({"x": ("int32", ())}, {"y": (1024,)})
MASKS = signature({"x": ("uint8", (16,))}, {"y": (512, 512)})
TEXT_TO_SCORE = signature({"x": ("string", ())}, {"y": (1,)})
TEXT_TO_VECTOR = signature({"x": ("string", ())}, {"y": (768,)})
TEXT_TO_TOKENS = signature({"x": ("string", ())}, {"y": (128, 768)})
UNKNOWN_OUTPUT = signature({"x": ("float32", (64,))}, {"y": (None, 768)})


@pytest.mark.parametrize(
    ("model", "column", "rows"),
    [
        (SMALL_NETWORK, floats(64), 8192),
        (IMAGES, floats(224, 224, 3), 8),
        (EMBEDDING, pa.int32(), 512),
        (MASKS, pa.list_(pa.uint8(), 16), 8),
        (TEXT_TO_SCORE, pa.string(), 1024),
        (TEXT_TO_VECTOR, pa.string(), 512),
        (TEXT_TO_TOKENS, pa.string(), 8),
        (UNKNOWN_OUTPUT, floats(64), 8192),
    ],
    ids=lambda value: None if isinstance(value, int) else "",
)
def test_the_larger_of_inputs_and_outputs_decides(model: Signature, column: pa.DataType, rows: int) -> None:
    plan = plan_columns(pa.schema([("x", column)]), [(model, ColumnChoice())], None)
    chosen, rule = choose_batch_rows(plan, None)
    assert chosen == rows
    assert rule.startswith("auto/3: the power of two at or below 2 MiB / ")
    assert choose_batch_rows(plan, 77) == (77, "given")


def test_of_several_models_the_largest_decides() -> None:
    schema = schema_of({"x": pa.int32(), "z": floats(64)})
    small = Signature(
        "serving_default", {"z": TensorSpec("z", "float32", (None, 64))}, {"a": TensorSpec("a", "float32", (None,))}
    )
    plan = plan_columns(schema, [(small, ColumnChoice("small")), (EMBEDDING, ColumnChoice("large"))], None)
    assert choose_batch_rows(plan, None)[0] == 512


@given(st.none() | st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_a_power_of_two_within_bounds(inputs: int | None, outputs: int) -> None:
    rows, _ = rows_that_fit(inputs, outputs)
    row = max(1, inputs or 0, outputs)
    assert rows.bit_count() == 1
    assert rows <= 8192
    assert rows * row <= 2 * MIB or (rows <= 8 and rows * row <= 16 * MIB) or rows == 1
