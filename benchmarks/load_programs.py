"""The ways to a ready model that benchmarks/load.py sets side by side, each run in a process of its own.

`python -m benchmarks.load_programs '{"program": …}'` prints one line of JSON: seconds, peak bytes above the idle process,
and what the model predicts. Imports and TensorFlow's start are not counted: all of them pay for those.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import mmap
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.bucket import media_path

RANGE = 8 << 20
SIGNATURE = "serving_default"


def main(task: dict[str, Any]) -> dict[str, Any]:
    port = int(os.environ["STORAGE_EMULATOR_HOST"].rpartition(":")[2])
    if task["program"] == "bare fetch":
        return _bare(port, task)
    import keras
    import tensorflow as tf

    import headrace.transforms.models.keras_model.model
    import headrace.transforms.models.saved_model.tf2
    import headrace.transforms.storage.gcs  # noqa: F401
    from headrace import Loading, load_model

    tf.linalg.matmul(tf.ones((2, 2)), tf.ones((2, 2)))
    _warm(task["warm"])
    idle = _reset_peak()
    start = time.perf_counter()
    if task["program"] == "headrace":
        model = load_model(
            f"gs://bench/{task['model']}", loading=Loading(connections=task["connections"], model_sharing="process")
        )
        seconds, peak = time.perf_counter() - start, _peak()
        used = {"weights": model.nbytes}
        outputs = [np.asarray(value) for value in model.predict({_name(model): _batch(task)}).values()]
    else:
        folder = task["folder"]
        _copy(port, task["files"], folder, task["connections"] if "many" in task["program"] else 1)
        path = os.path.join(folder, task["model"])
        if task["model"].endswith(".keras"):
            loaded = keras.saving.load_model(path)
            seconds, peak = time.perf_counter() - start, _peak()
            outputs = [loaded.predict(_batch(task), batch_size=len(_batch(task)), verbose=0)]
        else:
            function = tf.saved_model.load(path).signatures[SIGNATURE]
            seconds, peak = time.perf_counter() - start, _peak()
            argument = next(iter(function.structured_input_signature[1]))
            outputs = [value.numpy() for value in function(**{argument: tf.constant(_batch(task))}).values()]
        shutil.rmtree(folder)
        used = {}
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in outputs)).hexdigest()
    return {"seconds": seconds, "peak": peak - idle, "predictions": digest, **used}


def _bare(port: int, task: dict[str, Any]) -> dict[str, Any]:
    """The cost of fetching by itself: into one preallocated buffer that is not used.

    The buffer has plain pages: numpy's own arrays have huge ones, whose first touch costs a virtual machine more, and never the
    same.
    """
    _warm(task["warm"])
    idle = _reset_peak()
    start = time.perf_counter()
    buffer = memoryview(mmap.mmap(-1, task["bytes"], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    (name, _size), *_ = sorted(task["files"].items(), key=lambda item: -item[1])
    _fetch(port, name, buffer, task["connections"])
    return {"seconds": time.perf_counter() - start, "peak": _peak() - idle, "predictions": None}


def _fetch(port: int, name: str, view: memoryview, connections: int) -> None:
    local = threading.local()

    def read_range(start: int) -> None:
        end = min(start + RANGE, len(view))
        if not hasattr(local, "http"):
            local.http = http.client.HTTPConnection("127.0.0.1", port)
        local.http.request("GET", media_path(name), headers={"Range": f"bytes={start}-{end - 1}"})
        response = local.http.getresponse()
        while start < end:
            start += response.readinto(view[start:end])
        response.read()

    with ThreadPoolExecutor(connections) as threads:
        list(threads.map(read_range, range(0, len(view), RANGE)))


def _copy(port: int, files: dict[str, int], folder: str, connections: int) -> None:
    local = threading.local()

    def read_piece(piece: tuple[str, int, int, int]) -> None:
        name, descriptor, start, end = piece
        if not hasattr(local, "http"):
            local.http, local.buffer = http.client.HTTPConnection("127.0.0.1", port), bytearray(1 << 20)
        local.http.request("GET", media_path(name), headers={"Range": f"bytes={start}-{end - 1}"})
        response = local.http.getresponse()
        while start < end:
            count = response.readinto(local.buffer)
            os.pwrite(descriptor, memoryview(local.buffer)[:count], start)
            start += count
        response.read()

    pieces, descriptors = [], []
    for name, size in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptors.append(descriptor := os.open(path, os.O_CREAT | os.O_WRONLY))
        # One connection copies as copying programs do, in one request for each file.
        step = RANGE if connections > 1 else max(size, 1)
        pieces += [(name, descriptor, start, min(start + step, size)) for start in range(0, size, step)]
    with ThreadPoolExecutor(connections) as threads:
        list(threads.map(read_piece, pieces))
    for descriptor in descriptors:
        os.close(descriptor)


def _batch(task: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).random((4, task["width"]), np.float32)


def _name(model: Any) -> str:
    return str(next(iter(model.inputs)))


def _warm(nbytes: int) -> None:
    """A virtual machine gives free memory back to its host; getting it again takes three times as long or more.

    Memory that is touched and freed here is available to any program alike; on a machine of its own this changes nothing.
    """
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memoryview(memory)[::4096] = bytes(-(-nbytes // 4096))


def _reset_peak() -> int:
    """Resident bytes now; from here on the peak counts again (proc(5), /proc/pid/clear_refs)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
