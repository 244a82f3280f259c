"""The stages of benchmarks/gpu.py, each in a process of its own: `python -m benchmarks.gpu_programs '{"stage": …}'`.

The last line on standard output is JSON. Where TensorFlow sees no GPU they run on the CPU, which shows that they run.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.load_programs import SIGNATURE, _peak, _reset_peak
from benchmarks.measure import apart
from benchmarks.work import once, under_more_names

MEMORY_MIB = 2048
WIDE = 32_768


def main(task: dict[str, Any]) -> dict[str, Any]:
    return STAGES[task.pop("stage")](**task)


def card() -> dict[str, Any]:
    import tensorflow as tf

    from headrace.transforms.predicting.devices import choose_devices, set_up_tensorflow

    set_up_tensorflow()
    built = tf.sysconfig.get_build_info()
    noise = np.random.default_rng(0)
    a, b = noise.standard_normal((2, 1024, 1024), np.float32)
    image, kernel = (
        noise.standard_normal((8, 32, 32, 16), np.float32),
        noise.standard_normal((3, 3, 16, 32), np.float32),
    )
    with tf.device("/device:CPU:0"):
        exact = tf.nn.conv2d(image.astype(np.float64), kernel.astype(np.float64), 1, "SAME").numpy()
    return {
        "devices": [device.kind for device in choose_devices("auto")],
        "driver": _smi("driver_version"),
        "tensorflow": tf.__version__,
        "built_for": {name: built.get(name) for name in ("cuda_version", "cudnn_version", "cuda_compute_capabilities")},
        "cuda_libraries": _mapped("libcudart", "libcublas.", "libcublasLt", "libcudnn.", "libcufft", "libcusolver."),
        "errors": {
            "product": _error((tf.constant(a) @ tf.constant(b)).numpy(), a.astype(np.float64) @ b),
            "convolution": _error(tf.nn.conv2d(image, kernel, 1, "SAME").numpy(), exact),
        },
    }


def load(folder: str, model: str, program: str, width: int, in_flight: int) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    from headrace import Loading, load_model
    from headrace.transforms.predicting.devices import choose_devices, set_up_tensorflow

    set_up_tensorflow()
    device, path = choose_devices("auto")[0].name, f"{folder}/{model}"
    tf.linalg.matmul(tf.ones((2, 2)), tf.ones((2, 2))).numpy()  # the one-time costs of TensorFlow and the driver
    batch = np.random.default_rng(7).random((64, width), np.float32)
    idle, start = _reset_peak(), time.perf_counter()
    if program == "headrace":
        ours = load_model(path, loading=Loading(in_flight_bytes=in_flight, model_sharing="process").on(device))
        seconds, peak = time.perf_counter() - start, _peak() - idle
        outputs = list(ours.predict({next(iter(ours.inputs)): batch}).values())
    elif model.endswith(".keras"):
        network = keras.saving.load_model(path)
        seconds, peak = time.perf_counter() - start, _peak() - idle
        outputs = [network(tf.constant(batch)).numpy()]
    else:
        loaded = tf.saved_model.load(path)
        seconds, peak = time.perf_counter() - start, _peak() - idle
        function = loaded.signatures[SIGNATURE]
        name = next(iter(function.structured_input_signature[1]))
        outputs = [value.numpy() for value in function(**{name: tf.constant(batch)}).values()]
    return {
        "seconds": round(seconds, 3),
        "host_peak": peak,
        "gpu_peak": _gpu_peaks(),
        "predictions": hashlib.sha256(outputs[0].tobytes()).hexdigest()[:16],
        "sum": float(outputs[0].astype(np.float64).sum()),
    }


def job(folder: str, images: int, files: int, side: int, batch: int, times: int, calls: list[int]) -> dict[str, Any]:
    """Whole jobs in a warm process, compared with the natively loaded model alone: images per second."""
    import tensorflow as tf

    from headrace.pipeline.cli import main as headrace
    from headrace.transforms.models import device_placement as placement

    model = _made(f"{folder}/network-{side}", _write_network, side)
    source = _made(f"{folder}/images-{side}-{images}-{files}", _write_images, images, files, side)
    inputs, output = under_more_names(source, times), f"{folder}/out"
    device = f"--device={'gpu' if tf.config.list_physical_devices('GPU') else 'cpu'}"
    flags = [f"--model={model}", f"--output={output}", "--keep=id", f"--batch_size={batch}", device]
    results: dict[str, Any] = {"rows": images * files * times, "jobs": {}}
    for number in (0, *calls):  # the first one loads the model, and lets cuDNN choose
        shutil.rmtree(output, ignore_errors=True)
        placement._CALLS_AT_ONCE = number or placement._CALLS_AT_ONCE
        placement._gates.clear()
        start = time.perf_counter()
        with _watched() as watched:
            code = headrace([*flags, f"--input={inputs if number else source}/*.parquet"])
        seconds = time.perf_counter() - start
        if code:
            raise SystemExit(f"headrace ended with exit code {code}")
        name = f"{number} at once" if number else "cold"
        count = results["rows"] if number else images * files
        results["jobs"][name] = {"seconds": round(seconds, 2), "rows_per_s": round(count / seconds), **watched}
    function = (native := tf.saved_model.load(model)).signatures[SIGNATURE]
    results |= _alone(function, source, batch) | _against(function, output, source, "image")
    results["gpu_peak"] = _gpu_peaks()
    del native
    return results


def memory(folder: str, rows: int) -> dict[str, Any]:
    """A job on two GPUs of little memory each, cut out of the first, in batches that none of them holds."""
    import pyarrow.parquet as pq
    import tensorflow as tf

    from headrace.pipeline.cli import main as headrace

    if gpus := tf.config.list_physical_devices("GPU"):
        small = tf.config.LogicalDeviceConfiguration(memory_limit=MEMORY_MIB)
        tf.config.set_logical_device_configuration(gpus[0], [small, small])
    model, source = _made(f"{folder}/wide", _write_wide), _made(f"{folder}/wide-{rows}", _write_rows, rows)
    output, start = f"{folder}/wide-out", time.perf_counter()
    shutil.rmtree(output, ignore_errors=True)
    batch = WIDE // 2 if gpus else rows // 8
    if code := headrace(
        [f"--model={model}", f"--input={source}/*.parquet", f"--output={output}", "--keep=id", f"--batch_size={batch}"]
    ):
        raise SystemExit(f"headrace ended with exit code {code}")
    seconds = time.perf_counter() - start
    parts = [pq.read_table(part) for part in sorted(glob.glob(f"{output}/_manifest/*"))]
    splits = [split for part in parts for split in part["batch_splits"].to_pylist() if split]
    function = (native := tf.saved_model.load(model)).signatures[SIGNATURE]
    results = {
        "gpus": len(tf.config.list_logical_devices("GPU")),
        "batch_rows": batch,
        "seconds": round(seconds, 1),
        "halved": len({piece["rows"] for split in splits for piece in split}),
        "batch_splits": splits,
        "replicas": sum(peak > 0 for peak in _gpu_peaks()),
        "gpu_peak": _gpu_peaks(),
        **_against(function, output, source, "x"),
    }
    del native
    return results


STAGES: dict[str, Callable[..., dict[str, Any]]] = {"card": card, "load": load, "job": job, "memory": memory}


def _against(function: Any, output: str, source: str, name: str) -> dict[str, Any]:
    """Predictions of some 4,096 rows next to the native model's, called on the batches that the files record."""
    import pyarrow.parquet as pq
    import tensorflow as tf

    from headrace.transforms.predicting.bisection import pieces

    compared = different = 0
    largest, kinds = 0.0, set()
    for path in sorted(glob.glob(f"{output}/*.parquet")):
        ours = pq.read_table(path)
        metadata = {key.decode(): value.decode() for key, value in (pq.read_metadata(path).metadata or {}).items()}
        kinds.add(metadata["headrace.device"])
        first, count = int(metadata["headrace.first_row"]), int(metadata["headrace.rows"])
        given = f"{source}/{os.path.basename(metadata['headrace.input'])[-12:]}"
        if compared + count > 4096 and compared:
            continue
        values = pq.read_table(given, columns=[name]).slice(first, count)[name].combine_chunks()
        shape = tuple(function.structured_input_signature[1][name].shape[1:])
        array = values.flatten().to_numpy().reshape(count, *shape)  # type: ignore[attr-defined]
        scores = ours.column(ours.num_columns - 1).combine_chunks().flatten().to_numpy().reshape(count, -1)  # type: ignore[attr-defined]
        splits = [tuple(split) for split in json.loads(metadata.get("headrace.batch_splits", "[]"))]
        for row, rows in pieces(first, count, int(metadata["headrace.batch_rows"]), splits, ()):
            piece = slice(row - first, row - first + rows)
            (expected,) = (value.numpy() for value in function(**{name: tf.constant(array[piece])}).values())
            compared += rows
            different += int((scores[piece] != expected).any(axis=1).sum())
            largest = max(largest, float(np.abs(scores[piece] - expected).max()))
    return {
        "compared": compared,
        "different": different,
        "largest_difference": largest,
        "headrace.device": sorted(kinds),
    }


def _alone(function: Any, source: str, batch: int) -> dict[str, Any]:
    """Images per second of the model alone: its input on the device already, and copied from the host each time."""
    import pyarrow.parquet as pq
    import tensorflow as tf

    table = pq.read_table(sorted(glob.glob(f"{source}/*.parquet"))[0], columns=["image"])
    shape = tuple(function.structured_input_signature[1]["image"].shape[1:])
    array = table["image"].combine_chunks().flatten().to_numpy().reshape(-1, *shape)[:batch]  # type: ignore[attr-defined]
    times, there = 30, tf.identity(tf.constant(array))

    def rate(given: Any) -> int:
        for _ in range(3):
            next(iter(function(image=given()).values())).numpy()
        start = time.perf_counter()
        for _ in range(times):
            next(iter(function(image=given()).values())).numpy()
        return round(times * len(array) / (time.perf_counter() - start))

    def copied() -> Any:
        with tf.device("/device:CPU:0"):
            return tf.constant(array)

    return {"alone_on_device": rate(lambda: there), "alone_with_copies": rate(copied)}


@contextmanager
def _watched() -> Iterator[dict[str, Any]]:
    """While the block runs: how busy nvidia-smi found the GPU (percent of samples, 5 a second), and its memory in MiB."""
    found: dict[str, Any] = {}
    if shutil.which("nvidia-smi") is None:
        yield found
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield found
        finally:
            process.terminate()
            lines = process.stdout.read().splitlines() if process.stdout else []
    samples = [tuple(map(int, line.split(","))) for line in lines if line.count(",") == 1]
    if samples:
        found["gpu_percent"] = [busy for busy, _ in samples]
        found["gpu_memory_mib"] = max(used for _, used in samples)


def _smi(field: str) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def _mapped(*starts: str) -> list[str]:
    """The files that this process has mapped whose names begin so."""
    with open("/proc/self/maps") as file:
        paths = {os.path.realpath(line.split()[-1]) for line in file if "/" in line}
    return sorted(name for name in map(os.path.basename, paths) if name.startswith(starts))


def _gpu_peaks() -> list[int]:
    """Bytes that TensorFlow held at most on each GPU."""
    import tensorflow as tf

    names = [gpu.name.removeprefix("/device:") for gpu in tf.config.list_logical_devices("GPU")]
    return [int(tf.config.experimental.get_memory_info(name)["peak"]) for name in names]


def _error(found: Any, exact: Any) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _made(target: str, write: Callable[..., None], *more: Any) -> str:
    """Written by a process of its own: TensorFlow is set up once in each, and by the job here."""
    apart(_make, target, write, *more)
    return target


def _make(target: str, write: Callable[..., None], *more: Any) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    once(target, lambda part: write(part, *more))


def _write_images(folder: str, images: int, files: int, side: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    noise, size = np.random.default_rng(0), side * side * 3
    for number in range(files):
        pixels = pa.array(noise.integers(0, 256, images * size, np.uint8))
        columns = {"id": np.arange(images) + number * images, "image": pa.FixedSizeListArray.from_arrays(pixels, size)}
        how: dict[str, Any] = {"row_group_size": 256, "compression": "none", "use_dictionary": False}
        pq.write_table(pa.table(columns), f"{folder}/{number:04d}.parquet", **how)


def _write_network(folder: str, side: int) -> None:
    import keras

    keras.utils.set_random_seed(0)
    image = keras.Input((side, side, 3), name="image", dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(image)
    if side == 224:
        scores = keras.applications.ResNet50(weights=None)(scaled)
    else:  # making ResNet50 takes longer than all the rest of a quick run
        hidden = keras.layers.Conv2D(8, 7, strides=4, activation="relu")(scaled)
        scores = keras.layers.Dense(10, activation="softmax")(keras.layers.GlobalAveragePooling2D()(hidden))
    keras.Model(image, scores).export(folder, verbose=False)


def _write_wide(folder: str) -> None:
    import tensorflow as tf

    noise = np.random.default_rng(2)

    class Wide(tf.Module):
        """Each row of 64 numbers becomes 32,768 on the way: 128 KiB."""

        def __init__(self) -> None:
            self.up = tf.Variable(noise.standard_normal((64, WIDE), np.float32) / 8)
            self.down = tf.Variable(noise.standard_normal((WIDE, 8), np.float32) / 181)

        @tf.function(input_signature=[tf.TensorSpec((None, 64), tf.float32, "x")])
        def serve(self, x: Any) -> Any:
            return {"y": tf.nn.relu(x @ self.up) @ self.down}

    module = Wide()
    tf.saved_model.save(module, folder, signatures={SIGNATURE: module.serve})


def _write_rows(folder: str, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    noise = np.random.default_rng(3)
    for number, ids in enumerate(np.array_split(np.arange(rows), 4)):
        x = pa.FixedSizeListArray.from_arrays(pa.array(noise.standard_normal(len(ids) * 64, np.float32)), 64)
        pq.write_table(pa.table({"id": ids, "x": x}), f"{folder}/{number:04d}.parquet")


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
