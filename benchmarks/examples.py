"""Rows per CPU second that become serialized tf.train.Example, of ten features of numbers, beside a function row by row.

Both make TensorFlow's strings of the same record batches in turn, in one process; half of the features are float32, half are
int64 of up to 5,000. The function is what a user would write for --preprocess.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import measure
from benchmarks.measure import Goal, Machine
from headrace.transforms.columns.inputs import plan_inputs
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.models.spec import ExampleFeature, ExampleFormat, TensorSpec

FEATURES, BATCH_ROWS, LEAST = 10, 8192, 500_000
FLOATS = [f"feature_{i}" for i in range(0, FEATURES, 2)]
INTS = [f"feature_{i}" for i in range(1, FEATURES, 2)]


def main(argv: Sequence[str] | None = None) -> int:
    asked = measure.arguments("examples", __doc__, runs=9, room="nothing").parse_args(argv)
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {name: rng.normal(size=BATCH_ROWS).astype(np.float32) for name in FLOATS}
    columns |= {name: rng.integers(0, 5000, BATCH_ROWS) for name in INTS}
    batch = pa.RecordBatch.from_pydict(columns)
    features = tuple(
        ExampleFeature(column, "float32" if column in FLOATS else "int64", (), True) for column in sorted(columns)
    )
    spec = TensorSpec("examples", "string", (None,), ExampleFormat(features))
    encoded = plan_inputs(batch.schema, {"examples": spec}, {}, rules=ColumnRules(tf_example=(("examples", ()),)))
    kept = pa.schema([("examples", pa.binary())])
    held = plan_inputs(kept, {"examples": spec}, {"examples": ("examples",)})

    def by_columns() -> Any:
        return encoded.tensors(batch)["examples"]

    def by_rows() -> Any:
        return held.tensors(
            pa.RecordBatch.from_arrays([pa.array(map(example, batch.to_pylist()), pa.binary())], schema=kept)
        )

    def parsed(strings: Any) -> list[Any]:
        import tensorflow as tf

        kinds = {feature.name: tf.io.FixedLenFeature([], feature.dtype) for feature in features}
        return [tensor.numpy().tolist() for tensor in tf.io.parse_example(strings, kinds).values()]

    if parsed(by_columns()) != parsed(by_rows()["examples"]):
        raise SystemExit("TensorFlow parses other values from the columns than from the rows")
    rounds, calls = (1, 1) if asked.quick else (asked.runs, 20)
    times: dict[str, list[float]] = {"headrace": [], "row by row": []}
    for _ in range(rounds):
        times["headrace"].append(_seconds(by_columns, calls))
        times["row by row"].append(_seconds(by_rows, 1))
    rates = {name: BATCH_ROWS / median(each) for name, each in times.items()}
    machine = Machine.here()
    lines = [f"{name:<12} {rate:>12,.0f} rows per CPU second" for name, rate in rates.items()]
    goals = [Goal(f"rows per CPU second, {FEATURES} features", rates["headrace"], LEAST, at_least=True)]
    measure.show(asked, "\n".join([str(machine), *lines]), goals, {**asdict(machine), "rates": rates})
    return 0


def example(row: dict[str, Any]) -> bytes:
    import tensorflow as tf

    features = {name: tf.train.Feature(float_list=tf.train.FloatList(value=[row[name]])) for name in FLOATS}
    features |= {name: tf.train.Feature(int64_list=tf.train.Int64List(value=[row[name]])) for name in INTS}
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def _seconds(work: Callable[[], Any], calls: int) -> float:
    """CPU, of one call."""
    start = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - start) / calls


if __name__ == "__main__":
    sys.exit(main())
