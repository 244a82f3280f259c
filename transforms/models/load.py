"""From a URI to a model in memory, whatever its format."""

from __future__ import annotations

import functools
from typing import Any

from transforms.errors import InvalidRequest, SignatureNotFound
from transforms.models.model import Model
from transforms.models.ref import ModelRef, pin_model
from transforms.models.spec import ModelSpec
from transforms.models.stream import Progress, StreamOptions
from transforms.storage import StoreOptions, open_store

_DEFAULT = StreamOptions()


def load_model(
    model: str | ModelRef,
    signature: str = "serving_default",
    *,
    options: StoreOptions = StoreOptions(),
    connections: int = _DEFAULT.connections,
    in_flight_bytes: int = _DEFAULT.in_flight_bytes,
    progress: Progress | None = None,
    model_sharing: str = "process",
) -> Model:
    """Streams the model into memory; no byte of it touches a disk.

    `model` is the URI of a SavedModel's folder or of a `.keras` file (`gs://` or a local path), or a `ModelRef`, which
    carries its own store options. With `model_sharing="machine"`, the processes of this machine and user that load the same
    model so hold one copy of its weights, fetched once; where that cannot be, the log says why. Raises `NotAModel`,
    `SignatureNotFound`, `UnsupportedModel`, `CorruptModel`, `ObjectChanged`, `StorageError`.
    """
    ref = pin_model(model, options) if isinstance(model, str) else model
    place = _place(ref, model_sharing)
    stream = StreamOptions(connections=connections, in_flight_bytes=in_flight_bytes, progress=progress, place=place)
    loaded: Model = _format(ref).load(open_store(ref.uri, ref.options), ref, signature, stream)
    return loaded


def describe_model(
    model: str | ModelRef, signature: str | None = None, *, options: StoreOptions = StoreOptions()
) -> ModelSpec:
    """Reads only the graph and the directory of the weights, never a weight. Raises as `load_model` does.

    With a `signature`, it must exist, and what the spec counts is that signature's.
    """
    ref = pin_model(model, options) if isinstance(model, str) else model
    store = open_store(ref.uri, ref.options)
    named = (signature,) if ref.format == "saved_model" else ()
    spec: ModelSpec = _format(ref).describe(store, ref, *named)
    if signature is not None and signature not in spec.signatures:
        raise SignatureNotFound(
            f"{ref.uri} has no signature {signature!r}",
            expected=f"one of {', '.join(map(repr, spec.signatures))}",
            cure="Name one with --signature.",
        )
    return spec


def _place(ref: ModelRef, model_sharing: str) -> Any:
    if model_sharing not in ("machine", "process"):
        raise InvalidRequest(
            f"{model_sharing!r} says not who shares the weights",
            expected="'machine' or 'process'",
            cure="Leave model_sharing out.",
        )
    if model_sharing == "process":
        return None
    from transforms.models import machine_stream

    if reason := machine_stream.why_not():
        machine_stream.say_once(reason)
        return None
    return functools.partial(machine_stream.MachineStream, identity=machine_stream.machine_identity(ref))


def _format(ref: ModelRef) -> Any:
    if ref.format == "saved_model":
        from transforms.models import saved_model

        return saved_model
    if ref.format == "keras":
        from transforms.models import keras_archive

        return keras_archive
    raise ValueError(f"no loader for the format {ref.format!r} of {ref.uri}")
