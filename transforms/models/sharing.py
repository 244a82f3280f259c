"""One model per process, however many threads ask for it; it lives as long as the process."""

from __future__ import annotations

import threading
from typing import Any

from transforms.models.load import load_model
from transforms.models.model import Model
from transforms.models.ref import ModelRef

_lock = threading.Lock()
_places: dict[tuple[ModelRef, str], _Place] = {}


class _Place:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.model: Model | None = None


def shared_model(ref: ModelRef, signature: str = "serving_default", **stream: Any) -> Model:
    """The process's `Model` of that reference and signature; the first to ask loads it, the others wait.

    `stream` are `load_model`'s options, heeded by the one that loads. A failed load is not kept: it raises for the one
    that tried, and the next one tries anew.
    """
    with _lock:
        place = _places.setdefault((ref, signature), _Place())
    with place.lock:
        if place.model is None:
            place.model = load_model(ref, signature, **stream)
        return place.model
