"""Parquet through a SavedModel to Parquet, column by column, with no framework: what the loops here, those of other shapes, and
Ray share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class Network:
    """The serving signature: one tensor with a row for each, to float32 [rows, classes]."""

    def __init__(self, model: str, threads_per_operation: int = 0) -> None:
        """0 threads leaves their number to TensorFlow."""
        import tensorflow as tf

        if threads_per_operation:
            tf.config.threading.set_intra_op_parallelism_threads(threads_per_operation)
            tf.config.threading.set_inter_op_parallelism_threads(threads_per_operation)
        self._tensor = tf.constant
        self._loaded = tf.saved_model.load(model)  # its variables die with it
        self._signature = self._loaded.signatures["serving_default"]
        (self._input,) = self._signature.structured_input_signature[1]

    def seconds_alone(self, features: Any, batches: int) -> float:
        """CPU-seconds that the median of so many batches takes where nothing is read, copied or written."""
        given, seconds = self._tensor(features), []
        for _ in range(batches):
            start = time.process_time()
            self._signature(**{self._input: given})
            seconds.append(time.process_time() - start)
        return median(seconds)

    def predict(self, features: Any) -> Any:
        (scores,) = self._signature(**{self._input: self._tensor(features)}).values()
        return scores.numpy()


def features_of(batch: pa.RecordBatch) -> Any:
    """The column `features`, lists of one length, as [rows, width]."""
    features: Any = batch.column("features")
    return features.flatten().to_numpy().reshape(batch.num_rows, -1)


def predicted(
    batch: pa.RecordBatch, network: Network, tensor_of: Callable[[pa.RecordBatch], Any] = features_of
) -> pa.RecordBatch:
    """`id` and `scores` of each row."""
    scores = network.predict(tensor_of(batch))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), scores.shape[1])
    return pa.record_batch({"id": batch.column("id"), "scores": lists})


def run_file(
    source: str,
    target: str,
    network: Network,
    batch_rows: int,
    tensor_of: Callable[[pa.RecordBatch], Any] = features_of,
) -> None:
    """Writes `id` and `scores` of every row of `source` to `target`."""
    writer = None
    with pq.ParquetFile(source, pre_buffer=True) as file:
        for batch in file.iter_batches(batch_size=batch_rows, use_threads=False):
            result = predicted(batch, network, tensor_of)
            writer = writer or pq.ParquetWriter(target, result.schema, compression="zstd")
            writer.write_batch(result)
    if writer is not None:
        writer.close()


def files(inputs: str, output: str) -> list[tuple[str, str]]:
    """Source and target of each input file, in order; makes the output folder."""
    os.makedirs(output, exist_ok=True)
    return [(f"{inputs}/{name}", f"{output}/{name}") for name in sorted(os.listdir(inputs))]
