"""Ray Data's map_batches on Arrow batches in one actor: python -m benchmarks.peers.ray_data MODEL INPUTS OUTPUT [SHAPE]"""

from __future__ import annotations

import os
import sys

import pyarrow as pa
import ray  # type: ignore[import-not-found]

from benchmarks.peers.columnar import Network, features_of, predicted
from benchmarks.shape_programs import SHAPES

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Predict:
    def __init__(self, model: str, shape: str) -> None:
        self._network, self._tensor_of = Network(model), SHAPES[shape].tensor if shape else features_of

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.combine_chunks().to_batches()[0]
        return pa.Table.from_batches([predicted(rows, self._network, self._tensor_of)])


if __name__ == "__main__":
    model, inputs, output, shape = [*sys.argv[1:], ""][:4]
    ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": ROOT}})
    (
        ray.data.read_parquet(inputs)
        .map_batches(
            Predict,
            fn_constructor_args=[model, shape],
            batch_format="pyarrow",
            batch_size=SHAPES[shape].batch_rows if shape else 4096,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
        )
        .write_parquet(output, compression="zstd")
    )
    ray.shutdown()
