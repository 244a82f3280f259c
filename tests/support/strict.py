"""A model that refuses some rows, and inputs of which some are bad, for tests of dead letters."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.transforms.storage import open_store
from tests.support.jobs import names_in, put_table

REFUSED = 1000.0


@functools.cache
def strict_model() -> str:
    """float32 `x` [batch, 3] to `y` [batch], twice the sum of a row; it fails where a value is 1000 or more."""
    import tensorflow as tf

    class Strict(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
        def __call__(self, x: Any) -> dict[str, Any]:
            with tf.control_dependencies([tf.debugging.assert_less(x, REFUSED, "a value is out of bounds")]):
                return {"y": 2 * tf.reduce_sum(x, axis=1)}

    folder = tempfile.mkdtemp(prefix="headrace-test-strict-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    module = Strict()
    tf.saved_model.save(module, folder, signatures=module.__call__.get_concrete_function())
    return folder


def mixed(first: int, count: int, bad: dict[int, str]) -> pa.Table:
    """`id`, `note` and lists `x` of three; `bad` maps an `id` to what ails it: "value", "length" or "null"."""
    x: list[list[float] | None] = [[i % 90 / 8, i % 70 / 4, 1.0] for i in range(first, first + count)]
    for row, what in bad.items():
        x[row - first] = {"value": [1.0, REFUSED, 1.0], "length": [1.0, 2.0], "null": None}[what]
    ids = pa.array(range(first, first + count), pa.int64())
    notes = pa.array([f"nöte {i}" for i in range(first, first + count)])
    return pa.table({"id": ids, "note": notes, "x": pa.array(x, pa.list_(pa.float32()))})


def put_mixed(folder: str, counts: list[int], bad: dict[int, str], **how: Any) -> list[pa.Table]:
    """Files part-00000.parquet, … of so many rows each, their `id`s numbered through."""
    tables, first = [], 0
    for i, count in enumerate(counts):
        own = {row: what for row, what in bad.items() if first <= row < first + count}
        tables.append(mixed(first, count, own))
        put_table(f"{folder}/part-{i:05d}.parquet", tables[-1], **how)
        first += count
    return tables


def expected_y(ids: list[int]) -> np.ndarray[Any, Any]:
    return np.array([2 * (i % 90 / 8 + i % 70 / 4 + 1) for i in ids], np.float32)


def dead_letters_in(folder: str) -> dict[str, pa.Table]:
    """Name below the folder to content; nothing where no such folder is."""
    if not Path(folder).is_dir() and not folder.startswith("gs://"):
        return {}
    store = open_store(folder)
    return {name: pq.read_table(store.open_arrow(store.stat(f"{folder}/{name}"))) for name in names_in(folder)}
