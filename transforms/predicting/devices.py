"""The devices of a process: its cores, with TensorFlow's threads on them, or its GPUs."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from ..container_limits import usable_cores
from ..errors import InvalidRequest
from ..left_out import left_out
from ..models.device_placement import full_name

DEVICES = ("auto", "cpu", "gpu")

_NICER = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Device:
    """`name` is TensorFlow's; None is the host, where everything without another place runs.

    `kind` is "cpu" or the GPU's own name: the bits of a prediction may depend on it.
    """

    name: str | None = None
    kind: str = "cpu"


HOST = Device()


_processes = 1


def share_cores(processes: int) -> None:
    """This process is one of so many on the machine. Called before anything asks for its cores."""
    global _processes
    _processes = processes


def cores() -> int:
    """Cores that this process may use, within its container's quota, or its part of them, rounded up; it works on as many
    shards at once.
    """
    return -(-usable_cores() // _processes)


def set_up_tensorflow(wanted: str = "auto", *, whole_process: bool = False) -> None:
    """Threads, and which GPUs are seen, for `wanted` of `DEVICES`. GPU memory is taken as it is needed, not all at once.

    GPUs that are not wanted are hidden where the `whole_process` is ours: elsewhere somebody else may want them.

    One intra-op thread, since a shard per core keeps the cores busy, and then a batch gives the same bits everywhere;
    as many inter-op threads as shards in flight, since TensorFlow runs a function's operations in these.
    TensorFlow takes this only before its first operation: a process that has used it already keeps what it has.
    """
    with left_out("keras"):  # TensorFlow imports it to have it ready, which takes a third of the time
        import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores())
    except RuntimeError as error:
        _log.info("TensorFlow keeps its threads, %s intra-op: %s", intra_op_threads() or "as many as cores", error)
    gpus = tf.config.list_physical_devices("GPU")
    try:
        hidden = wanted == "cpu" and whole_process
        if hidden and gpus:
            tf.config.set_visible_devices([], "GPU")
        for gpu in () if hidden else gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except (RuntimeError, ValueError) as error:
        _log.info("TensorFlow keeps its GPUs and their memory as they are: %s", error)
    if whole_process and (hidden or not gpus):
        _start_runtime()


def _start_runtime() -> None:
    """Gives TensorFlow's threads less priority than Python's, on Linux: they inherit it from the thread that starts them.

    Otherwise a thread that holds the interpreter's lock would be set aside, for milliseconds, for one that computes, and all
    others wait for that lock. If TensorFlow already runs, its threads keep their priority.
    """
    import tensorflow as tf

    def start() -> None:
        thread = threading.get_native_id()
        try:
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICER))
        except OSError as error:  # in a sandbox
            _log.info("TensorFlow's threads have the claim to a core that all have: %s", error)
        tf.config.list_logical_devices()

    if sys.platform == "linux":
        starter = threading.Thread(target=start, name="headrace-start")
        starter.start()
        starter.join()


@cache
def intra_op_threads() -> int:
    """As in force in this process; 0 is TensorFlow's own choice. They change the bits of large matrix products."""
    import tensorflow as tf

    return int(tf.config.threading.get_intra_op_parallelism_threads())


def choose_devices(wanted: str) -> tuple[Device, ...]:
    """The devices for this process, each with a replica of the model: all GPUs that TensorFlow sees, the CPU, or one by name.

    Raises `InvalidRequest` where "gpu" is requested and there is none, and for a name that no device has.
    """
    import tensorflow as tf

    if wanted not in DEVICES:
        name = full_name(wanted)
        return tuple(device for device in _gpus() if device.name == name) or (Device(name),)
    gpus = _gpus()
    if gpus and wanted != "cpu":
        return gpus
    if wanted == "gpu":
        raise InvalidRequest(
            "TensorFlow sees no GPU on this machine",
            expected="a GPU, its driver, and TensorFlow with the CUDA libraries: pip install 'headrace[gpu]'",
            found=", ".join(device.name for device in tf.config.list_physical_devices()),
            cure="Fix that (on Dataflow, --worker_accelerator attaches GPUs), or choose --device=cpu or auto",
        )
    hosts = tf.config.list_logical_devices("CPU")
    return (HOST,) if len(hosts) == 1 and not gpus else tuple(Device(host.name) for host in hosts)


def _gpus() -> tuple[Device, ...]:
    import tensorflow as tf

    gpus, seen = tf.config.list_logical_devices("GPU"), tf.config.get_visible_devices("GPU")
    known = map(tf.config.experimental.get_device_details, seen) if len(seen) == len(gpus) else [{}] * len(gpus)
    kinds = [str(details.get("device_name", "gpu")) for details in known]
    return tuple(Device(gpu.name, kind) for gpu, kind in zip(gpus, kinds, strict=True))


_in_use: Counter[Device] = Counter()
_counting = threading.Lock()


@contextmanager
def least_busy(devices: Sequence[Device]) -> Iterator[int]:
    """The index of the device that this process uses least at the moment, the first of equals; in use within the block."""
    with _counting:
        chosen = min(range(len(devices)), key=lambda i: _in_use[devices[i]])
        _in_use[devices[chosen]] += 1
    try:
        yield chosen
    finally:
        with _counting:
            _in_use[devices[chosen]] -= 1
