"""From a URI to a model in memory, for every format."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..errors import InvalidRequest, SignatureNotFound, UnsupportedModel
from ..storage import StoreOptions, open_store
from ..storage.store import public_uri
from .device_placement import device_name, on, weights_leave_the_host
from .formats import format_of
from .gc_pause import old_objects_set_aside
from .loading import Loading
from .model import Model
from .operations import check_outside, check_runnable, check_stateless
from .pin import pin_model, unused_custom_objects
from .progress_line import ProgressLine
from .ref import ModelRef, file_name
from .spec import ModelSpec, Operations
from .streaming.tensor_stream import Progress, StreamOptions

_loads_in: int | None = None
"""The process in which TensorFlow first loaded a model."""

CustomObjects = Mapping[str, Any] | Sequence[str]
"""Classes and functions by name, or `module:name` strings that lead to them."""


@old_objects_set_aside()
def load_model(
    model: str | os.PathLike[str] | ModelRef,
    signature: str = "serving_default",
    *,
    loading: Loading = Loading(),
    storage: StoreOptions = StoreOptions(),
    progress: Progress | bool | None = None,
    weights: str | None = None,
    custom_objects: CustomObjects = (),
    unsafe: bool = False,
    import_modules: Sequence[str] = (),
) -> Model:
    """Streams the model into memory; no byte of it touches a disk.

    `model` is the URI of a SavedModel's folder, of a `.keras` file or the folder of its members, of a KerasHub preset's
    folder, of a folder of Orbax checkpoints (the newest step) or one step's, of a legacy HDF5 file, or,
    with `weights`, of a Keras model's config.json whose weights are at that URI. It may also be a `ModelRef`, which carries its
    own `storage`, `weights`, custom objects by name, and `unsafe`. `custom_objects` are classes and functions by name, or
    a list of `module:name`, that a Keras model needs; `unsafe` lets it run Python code of its own, such as lambdas, and lets
    a graph run operations that can reach files, the network or other processes. `import_modules` are modules whose import
    registers operations, such as "tensorflow_text". `signature` may also be a function's name, such as "__call__".
    `loading` is how it gets into memory: connections, one copy per machine or per process, and the device that holds and
    runs it, whatever `predict` is given. On a GPU each tensor is copied as soon as it is complete, and what waits for that in
    the host's memory stays near `loading.in_flight_bytes`. `storage` is for the store that the URI names. `progress=True`
    shows bytes, rate and time left on standard error; a function is called with bytes arrived and bytes in all.

    Raises `NotAModel`, `SignatureNotFound`, `UnsupportedModel`, `CorruptModel`, `ObjectChanged`, `StorageError`, and
    `InvalidRequest` where there is no such device.
    """
    ref = _pin(model, storage, weights, custom_objects, unsafe, import_modules)
    _check_process(ref)
    import_named(ref.import_modules)
    device = device_name(loading.device)
    away = weights_leave_the_host(device)
    if device is not None and away and not format_of(ref).runs_on_gpu:
        raise UnsupportedModel(
            f"{ref.uri} runs on the CPU alone",
            expected="a SavedModel or a Keras model for a GPU",
            found=format_of(ref).in_words,
            cure="Choose --device=cpu (loading=Loading(device='cpu')), or export the model again",
        )
    stream = StreamOptions(
        connections=loading.connections,
        in_flight_bytes=loading.in_flight_bytes,
        progress=ProgressLine(file_name(ref.uri.rstrip("/"))) if progress is True else progress or None,
        place=_place(ref, loading.model_sharing, away),
        host_bytes=loading.in_flight_bytes if away else None,
    )
    with _known(custom_objects), on(device):
        loaded = format_of(ref).reader.load(open_store(ref.uri, ref.storage), ref, signature, stream)
    loaded.device = device
    loaded.loads_again = not isinstance(custom_objects, Mapping) or not custom_objects
    return loaded


def describe_model(
    model: str | os.PathLike[str] | ModelRef,
    signature: str | None = None,
    *,
    storage: StoreOptions = StoreOptions(),
    weights: str | None = None,
    custom_objects: CustomObjects = (),
    unsafe: bool = False,
    import_modules: Sequence[str] = (),
) -> ModelSpec:
    """Reads only the graph and the directory of the weights, never a weight. Raises as `load_model` does.

    With a `signature`, it must exist, and what the spec counts is that signature's.
    """
    ref = _pin(model, storage, weights, custom_objects, unsafe, import_modules)
    import_named(ref.import_modules)
    store = open_store(ref.uri, ref.storage)
    with _known(custom_objects):
        spec = format_of(ref).reader.describe(store, ref, signature)
    if signature is not None and signature not in spec.signatures:
        raise SignatureNotFound(
            f"{ref.uri} has no signature {signature!r}",
            expected=f"one of {', '.join(map(repr, spec.signatures))}",
            cure="Name one with --signature.",
        )
    if signature is not None and signature in spec.operations:
        check_runnable(ref, spec.operations[signature])
        check_outside(ref, spec.operations[signature])
    return spec


def describe_for_job(ref: ModelRef, signature: str) -> ModelSpec:
    """As `describe_model`. Also raises `UnsupportedModel` where predictions would depend on how rows are split."""
    spec = describe_model(ref, signature)
    check_stateless(ref, spec.operations.get(signature, Operations()))
    return spec


def import_named(modules: Sequence[str]) -> None:
    """Raises `InvalidRequest` where one cannot be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # the module may raise anything, and a script exits
            raise InvalidRequest(
                f"The module {name!r} cannot be imported",
                expected="a module that registers a model's operations (--import_module, import_modules=…)",
                found=f"{type(error).__name__}: {error}",
                cure="Repeat --import_module for each module"
                if "," in name
                else "Install it where the job starts and on the workers, in a build for this TensorFlow",
            ) from error


def _pin(
    model: str | os.PathLike[str] | ModelRef,
    storage: StoreOptions,
    weights: str | None,
    custom_objects: CustomObjects,
    unsafe: bool,
    import_modules: Sequence[str],
) -> ModelRef:
    if isinstance(model, ModelRef):
        ref = model
    else:
        names = () if isinstance(custom_objects, Mapping) else tuple(custom_objects)
        ref = pin_model(
            model, storage, weights=weights, custom_objects=names, unsafe=unsafe, import_modules=import_modules
        )
    if isinstance(custom_objects, Mapping) and custom_objects and not ref.is_keras:
        raise unused_custom_objects(ref, list(custom_objects))
    return ref


def _known(custom_objects: CustomObjects) -> AbstractContextManager[Any]:
    if not isinstance(custom_objects, Mapping) or not custom_objects:
        return nullcontext()
    import keras

    return keras.saving.CustomObjectScope(dict(custom_objects))


def _check_process(ref: ModelRef) -> None:
    """Raises `UnsupportedModel` in a process forked from one that had loaded a model: TensorFlow's threads ended there, and
    loading would wait for them for ever.
    """
    global _loads_in
    if format_of(ref).runs_on_tensorflow:
        _loads_in = _loads_in or os.getpid()
        if _loads_in != os.getpid():
            raise UnsupportedModel(
                f"{public_uri(ref.uri)} cannot be loaded in a process that was forked after a model was loaded",
                expected="a process of its own, in which TensorFlow has not started",
                found=f"process {os.getpid()}, forked from {_loads_in}",
                cure="Start the process with multiprocessing's 'spawn', or load models only after the fork",
            )


def _place(ref: ModelRef, model_sharing: str, away: bool) -> Any:
    if model_sharing == "process":
        return None
    from .streaming import shared_stream as machine_stream

    if reason := "they go to the GPU, which each process has a copy in" if away else machine_stream.why_not(ref):
        machine_stream.say_once(reason)
        return None
    return functools.partial(machine_stream.MachineStream, identity=machine_stream.machine_identity(ref))
