"""Batch inference for TensorFlow and Keras models over sharded Parquet, on Apache Beam.

    headrace.predict("gs://bucket/model", frame)                              # data in memory: a DataFrame, a table, arrays
    model = headrace.load_model("gs://bucket/model")                          # the model alone
    batches | headrace.Predict("gs://bucket/model", keep=["id"])              # in a Beam pipeline of your own
    headrace --model=gs://bucket/model --input=... --output=...               # a whole job, on the command line

This module is the public API and nothing else. A name is imported when it is first used: `import headrace` loads neither
Beam nor TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.transforms.models.pin import pin_model as pin_model

    from .transforms.beam.model_handler import StreamingModelHandler as StreamingModelHandler
    from .transforms.beam.predict import Predict as Predict
    from .transforms.columns.rules import ColumnRules as ColumnRules
    from .transforms.errors import *  # noqa: F403
    from .transforms.jobs.job import Loading as Loading
    from .transforms.models.load import describe_model as describe_model
    from .transforms.models.load import load_model as load_model
    from .transforms.models.model import Model as Model
    from .transforms.models.ref import ModelRef as ModelRef
    from .transforms.predicting.in_memory import predict as predict
    from .transforms.storage.store import StoreOptions as StoreOptions
    from .transforms.versions import __version__ as __version__

_ERRORS = (
    "AccessDenied",
    "AlreadyExists",
    "ClaimLost",
    "ColumnError",
    "CorruptModel",
    "DataError",
    "HeadraceError",
    "InvalidInferenceArgs",
    "InvalidRequest",
    "JobError",
    "ModelError",
    "NotAModel",
    "NotParquet",
    "NullFeature",
    "ObjectChanged",
    "ObjectNotFound",
    "OutputConflict",
    "OutputIncomplete",
    "SignatureNotFound",
    "StorageError",
    "StoreUnavailable",
    "TooManyBadRows",
    "UnsupportedModel",
    "WorkerMismatch",
)
_HOME = {
    "ColumnRules": "columns.rules",
    "Loading": "jobs.job",
    "Model": "models.model",
    "ModelRef": "models.ref",
    "Predict": "beam.predict",
    "StoreOptions": "storage.store",
    "StreamingModelHandler": "beam.model_handler",
    "__version__": "versions",
    "describe_model": "models.load",
    "load_model": "models.load",
    "pin_model": "models.pin",
    "predict": "predicting.in_memory",
    **dict.fromkeys(_ERRORS, "errors"),
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    value = getattr(import_module(f"headrace.transforms.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
