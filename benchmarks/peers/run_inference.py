"""Beam's RunInference, keyed, over rows: python -m benchmarks.peers.run_inference default|numpy MODEL.keras INPUTS OUTPUT

`default` takes TFModelHandlerNumpy as it is, which gives a tensor for each row; `numpy` gives it an inference function that
returns numpy rows. The handler loads by `keras.models.load_model`, so the model is the `.keras` file of the same network.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference

# Beam imports TensorFlow Hub for this function alone, which returns a local path as it is; TensorFlow Hub 0.16 needs a
# module that newer versions of setuptools lack.
sys.modules["tensorflow_hub"] = types.ModuleType("tensorflow_hub")
sys.modules["tensorflow_hub"].resolve = lambda path: path  # type: ignore[attr-defined]

from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerNumpy  # noqa: E402

SCHEMA = pa.schema([("id", pa.int64()), ("scores", pa.list_(pa.float32()))])


def numpy_results(
    model: Any, batch: Sequence[np.ndarray[Any, Any]], _: Mapping[str, Any], model_id: str | None = None
) -> Iterable[PredictionResult]:
    scores = model(np.stack(batch)).numpy()
    return [PredictionResult(example, score, model_id) for example, score in zip(batch, scores, strict=True)]


if __name__ == "__main__":
    kind, model, inputs, output = sys.argv[1:5]
    options = {"numpy": {"inference_fn": numpy_results}, "default": {}}[kind]
    handler = TFModelHandlerNumpy(model, min_batch_size=1024, max_batch_size=4096, **options)
    os.makedirs(output, exist_ok=True)
    with beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        (
            pipeline
            | beam.Create([f"{inputs}/{name}" for name in sorted(os.listdir(inputs))])
            | beam.io.ReadAllFromParquet()
            | beam.Map(lambda row: (row["id"], np.asarray(row["features"], np.float32)))
            | RunInference(KeyedModelHandler(handler))
            | beam.Map(lambda pair: {"id": pair[0], "scores": np.asarray(pair[1].inference)})
            | beam.io.WriteToParquet(f"{output}/part", SCHEMA, codec="zstd", file_name_suffix=".parquet")
        )
