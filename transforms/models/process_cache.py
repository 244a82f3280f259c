"""One model per process and device, however many threads ask for it; it lives as long as the process.

Its weights are the machine's: one copy for all processes of it.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from .load import load_model
from .model import Model
from .ref import ModelRef

_lock = threading.Lock()
_places: dict[tuple[ModelRef, str, str | None], _Place] = {}


class _Place:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.model: Model | None = None


def shared_model(
    ref: ModelRef,
    signature: str = "serving_default",
    *,
    model_sharing: str = "machine",
    device: str | None = None,
    **stream: Any,
) -> Model:
    """The process's `Model` of that reference, signature and device; the first to ask loads it, the others wait.

    `model_sharing` ("machine" or "process") and `stream` are `load_model`'s options, heeded by the one that loads. A failed
    load is not kept: it raises for the one that tried, and the next one tries anew.
    """
    with _lock:
        place = _places.setdefault((ref, signature, device), _Place())
    with place.lock:
        if place.model is None:
            place.model = load_model(ref, signature, model_sharing=model_sharing, device=device, **stream)
        return place.model


def load_again(ref: ModelRef, signature: str, device: str | None) -> Model:
    """A model that was pickled: the process's own copy of it. `Model` names this function by text, since it is above it."""
    return shared_model(ref, signature, device=device)


def _keep_loaded() -> None:
    """In a forked child no other thread goes on, so that no lock is ever released and no load ends."""
    global _lock, _places
    _lock = threading.Lock()
    loaded = {key: place.model for key, place in _places.items() if place.model is not None}
    _places = {key: _Place() for key in loaded}
    for key, place in _places.items():
        place.model = loaded[key]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_loaded)
