"""The public names. Importing one loads only what it needs: `load_model` brings no Beam, `Predict` no TensorFlow."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "HeadraceError": "transforms.errors",
    "Model": "transforms.models.model",
    "ModelRef": "transforms.models.ref",
    "PlanShards": "transforms.plan",
    "Predict": "transforms.predict",
    "PredictShards": "transforms.predict",
    "StreamingModelHandler": "transforms.model_handler",
    "TensorSpec": "transforms.models.spec",
    "load_model": "transforms.models.load",
    "open_store": "transforms.storage",
    "pin_model": "transforms.models.ref",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'transforms' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
