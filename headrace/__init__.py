"""Batch inference for TensorFlow and Keras models over sharded Parquet, on Apache Beam.

    headrace.predict("gs://bucket/model", frame)                              # data in memory: a DataFrame, a table, arrays
    model = headrace.load_model("gs://bucket/model")                          # the model alone
    batches | headrace.Predict("gs://bucket/model", keep=["id"])              # in a Beam pipeline of your own
    headrace.run(model="gs://bucket/model", input="...", output="...")        # a whole job; on the command line:
    headrace --model=...

This module is the public API and nothing else. A name is imported when it is first used: `import headrace` loads neither
Beam nor TensorFlow.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline.python_api import inspect as inspect
    from .pipeline.python_api import plan as plan
    from .pipeline.python_api import run as run
    from .pipeline.python_api import verify as verify
    from .pipeline.python_result import JobResult as JobResult
    from .transforms.beam.model_handler import StreamingModelHandler as StreamingModelHandler
    from .transforms.beam.predict import Predict as Predict
    from .transforms.columns.rules import ColumnRules as ColumnRules
    from .transforms.errors import *  # noqa: F403
    from .transforms.models.load import describe_model as describe_model
    from .transforms.models.load import load_model as load_model
    from .transforms.models.loading import Loading as Loading
    from .transforms.models.model import Model as Model
    from .transforms.models.pin import pin_model as pin_model
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
    "ShardsFailed",
    "SignatureNotFound",
    "StorageError",
    "StoreUnavailable",
    "TooManyBadRows",
    "TooManyFailedShards",
    "UnsupportedModel",
    "WorkerMismatch",
)
_HOME = {
    "ColumnRules": "transforms.columns.rules",
    "Loading": "transforms.models.loading",
    "Model": "transforms.models.model",
    "ModelRef": "transforms.models.ref",
    "Predict": "transforms.beam.predict",
    "StoreOptions": "transforms.storage.store",
    "StreamingModelHandler": "transforms.beam.model_handler",
    "__version__": "transforms.versions",
    "describe_model": "transforms.models.load",
    "load_model": "transforms.models.load",
    "pin_model": "transforms.models.pin",
    "predict": "transforms.predicting.in_memory",
    **dict.fromkeys(("inspect", "plan", "run", "verify"), "pipeline.python_api"),
    "JobResult": "pipeline.python_result",
    **dict.fromkeys(_ERRORS, "transforms.errors"),
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    value = getattr(import_module(f"headrace.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


if (
    "apache_beam" in sys.modules and "IPython" in sys.modules
):  # a pipeline's first step may come before `headrace.Predict`
    import_module("headrace.transforms.beam.notebooks").let_beam_build_pipelines()
