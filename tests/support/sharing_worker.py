"""A process that uses models: one JSON order a line on stdin, one JSON answer a line on stdout.

As a script it is given the two files that stand for these.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import sys
import time
from typing import Any

import numpy as np

SAID: list[str] = []


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        SAID.append(record.getMessage())


def pss() -> dict[str, int]:
    """This process's proportional set size in bytes: `shared` memory that is no file's, and its `own`.

    Not what its programs' files take: others that happen to run share those or do not.
    """
    with open("/proc/self/smaps_rollup") as rollup:
        sizes = dict(line.split()[:2] for line in rollup)
    return {"shared": 1024 * int(sizes["Pss_Shmem:"]), "own": 1024 * int(sizes["Pss_Anon:"])}


def digest(model: Any, seed: int) -> str:
    rng, found = np.random.default_rng(seed), hashlib.sha256()
    inputs = {s.name: rng.normal(size=[d or 4 for d in s.shape]).astype(s.dtype) for s in model.inputs.values()}
    for name, array in sorted(model.predict(inputs).items()):
        found.update(name.encode() + array.tobytes())
    return found.hexdigest()


def main() -> None:
    from headrace.transforms.models.load import load_model
    from headrace.transforms.models.loading import Loading
    from headrace.transforms.models.process_cache import shared_model

    logging.getLogger("headrace.transforms.models").addHandler(_Said())
    logging.getLogger("headrace.transforms.models").setLevel(logging.INFO)
    models: dict[str, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any = None
        if order["do"] == "load":
            started = time.perf_counter()
            SAID.clear()
            models[order["uri"]] = load_model(order["uri"], loading=Loading(model_sharing=order["sharing"]))
            answer = {"seconds": time.perf_counter() - started, "said": SAID, "nbytes": models[order["uri"]].nbytes}
        elif order["do"] == "load_shared":
            from headrace.transforms.models.pin import pin_model

            models[order["uri"]] = shared_model(pin_model(order["uri"]))
        elif order["do"] == "predict":
            answer = [digest(models[order["uri"]], seed) for seed in range(2)]
        elif order["do"] == "drop":
            del models[order["uri"]]
            gc.collect()
        elif order["do"] == "pss":
            gc.collect()
            answer = pss()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as sys.stdin, open(sys.argv[2], "w") as sys.stdout:
            main()
    else:
        main()
