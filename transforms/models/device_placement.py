"""The device that a model lives on: its variables are made there, and its calls run there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..errors import InvalidRequest

Call = Callable[[Mapping[str, Any]], dict[str, Any]]

# One batch is computed while the next one is copied to the device and the last one from it.
_CALLS_AT_ONCE = 2
_gates: dict[str, threading.BoundedSemaphore] = {}


def full_name(device: str) -> str:
    """TensorFlow's own name ("/device:GPU:0") of what may be written shorter. Raises `InvalidRequest`: no such device."""
    import tensorflow as tf

    known = [logical.name for logical in tf.config.list_logical_devices()]
    name = "/device:" + device.removeprefix("/device:").upper()
    if name not in known:
        raise InvalidRequest(
            f"TensorFlow has no device {device!r} here",
            expected=f"one of {', '.join(known)}",
            found=device,
            cure="Name one of these, or leave the device to TensorFlow.",
        )
    return name


def device_name(wanted: str) -> str | None:
    """TensorFlow's own name of what `Loading.device` asks for; None leaves the choice to TensorFlow.

    Raises `InvalidRequest`: no such device.
    """
    import tensorflow as tf

    host_alone = wanted == "cpu" and not tf.config.list_logical_devices("GPU")
    return None if wanted == "auto" or host_alone else full_name({"cpu": "CPU:0", "gpu": "GPU:0"}.get(wanted, wanted))


def weights_leave_the_host(device: str | None) -> bool:
    """Whether variables made on the device are in a GPU's memory. None leaves the choice to TensorFlow: the first GPU."""
    import tensorflow as tf

    if device is not None:
        return ":GPU:" in device
    return bool(tf.config.list_logical_devices("GPU"))


def on(device: str | None) -> AbstractContextManager[Any]:
    """Places what the calling thread makes within the block on the device."""
    import tensorflow as tf

    return nullcontext() if device is None else tf.device(device)  # type: ignore[no-any-return, unused-ignore]


def placed(call: Call, device: str | None) -> Call:
    """The call, run on the device: its inputs are copied there, its results back to the host.

    Each device takes a few calls at once: its memory is bounded however many threads there are.
    """
    if device is None:
        return call
    gate = _gates.setdefault(device, threading.BoundedSemaphore(_CALLS_AT_ONCE))

    def on_device(tensors: Mapping[str, Any]) -> dict[str, Any]:
        import tensorflow as tf

        with gate:
            with tf.device(device):
                results = call(tensors)
            with tf.device("/device:CPU:0"):
                return tf.nest.map_structure(tf.identity, results, expand_composites=True)  # type: ignore[no-any-return, unused-ignore]

    return on_device
