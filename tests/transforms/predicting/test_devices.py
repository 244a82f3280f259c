"""Replicas of a model on devices of their own, and shards spread over them; tried on logical CPU devices."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.pipeline.cli import main
from headrace.transforms.errors import InvalidRequest, UnsupportedModel
from headrace.transforms.models import device_placement as placement
from headrace.transforms.models.keras_model import model as keras_model
from headrace.transforms.models.load import load_model
from headrace.transforms.models.loading import Loading
from headrace.transforms.models.pin import pin_model
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.models.saved_model import tf2 as saved_model
from headrace.transforms.models.streaming.tensor_stream import StreamOptions
from headrace.transforms.predicting.devices import Device, choose_devices, cores, least_busy
from headrace.transforms.predicting.predictor import devices_for
from headrace.transforms.storage import open_store
from tests.support.device_worker import MODELS
from tests.support.jobs import model_folder, put_inputs
from tests.support.warm import python

ROOT = Path(__file__).resolve().parents[3]


needs_gpu = pytest.mark.skipif(not glob.glob("/dev/nvidia[0-9]*"), reason="needs an NVIDIA GPU, and there is none")


@pytest.fixture(scope="module", params=["CPU", pytest.param("GPU", marks=needs_gpu)])
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with three logical devices tells; its `kind` is what was cut into these."""
    command = [
        sys.executable,
        "-m",
        "tests.support.device_worker",
        str(tmp_path_factory.mktemp("devices")),
        request.param,
    ]
    environment = dict(os.environ)
    if request.param == "GPU":
        del environment["CUDA_VISIBLE_DEVICES"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if run.returncode == 3:
        pytest.skip(f"there is a GPU that TensorFlow does not see: {run.stderr[-1000:]}")
    assert run.returncode == 0, run.stderr[-4000:]
    return {"kind": request.param, **json.loads(run.stdout.splitlines()[-1])}


@pytest.mark.parametrize("name", ["exported", "table", "v1", "v1_reference", "keras"])
def test_a_model_lives_and_computes_on_the_device_named(worker: dict[str, Any], name: str) -> None:
    found, device = worker["models"][name], f"/device:{worker['kind']}:1"
    assert found["device"] == device
    if name != "table" or worker["kind"] == "CPU":  # tables of a checkpoint are the host's
        assert found["computed"] == [device]
    assert found["equal"], "another device, other numbers"
    # Reference variables of TensorFlow 1, and tables, are no variables that a function captures; strings are the host's.
    host = {"/device:CPU:0"} if name == "v1" and worker["kind"] == "GPU" else set()
    assert set(found["variables"]) == (set() if name in ("v1_reference", "table") else {device} | host)


def test_a_process_has_one_replica_for_each_device(worker: dict[str, Any]) -> None:
    assert worker["shared"] == [f"/device:{worker['kind']}:{i}" for i in range(3)]


def test_a_few_calls_at_once_are_let_through_to_a_device(worker: dict[str, Any]) -> None:
    assert worker["gate"] == 2


@pytest.mark.skipif(cores() < 2, reason="one core works on one shard at a time")
def test_a_job_spreads_its_shards_and_says_what_computed_them(worker: dict[str, Any]) -> None:
    job = worker["job"]
    assert job["code"] == 0
    assert job["equal"]
    assert job["kinds"] == [worker["kind"].lower()] * 4
    assert job["met"]
    assert all(sum(counts.values()) >= 2 and max(counts.values()) == 1 for counts in job["met"]), job["met"]


def test_a_device_that_is_not_there_is_told_with_those_that_are(worker: dict[str, Any]) -> None:
    assert "'GPU:7'" in worker["no such device"]
    assert f"/device:{worker['kind']}:2" in worker["no such device"]


def test_the_device_least_in_use_is_taken_and_the_first_of_equals() -> None:
    devices = [Device(name) for name in ("a", "b", "c")]
    with least_busy(devices) as first, least_busy(devices) as second:
        with least_busy(devices) as third, least_busy(devices) as fourth:
            assert (first, second, third, fourth) == (0, 1, 2, 0)
        with suppress(KeyError), least_busy(devices):
            raise KeyError
        with least_busy(devices) as again:
            assert again == 2
    with least_busy(devices) as alone:
        assert alone == 0


def test_without_a_gpu_it_is_the_cpu_or_an_error() -> None:
    assert choose_devices("auto") == choose_devices("cpu") == (Device(None, "cpu"),)
    with pytest.raises(InvalidRequest, match=r"no GPU.*--device=cpu"):
        choose_devices("gpu")


def test_one_device_is_taken_by_its_name() -> None:
    assert choose_devices("CPU:0") == (Device("/device:CPU:0", "cpu"),)
    with pytest.raises(InvalidRequest, match="'GPU:7'"):
        choose_devices("GPU:7")


def test_a_local_job_for_a_gpu_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_inputs(f"{tmp_path}/in", [3])
    flags = [
        f"--model={model_folder() / 'saved_model'}",
        f"--input={tmp_path}/in/*.parquet",
        f"--output={tmp_path}/out",
    ]
    assert main([*flags, "--device=gpu"]) == 2
    assert "TensorFlow sees no GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tflite_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.transforms.models import load

    ref = ModelRef("memory://model.tflite", "tflite", ())
    assert devices_for([ref], Loading(device="auto")) == (Device(None, "cpu"),)
    monkeypatch.setattr(load, "device_name", lambda _: "/device:GPU:0")
    with pytest.raises(UnsupportedModel, match="--device=cpu"):
        load.load_model(ref, loading=Loading(device="GPU:0"))


def test_a_step_for_the_cpu_hides_no_gpu_from_the_other_steps_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    gpu, hidden = SimpleNamespace(name="/physical_device:GPU:0", device_type="GPU"), list[Any]()
    physical = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind=None: [gpu] if kind == "GPU" else physical(kind)
    )
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind)))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *_: None)
    tflite = ModelRef("memory://model.tflite", "tflite", ())
    devices_for([tflite], Loading(device="auto"))
    devices_for([tflite], Loading(device="cpu"))
    assert not hidden
    devices_for([tflite], Loading(device="cpu"), whole_process=True)
    assert hidden == [([], "GPU")]


@pytest.mark.skipif(sys.platform != "linux", reason="only there has each thread a niceness of its own")
@pytest.mark.parametrize(("whole_process", "nicer"), [(True, 10), (False, 0)])
def test_threads_that_compute_yield_to_those_that_hold_the_lock(whole_process: bool, nicer: int) -> None:
    told = python(
        textwrap.dedent(f"""
        import os, threading
        from pathlib import Path
        from headrace.transforms.predicting.devices import choose_devices, set_up_tensorflow

        set_up_tensorflow(whole_process={whole_process})
        choose_devices("auto")
        nice = set()
        for thread in Path("/proc/self/task").iterdir():
            try:
                if (thread / "comm").read_text() == "tf_Compute\\n":
                    nice.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
            except ProcessLookupError:  # a thread that has ended meanwhile
                continue
        print(nice, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    """)
    )
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert told.strip() == f"{{{min(19, own + nicer)}}} {own}"


@pytest.mark.parametrize("name", ["exported", "v1", "keras"])
def test_however_little_may_wait_for_a_device_every_format_comes_through(name: str, tmp_path: Path) -> None:
    """Each takes its tensors in an order of its own, which need not be that of the bytes."""
    signature, inputs = next(iter(MODELS[name](tmp_path / name).items()))
    uri = str(tmp_path / name if (tmp_path / name).exists() else tmp_path / f"{name}.keras")
    ref, plain = pin_model(uri), load_model(uri, signature)
    module = keras_model if ref.format == "keras" else saved_model
    options = StreamOptions(piece_bytes=64, connections=3, host_bytes=1)
    found = module.load(open_store(uri), ref, signature, options).predict(inputs)
    for output, values in plain.predict(inputs).items():
        np.testing.assert_array_equal(found[output], values)


def test_weights_leave_the_host_for_a_gpu_alone() -> None:
    assert placement.weights_leave_the_host("/device:GPU:1")
    assert not placement.weights_leave_the_host("/device:CPU:1")
    assert not placement.weights_leave_the_host(None)
