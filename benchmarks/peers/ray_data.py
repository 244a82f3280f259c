"""Ray Data's map_batches on Arrow batches in one actor: python -m benchmarks.peers.ray_data MODEL INPUTS OUTPUT"""

from __future__ import annotations

import os
import sys

import pyarrow as pa
import ray  # type: ignore[import-not-found]

from benchmarks.peers.columnar import Network, predicted

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Predict:
    def __init__(self, model: str) -> None:
        self._network = Network(model)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_batches([predicted(batch.combine_chunks().to_batches()[0], self._network)])


if __name__ == "__main__":
    model, inputs, output = sys.argv[1:4]
    ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": ROOT}})
    (
        ray.data.read_parquet(inputs)
        .map_batches(
            Predict,
            fn_constructor_args=[model],
            batch_format="pyarrow",
            batch_size=4096,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
        )
        .write_parquet(output, compression="zstd")
    )
    ray.shutdown()
