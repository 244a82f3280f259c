"""Tables of five shapes with a model for each, the model alone, and a bare loop over them.

Run as a program: `python -m benchmarks.shape_programs loop SHAPE MODEL INPUTS OUTPUT`, one thread and no framework.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peers.columnar import Network, files, run_file
from headrace.transforms.nested_arrow import buffer_of

FILES = 4
COLUMNS, TEXT_BYTES, SIDE, SCORES, LARGE = 200, 100, 8, 1000, 2048


@dataclass(frozen=True)
class Shape:
    """`rows` are in the files: a small run reads these, and a large run `times` as many. `table` makes some rows,
    `tensor` a batch's feature as the model takes it. `flags` of headrace are in addition to model, input and output.
    """

    what: str
    rows: int
    times: int
    batch_rows: int
    table: Callable[[Any, int], dict[str, Any]]
    tensor: Callable[[pa.RecordBatch], Any]
    layers: Callable[[], tuple[Any, Any]]
    flags: tuple[str, ...] = ()


def _lists(values: Any, *lengths: int) -> pa.Array[Any]:
    array: Any = pa.array(values.reshape(-1))
    for length in lengths:
        offsets: Any = pa.array(np.arange(0, len(array) + 1, length, dtype=np.int32))
        array = pa.ListArray.from_arrays(offsets, array)
    return array


def _floats(random: Any, rows: int, width: int) -> Any:
    return random.standard_normal((rows, width), dtype=np.float32)


def _flat(column: Any, *shape: int) -> Any:
    while pa.types.is_list(column.type):
        column = column.flatten()
    return column.to_numpy().reshape(-1, *shape)


def _texts(random: Any, rows: int) -> pa.Array[Any]:
    letters = random.integers(97, 123, rows * TEXT_BYTES).astype(np.uint8)
    letters[::7] = 32
    offsets = np.arange(0, len(letters) + 1, TEXT_BYTES, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), rows, [None, buffer_of(offsets), buffer_of(letters)])


def _dense(width: Any, *units: int) -> tuple[Any, Any]:
    import keras

    given = made = keras.Input(width if isinstance(width, tuple) else (width,), name="x")
    if isinstance(width, tuple):
        made = keras.layers.Flatten()(made)
    for count in units:
        made = keras.layers.Dense(count, activation="relu")(made)
    return given, made


def _of_text() -> tuple[Any, Any]:
    import keras

    given = keras.Input((), name="x", dtype="string")
    places = keras.layers.Hashing(10_000)(given)
    return given, keras.layers.Dense(10)(keras.layers.Embedding(10_000, 64)(places))


SHAPES = {
    "columns": Shape(
        f"{COLUMNS} columns of one number, a {COLUMNS}-64-10 network",
        100_000,
        8,
        8192,
        lambda random, rows: {f"c{i}": column for i, column in enumerate(_floats(random, rows, COLUMNS).T)},
        lambda batch: np.stack([batch.column(f"c{i}").to_numpy() for i in range(COLUMNS)], axis=1),
        lambda: _dense(COLUMNS, 64, 10),
        (f"--feature=x={','.join(f'c{i}' for i in range(COLUMNS))}",),
    ),
    "text": Shape(
        f"text of {TEXT_BYTES} bytes, its hash, an embedding of 64 and 10 scores",
        500_000,
        8,
        8192,
        lambda random, rows: {"x": _texts(random, rows)},
        lambda batch: batch.column("x").to_numpy(zero_copy_only=False),
        _of_text,
    ),
    "nested": Shape(
        f"lists of {SIDE} lists of {SIDE} numbers, a {SIDE * SIDE}-256-10 network",
        250_000,
        8,
        8192,
        lambda random, rows: {"x": _lists(_floats(random, rows, SIDE * SIDE), SIDE, SIDE)},
        lambda batch: _flat(batch.column("x"), SIDE, SIDE),
        lambda: _dense((SIDE, SIDE), 256, 10),
    ),
    "wide": Shape(
        f"lists of 64 numbers, {SCORES} scores a row",
        50_000,
        8,
        4096,
        lambda random, rows: {"x": _lists(_floats(random, rows, 64), 64)},
        lambda batch: _flat(batch.column("x"), 64),
        lambda: _dense(64, 64, SCORES),
    ),
    "large": Shape(
        f"batches of 16 rows of 64 numbers, a network of five layers of {LARGE}",
        2_000,
        8,
        16,
        lambda random, rows: {"x": _lists(_floats(random, rows, 64), 64)},
        lambda batch: _flat(batch.column("x"), 64),
        lambda: _dense(64, *[LARGE] * 5, 10),
        ("--batch_size=16",),
    ),
}


def write_table(name: str, rows: int, folder: str) -> None:
    random = np.random.default_rng(0)
    for number, ids in enumerate(np.array_split(np.arange(rows), FILES)):
        columns = {"id": pa.array(ids), **SHAPES[name].table(random, len(ids))}
        pq.write_table(pa.table(columns), f"{folder}/{number}.parquet", row_group_size=16_384, compression="zstd")


def write_model(name: str, folder: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    keras.utils.set_random_seed(0)
    given, made = SHAPES[name].layers()
    keras.Model(given, made).export(folder, verbose=False)


def seconds_alone(name: str, model: str, inputs: str) -> float:
    """CPU seconds of a row in the model alone: a batch in memory, one thread for each operation, the median of 40 calls."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    shape = SHAPES[name]
    batch = next(pq.ParquetFile(f"{inputs}/0.parquet").iter_batches(batch_size=shape.batch_rows))
    return Network(model, threads_per_operation=1).seconds_alone(shape.tensor(batch), 40) / batch.num_rows


def _loop(name: str, model: str, inputs: str, output: str) -> None:
    shape, network = SHAPES[name], Network(model)
    for source, target in files(inputs, output):
        run_file(source, target, network, shape.batch_rows, shape.tensor)


if __name__ == "__main__":
    _loop(*sys.argv[2:6])
