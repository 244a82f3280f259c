"""One model per process and device, however many threads ask for it; it lives as long as the process.

Its weights are the machine's: one copy for all processes of it.
"""

from __future__ import annotations

import os
import threading

from .load import load_model
from .loading import Loading
from .model import Model
from .ref import ModelRef
from .streaming.tensor_stream import Progress

_lock = threading.Lock()
_places: dict[tuple[ModelRef, str, str], _Place] = {}


class _Place:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.model: Model | None = None


def shared_model(
    ref: ModelRef,
    signature: str = "serving_default",
    loading: Loading = Loading(),
    progress: Progress | None = None,
) -> Model:
    """The process's `Model` of that reference, signature and device; the first to ask loads it, the others wait.

    `progress`, and all of `loading` but the device, count for the one that loads. A failed load is not kept: it raises for the
    one that tried, and the next one tries again.
    """
    with _lock:
        place = _places.setdefault((ref, signature, loading.device), _Place())
    with place.lock:
        if place.model is None:
            place.model = load_model(ref, signature, loading=loading, progress=progress)
        return place.model


def load_again(ref: ModelRef, signature: str, device: str | None) -> Model:
    """A model that was pickled: the process's own copy of it. `Model` names this function by text, since it is above it."""
    return shared_model(ref, signature, Loading().on(device))


def _keep_loaded() -> None:
    """A forked child has no other thread: no lock would ever be released, and no load would end."""
    global _lock, _places
    _lock = threading.Lock()
    loaded = {key: place.model for key, place in _places.items() if place.model is not None}
    _places = {key: _Place() for key in loaded}
    for key, place in _places.items():
        place.model = loaded[key]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_loaded)
