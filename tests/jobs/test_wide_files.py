"""Files of thousands of columns: the work of planning and of a job grows as their number does."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from headrace.pipeline.checks.column_links import link_columns
from headrace.transforms.columns.plan import ColumnChoice, plan_columns
from headrace.transforms.columns.struct_paths import path_of
from headrace.transforms.jobs.job import FirstInput
from headrace.transforms.models.spec import Signature, TensorSpec
from headrace.transforms.nested_arrow import schema_of
from tests.support.plans import plain_job

MANY = 1_000


def signature(inputs: dict[str, tuple[int | None, ...]]) -> Signature:
    output = {"y": TensorSpec("y", "float32", (None,))}
    return Signature("s", {name: TensorSpec(name, "float32", shape) for name, shape in inputs.items()}, output)


def kept(names: list[str]) -> tuple[Signature, ColumnChoice, list[str] | None]:
    return signature({"x": (None,)}), ColumnChoice(features=(("x", (names[0],)),)), None


def kept_by_name(names: list[str]) -> tuple[Signature, ColumnChoice, list[str] | None]:
    return signature({"x": (None,)}), ColumnChoice(features=(("x", (names[0],)),)), names[1:]


def packed(names: list[str]) -> tuple[Signature, ColumnChoice, list[str] | None]:
    return signature({"x": (None, len(names))}), ColumnChoice(features=(("x", tuple(names)),)), None


def one_tensor_each(names: list[str]) -> tuple[Signature, ColumnChoice, list[str] | None]:
    return signature(dict.fromkeys(names, (None,))), ColumnChoice(), None


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


@pytest.mark.parametrize("case", [kept, kept_by_name, packed, one_tensor_each])
@pytest.mark.parametrize("how", [plan_columns, link_columns])
def test_planning_grows_as_the_columns_do(
    case: Callable[..., tuple[Any, Any, Any]], how: Callable[..., object]
) -> None:
    def taken(columns: int) -> float:
        names = [f"c{i}" for i in range(columns)]
        schema = pa.schema([(name, pa.float32()) for name in names])
        model, choice, keep = case(names)
        return seconds(lambda: how(schema, [(model, choice)], keep))

    small, large = taken(MANY), taken(4 * MANY)
    assert large < 8 * small or large < 0.05, (
        f"{small:.3f} s of CPU for {MANY} columns, {large:.3f} s for four times as many"
    )


def test_a_wide_job_crosses_to_workers_as_few_bytes() -> None:
    schema = pa.schema([(f"column {i}", pa.float32()) for i in range(10_000)])
    job = plain_job("memory://in/*", schema=schema, first_input=FirstInput("a", "1", schema.serialize().to_pybytes()))
    data = pickle.dumps(job)
    assert pickle.loads(data) == job
    assert len(data) < 2 * len(job.input_schema) / 4


def test_a_path_leads_through_the_first_column_that_has_the_member() -> None:
    inner = pa.struct([("b", pa.struct([("c", pa.int8())])), ("b.c", pa.int8())])
    schema = schema_of({"a.b": pa.struct([("c", pa.int8())]), "a": inner, "x.y": pa.int8()})
    assert path_of(schema, "a.b.c") == ("a.b", "c")
    assert path_of(schema.remove(0), "a.b.c") == ("a", "b.c")
    assert path_of(schema, "x.y") == ("x.y",)
    assert path_of(schema, "x.y.z") is path_of(schema, "x") is path_of(schema, "") is None
