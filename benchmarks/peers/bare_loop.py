"""One loop, no framework: python -m benchmarks.peers.bare_loop MODEL INPUTS OUTPUT [BATCH_ROWS]"""

from __future__ import annotations

import sys

from benchmarks.peers.columnar import Network, files, run_file

if __name__ == "__main__":
    model, inputs, output = sys.argv[1:4]
    network = Network(model)
    for source, target in files(inputs, output):
        run_file(source, target, network, int(sys.argv[4]) if len(sys.argv) > 4 else 4096)
