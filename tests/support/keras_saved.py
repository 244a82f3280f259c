"""Keras models saved into the in-memory store, and what came of loading them."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headrace.transforms.models.keras_model.model import load
from headrace.transforms.models.model import Model
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.storage import Store, open_store
from headrace.transforms.storage.memory import put

_names = itertools.count()


def stored(data: bytes) -> tuple[Store, ModelRef]:
    uri = f"memory://keras/{next(_names)}.keras"
    ref = put(uri, data)
    return open_store(uri), ModelRef(uri, "keras", (ref,))


def loaded(data: bytes) -> Model:
    return load(*stored(data))


def saved(model: Any, folder: Path) -> bytes:
    model.save(path := folder / "model.keras")
    return path.read_bytes()


def repacked(data: bytes, change: Callable[[dict[str, bytes]], object], method: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with its members changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def replacing(name: str, content: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda members: members.update({name: content})


def unchanged(members: dict[str, bytes]) -> None:
    pass


def by_name(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, Mapping):
        return {name: np.asarray(value) for name, value in outputs.items()}
    several = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return {f"output_{i}": np.asarray(value) for i, value in enumerate(several)}


def assert_same_bits(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert found[name].tobytes() == value.tobytes(), name


def feed(model: Model, batch: Any) -> dict[str, Any]:
    import tensorflow as tf

    return dict(zip(model.inputs, tf.nest.flatten(batch), strict=True))
