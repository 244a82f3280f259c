"""A thread per core over the files, one thread per operation, the bound to approach.

python -m benchmarks.peers.shard_threads MODEL INPUTS OUTPUT [BATCH_ROWS]
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks.peers.columnar import Network, files, run_file
from headrace.transforms.container_limits import usable_cores

if __name__ == "__main__":
    model, inputs, output = sys.argv[1:4]
    network = Network(model, threads_per_operation=1)
    batch_rows = int(sys.argv[4]) if len(sys.argv) > 4 else 4096
    with ThreadPoolExecutor(usable_cores()) as threads:
        for done in [threads.submit(run_file, *paths, network, batch_rows) for paths in files(inputs, output)]:
            done.result()
