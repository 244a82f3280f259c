"""Spark's predict_batch_udf on as many local threads as cores: python -m benchmarks.peers.spark_udf MODEL INPUTS OUTPUT [SHAPE]

Arrow batches of 16,384 rows go to Python workers, which predict 4,096 rows at a time, or as many as the shape's loop.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from pyspark.ml.functions import predict_batch_udf  # type: ignore[import-not-found]
from pyspark.sql import SparkSession  # type: ignore[import-not-found]
from pyspark.sql.functions import array, flatten  # type: ignore[import-not-found]
from pyspark.sql.types import ArrayType, FloatType  # type: ignore[import-not-found]

from benchmarks.peers.columnar import Network
from benchmarks.shape_programs import COLUMNS, SHAPES, SIDE

# What the model takes of a row; elsewhere 64 numbers.
TENSORS = {"columns": [[COLUMNS]], "text": None, "nested": [[SIDE, SIDE]]}


def make_predict(model: str) -> Callable[[], Callable[[Any], Any]]:
    def make() -> Callable[[Any], Any]:
        network = Network(model)  # once in each Python worker
        return lambda given: network.predict(given if given.dtype == object else given.astype("float32"))

    return make


if __name__ == "__main__":
    model, inputs, output, shape = [*sys.argv[1:], ""][:4]
    os.environ["PYSPARK_PYTHON"] = sys.executable  # else its workers take whichever python3 comes first
    cores = len(os.sched_getaffinity(0))
    spark = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.driver.memory", "6g")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "16384")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    scores = predict_batch_udf(
        make_predict(model),
        return_type=ArrayType(FloatType()),
        batch_size=SHAPES[shape].batch_rows if shape else 4096,
        input_tensor_shapes=TENSORS.get(shape, [[64]]),
    )
    packed = {"columns": array(*[f"c{i}" for i in range(COLUMNS)]), "nested": flatten("x"), "": "features"}
    rows = spark.read.parquet(inputs).select("id", scores(packed.get(shape, "x")).alias("scores"))
    rows.write.mode("overwrite").option("compression", "zstd").parquet(output)
    spark.stop()
