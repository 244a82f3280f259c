"""JPEG to scores with no framework: python -m benchmarks.peers.decoded_loop MODEL INPUTS OUTPUT [BATCH_ROWS]

A batch is decoded by a thread per core, then predicted by a loop that gives TensorFlow as many threads as it likes.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peers.columnar import Network, files
from headrace.transforms.container_limits import usable_cores


def pixels(data: bytes) -> Any:
    import tensorflow as tf

    return tf.io.decode_jpeg(data, channels=3).numpy().astype(np.float32)


if __name__ == "__main__":
    model, inputs, output = sys.argv[1:4]
    rows = int(sys.argv[4]) if len(sys.argv) > 4 else 32
    network = Network(model)
    with ThreadPoolExecutor(usable_cores()) as threads:
        for source, target in files(inputs, output):
            writer = None
            with pq.ParquetFile(source) as file:
                for batch in file.iter_batches(batch_size=rows):
                    images = np.stack(list(threads.map(pixels, batch.column("image").to_pylist())))
                    scores = network.predict(images)
                    lists = pa.FixedSizeListArray.from_arrays(pa.array(scores.reshape(-1)), scores.shape[1])
                    result = pa.record_batch({"id": batch.column("id"), "scores": lists})
                    writer = writer or pq.ParquetWriter(target, result.schema, compression="zstd")
                    writer.write_batch(result)
            if writer is not None:
                writer.close()
