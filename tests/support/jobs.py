"""A small model and small inputs for tests that run whole jobs."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.transforms.nested_arrow import flat
from headrace.transforms.storage import ObjectRef, open_store

FEATURES = 4


@functools.cache
def model_folder() -> Path:
    """Holds `saved_model/` and `model.keras`, the same network: float32 `x` [batch, 4] to `output_0` [batch, 3]."""
    import keras

    folder = Path(tempfile.mkdtemp(prefix="headrace-test-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    keras.utils.set_random_seed(7)
    x = inputs = keras.Input((FEATURES,), name="x")
    x = keras.layers.Dense(16, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    model.export(folder / "saved_model", verbose=False)
    model.save(folder / "model.keras")
    return folder


@functools.cache
def plain_model(name: str) -> Any:
    """The model as TensorFlow and Keras load it themselves: array [rows, 4] to array [rows, 3]."""
    import keras
    import tensorflow as tf

    if name == "model.keras":
        return keras.saving.load_model(model_folder() / name).predict_on_batch
    loaded = tf.saved_model.load(str(model_folder() / name))
    signature = loaded.signatures["serving_default"]

    def predict(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert loaded is not None  # a signature does not keep its model alive
        return signature(x=tf.constant(array))["output_0"].numpy()

    return predict


def put(uri: str, data: bytes) -> ObjectRef:
    with open_store(uri).create(uri) as writer:
        writer.write(data)
        return writer.commit()


def put_model(name: str, uri: str) -> str:
    """Uploads `saved_model` or `model.keras` to `uri`."""
    source = model_folder() / name
    for path in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
        put(uri if source.is_file() else f"{uri}/{path.relative_to(source)}", path.read_bytes())
    return uri


def put_table(uri: str, table: pa.Table, **how: Any) -> ObjectRef:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **how)
    return put(uri, sink.getvalue().to_pybytes())


def rows(first: int, count: int, seed: int = 0) -> pa.Table:
    """`id` int64, `name` string, `x` fixed-size list of four float32; the values depend on the row's number alone."""
    ids = np.arange(first, first + count)
    x = np.stack([np.sin((ids + seed) * (k + 1.0)) for k in range(FEATURES)], axis=1).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), FEATURES)
    return pa.table(
        {"id": pa.array(ids, pa.int64()), "name": pa.array([f"röw {i}" for i in ids], pa.string()), "x": lists}
    )


def put_inputs(folder: str, counts: Iterable[int], **how: Any) -> list[str]:
    """Files part-00000.parquet, … of so many rows each, numbered through; returns their URIs."""
    uris, first = [], 0
    for i, count in enumerate(counts):
        uris.append(f"{folder}/part-{i:05d}.parquet")
        put_table(uris[-1], rows(first, count), **how)
        first += count
    return uris


def read_output(folder: str) -> pa.Table:
    """All prediction files, in the order of their names."""
    store = open_store(folder)
    refs = [ref for ref in store.list(f"{folder}/") if ref.uri.endswith(".parquet") and "/_" not in ref.uri]
    return pa.concat_tables(pq.read_table(store.open_arrow(ref)) for ref in refs)


def names_in(folder: str) -> list[str]:
    return [ref.uri.removeprefix(f"{folder}/") for ref in open_store(folder).list(f"{folder}/")]


def expected_scores(name: str, table: pa.Table, batch_rows: int) -> np.ndarray[Any, Any]:
    """What the plainly loaded model says of the table's rows, in consecutive batches."""
    x = flat(table["x"].combine_chunks()).to_numpy().reshape(-1, FEATURES)
    predict = plain_model(name)
    return np.concatenate([predict(x[i : i + batch_rows]) for i in range(0, len(x), batch_rows)])


def scores(table: pa.Table, column: str = "output_0") -> np.ndarray[Any, Any]:
    return flat(table[column].combine_chunks()).to_numpy().reshape(table.num_rows, -1)
