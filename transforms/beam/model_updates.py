"""Other models in place of the first while a pipeline runs, by `RunInference`'s conventions: the model at the path that comes,
pinned by each process when it loads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from ..errors import InvalidRequest
from ..models.load import load_model
from ..models.loading import Loading
from ..models.model import Model
from ..models.operations import check_stateless
from ..models.pin import pin_model
from ..models.ref import ModelRef
from ..predicting.devices import Device
from ..predicting.predictor import devices_for

_GRAPH = re.compile(r"/saved_model\.pb(txt)?$")


def load_replaceable(
    first: ModelRef, signature: str, loading: Loading, path: str | None
) -> tuple[Sequence[Device], list[Model]]:
    """Devices, and the model at the path on each; the first model where there is no path. Nothing but the caller keeps them:
    their memory is freed when another takes their place.
    """
    ref = first if not path else _pinned(first, path)
    devices = devices_for([ref], loading)
    models = [load_model(ref, signature, loading=loading.on(device.name)) for device in devices]
    for model in models:
        check_stateless(ref, model.operations)
    return devices, models


def _pinned(first: ModelRef, path: str) -> ModelRef:
    """A SavedModel's saved_model.pb stands for its folder, since Beam's patterns match files alone."""
    found = pin_model(
        _GRAPH.sub("", path),
        first.storage,
        unsafe=first.unsafe,
        allow_stateful=first.allow_stateful,
        import_modules=first.import_modules,
    )
    # A model of another format may follow a Keras model, and has no use for its custom objects.
    return replace(found, custom_objects=first.custom_objects) if found.is_keras else found


def check_update(update_model: Any) -> None:
    """Raises `InvalidRequest` for what is neither a collection nor a pattern."""
    if not isinstance(update_model, beam.PCollection | str | None) or update_model == "":
        raise InvalidRequest(
            "update_model names no models",
            expected="a PCollection of ModelMetadata, or a pattern of files as 'gs://bucket/models/*/saved_model.pb'",
            found=repr(update_model),
        )


def update_input(update_model: Any, pipeline: Any) -> tuple[AsSingleton, ...]:
    """The side input of the `ModelMetadata` that counts, if there is any."""
    if update_model is None:
        return ()
    if isinstance(update_model, str):
        from apache_beam.ml.inference.utils import WatchFilePattern  # every job imports this module

        update_model = pipeline | "WatchModels" >> WatchFilePattern(update_model)
    return (AsSingleton(update_model, default_value=None),)
