"""Orbax checkpoints of Keras models: some that `keras.callbacks.OrbaxCheckpoint` wrote, and a writer of the same layout.

Orbax needs JAX, whose half a gigabyte nothing else here needs. So orbax_checkpoints.zip holds what the real callback wrote
(`python -m tests.support.orbax_checkpoints`, where orbax-checkpoint is installed), each next to a `.keras` file of the same
model. All other forms are written by TensorStore, which is what Orbax writes arrays with, to the same specifications.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REAL = Path(__file__).with_suffix(".zip")


@functools.cache
def real(name: str) -> Path:
    """A folder of checkpoints that the callback wrote; the model is next to it, as `name`.keras."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-test-orbax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(REAL) as archive:
        archive.extractall(folder)
    return folder / name


@dataclass(frozen=True)
class Form:
    """How arrays are written; `parts` is how often each dimension of a large array is cut, as arrays on several devices are.

    `node_bytes` makes the database's nodes so small that there are nodes above them.
    """

    zarr3: bool = True
    ocdbt: bool = True
    packed: bool = True
    parts: int = 1
    node_bytes: int = 100_000_000


def write_tree(folder: Path, arrays: Mapping[tuple[str, ...], Any], form: Form) -> None:
    """As Orbax's PyTreeHandler writes them."""
    import tensorstore

    tensorstore_context = tensorstore.Context()
    folder.mkdir(parents=True)
    described = {}
    for keys, array in arrays.items():
        name = ".".join(keys)
        spec = _spec(folder, name, array, form)
        opened = tensorstore.open(spec, create=True, context=tensorstore_context).result()
        opened.write(array).result()
        entry = [{"key": key, "key_type": 2} for key in keys]
        described[str(keys)] = {"key_metadata": entry, "value_metadata": {"value_type": "np.ndarray"}}
    tree = {"tree_metadata": described, "use_ocdbt": form.ocdbt, "use_zarr3": form.zarr3}
    (folder / "_METADATA").write_text(json.dumps(tree))


def _spec(folder: Path, name: str, array: Any, form: Form) -> dict[str, Any]:
    base: Any = {"driver": "file", "path": f"{folder}/"}
    kvstore: Any = {"driver": "file", "path": f"{folder}/{name}/"}
    if form.ocdbt:
        config = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": form.node_bytes, "manifest_kind": "single"}
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/", "config": config}
    shape, chunk = list(array.shape), [max(1, -(-size // form.parts)) for size in array.shape]
    metadata: dict[str, Any] = {"shape": shape}
    if form.zarr3:
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        packing = [{"name": "zstd", "configuration": {"level": 3}}] if form.packed else []
        pieces = {
            "chunk_shape": chunk,
            "codecs": [little, *packing],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
        codecs = [{"name": "sharding_indexed", "configuration": pieces}]
        metadata |= {"chunk_grid": grid, "codecs": codecs}
    else:
        metadata |= {"chunks": chunk, "compressor": {"id": "zstd", "level": 1} if form.packed else None}
    return {
        "driver": "zarr3" if form.zarr3 else "zarr",
        "kvstore": kvstore,
        "metadata": metadata,
        "dtype": array.dtype.name,
        "store_data_equal_to_fill_value": True,
    }


def save(model: Any, step: Path, form: Form = Form()) -> None:
    """One step, as `OrbaxCheckpoint` writes it."""
    from keras.src.saving import saving_lib

    step.mkdir(parents=True)
    if getattr(model, "optimizer", None) is None:
        model.compile("sgd", "mse")
    tree = model.get_state_tree(value_format="numpy_array")
    write_tree(step / "pytree", {keys: np.asarray(array) for keys, array in _leaves(tree)}, form)
    (step / "model_config").mkdir()
    config, _ = saving_lib._serialize_model_as_json(model)
    (step / "model_config" / "_strings.json").write_text(json.dumps({"config": config}))
    assets = saving_lib._save_assets_to_dict(model)
    if assets is not None:
        write_tree(step / "assets", dict(_leaves(assets)), form)
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps({"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": 2}))


def _leaves(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict):
        yield keys, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, (*keys, key))


def main() -> None:
    """Writes orbax_checkpoints.zip with the real callback."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    folder = Path(tempfile.mkdtemp())

    def train(model: Any, name: str, rows: Any, labels: Any, steps: int = 1, **options: Any) -> None:
        model.compile("adam", "mse")
        callback = keras.callbacks.OrbaxCheckpoint(str(folder / name), max_to_keep=steps, **options)
        model.fit(rows, labels, batch_size=4, epochs=11, callbacks=[callback], verbose=0)
        callback.wait_until_finished()
        model.save(folder / f"{name}.keras")

    rows, labels = np.random.default_rng(0).random((8, 6), np.float32), np.ones((8, 3), np.float32)
    table = keras.Sequential(
        [
            keras.Input((6,), name="x"),
            keras.layers.Dense(120, activation="relu", name="wide.first"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    train(table, "table", rows, labels, steps=2)
    train(table, "weights_only", rows, labels, save_weights_only=True)
    texts = keras.layers.TextVectorization(output_sequence_length=4, name="words")
    texts.adapt(["good film", "bad film"])
    words = keras.Sequential(
        [
            keras.Input((1,), dtype="string", name="text"),
            texts,
            keras.layers.Embedding(8, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    train(words, "texts", tf.constant([["good film"], ["bad"]] * 4), labels)
    with zipfile.ZipFile(REAL, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))


if __name__ == "__main__":
    main()
