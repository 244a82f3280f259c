"""Spark's predict_batch_udf on as many local threads as cores: python -m benchmarks.peers.spark_udf MODEL INPUTS OUTPUT

Arrow batches of 16,384 rows go to Python workers, which predict 4,096 rows at a time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from pyspark.ml.functions import predict_batch_udf  # type: ignore[import-not-found]
from pyspark.sql import SparkSession  # type: ignore[import-not-found]
from pyspark.sql.types import ArrayType, FloatType  # type: ignore[import-not-found]

from benchmarks.peers.columnar import Network


def make_predict(model: str) -> Callable[[], Callable[[Any], Any]]:
    def make() -> Callable[[Any], Any]:
        network = Network(model)  # once in each Python worker
        return lambda features: network.predict(features.astype("float32"))

    return make


if __name__ == "__main__":
    model, inputs, output = sys.argv[1:4]
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
        make_predict(model), return_type=ArrayType(FloatType()), batch_size=4096, input_tensor_shapes=[[64]]
    )
    rows = spark.read.parquet(inputs).select("id", scores("features").alias("scores"))
    rows.write.mode("overwrite").option("compression", "zstd").parquet(output)
    spark.stop()
