"""A process whose CPU, or first GPU, is cut into three logical devices, before TensorFlow's first operation; told as JSON
what came of it.

Arguments: a folder to work in, and CPU or GPU. Logical devices are all that a machine without GPUs has to try placement on.
Exit code 3: TensorFlow sees no GPU.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import jobs, model_zoo, zoo_v1
from tests.support.loose import loose

KIND = sys.argv[2] if __name__ == "__main__" else "CPU"
DEVICES = [f"/device:{KIND}:{i}" for i in range(3)]
together = threading.Barrier(2)
met: list[dict[str, int]] = []


def meet(batch: Any) -> Any:
    """A --postprocess: two shards wait for each other here, so that both are in flight."""
    from headrace.transforms.predicting import devices

    if batch.num_rows:
        together.wait(60)
        met.append({str(device.name): count for device, count in devices._in_use.items() if count})
        together.wait(60)
    return batch


def main() -> None:
    import tensorflow as tf

    physical = tf.config.list_physical_devices(KIND)
    if not physical:
        sys.exit(3)
    # Of a GPU each is to have 2 GiB, since only that makes logical devices of it.
    one = tf.config.LogicalDeviceConfiguration(memory_limit=2048 if KIND == "GPU" else None)
    tf.config.set_logical_device_configuration(physical[0], [one] * len(DEVICES))
    if hasattr(os, "sched_setaffinity"):  # a shard for each of two cores, on a machine of many too
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    folder = Path(sys.argv[1])
    found = {
        "models": {name: placed(make, folder / name) for name, make in MODELS.items()},
        "shared": shared(),
        "gate": most_at_once(),
        "job": job(folder / "job"),
        "no such device": refused(),
    }
    print(json.dumps(found))


def _keras(folder: Path) -> dict[str, Any]:
    folder.with_suffix(".keras").write_bytes((jobs.model_folder() / "model.keras").read_bytes())
    return {"serving_default": {"x": np.random.default_rng(0).normal(size=(5, jobs.FEATURES)).astype(np.float32)}}


MODELS: dict[str, Callable[[Path], Any]] = {
    "exported": model_zoo.keras_export,
    "table": model_zoo.tables_of_a_checkpoint,
    "v1": zoo_v1.resource_variables,
    "v1_reference": zoo_v1.reference_variables,
    "keras": _keras,
}


def placed(make: Callable[[Path], Any], folder: Path) -> dict[str, Any]:
    """What a model loaded on the second device is like, beside the same one on the first."""
    import tensorflow as tf

    from headrace import Loading, load_model

    signature, inputs = next(iter(make(folder).items()))
    uri = str(folder if folder.exists() else folder.with_suffix(".keras"))
    model = load_model(uri, signature, loading=Loading(device=f"{KIND.lower()}:1", in_flight_bytes=1000))
    tensors = {name: tf.constant(array) for name, array in inputs.items()}
    with tf.device(model.device):
        # Strings are the host's in any case.
        results = [result for result in model.call(tensors).values() if result.dtype != tf.string]
    here, there = load_model(uri, signature, loading=Loading(device=DEVICES[0])).predict(inputs), model.predict(inputs)
    return {
        "device": model.device,
        "variables": sorted({_short(device) for device in variables(model)}),
        "computed": sorted({_short(result.backing_device) for result in results}),
        "equal": all(np.array_equal(here[name], there[name]) for name in here) and here.keys() == there.keys(),
    }


def variables(model: Any) -> list[str]:
    """Where the variables that the model's function captures lie."""
    kept = model._keep if isinstance(model._keep, tuple) else (model._keep,)
    function = kept[2] if len(kept) == 4 else kept[0].signatures[model.signature]
    return [variable.handle.device for variable in function.graph.variables]


def _short(device: str) -> str:
    return device.partition("task:0")[2]


def shared() -> list[str]:
    """One replica for each device, and no more, however many threads ask."""
    from headrace.transforms.models.loading import Loading
    from headrace.transforms.models.pin import pin_model
    from headrace.transforms.models.process_cache import shared_model

    ref = pin_model(str(jobs.model_folder() / "saved_model"))
    with ThreadPoolExecutor(6) as pool:
        models = list(pool.map(lambda i: shared_model(ref, loading=Loading(device=DEVICES[i % 3])), range(12)))
    return sorted(str(model.device) for model in {id(model): model for model in models}.values())


def most_at_once() -> int:
    """How many of eight threads' calls are let through to one device at once."""
    from headrace.transforms.models.device_placement import placed

    lock, now, most = threading.Lock(), 0, 0

    def call(_: Any) -> dict[str, Any]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.02)
        with lock:
            now -= 1
        return {}

    on_device = placed(call, DEVICES[2])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(on_device, [{}] * 16))
    return most


def job(folder: Path) -> dict[str, Any]:
    """A whole job from the command line, two shards of it in flight at any time."""
    import pyarrow.parquet as pq

    from headrace.pipeline.cli import main as headrace

    jobs.put_inputs(f"{folder}/in", [40] * 4)
    model = f"--model={jobs.model_folder() / 'saved_model'}"
    code = headrace(
        [
            model,
            f"--input={folder}/in/*.parquet",
            f"--output={folder}/out",
            "--postprocess=tests.support.device_worker:meet",
        ]
    )
    output = jobs.read_output(f"{folder}/out")
    files = sorted((folder / "out").glob("*.parquet"))
    return {
        "code": code,
        "met": import_module("tests.support.device_worker").met,  # this file runs as __main__
        "equal": bool(np.array_equal(jobs.scores(output), jobs.expected_scores("saved_model", jobs.rows(0, 160), 40))),
        "kinds": [loose(pq.read_metadata(path).metadata)[b"headrace.device"].decode() for path in files],
    }


def refused() -> str:
    from headrace import Loading, load_model
    from headrace.transforms.errors import InvalidRequest

    try:
        load_model(str(jobs.model_folder() / "saved_model"), loading=Loading(device="GPU:7"))
    except InvalidRequest as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()
