"""Time, memory and bytes to a ready model, beside copying it to a disk first and beside fetching its bytes alone.

A bucket on loopback (benchmarks/bucket.py) gives each byte as slowly as a real one. Every run is a process of its own; the
programs take turns, and medians are taken: compare figures of one sitting only.

All programs run on the same cores as the bucket. With no limit in all, those are busy with the bytes alone, and what is done
with the bytes is to be seen; with one, as the network of most machines in a cloud sets it, it is hidden behind the bytes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.picture import bars
from headrace.transforms.container_limits import usable_cores

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAYERS = 16
IN_FLIGHT = 256 << 20
MODELS = {"tf": "tf.Module, SavedModel", "export": "Keras export, SavedModel", "dense.keras": "Keras, .keras"}
PROGRAMS = ("headrace", "copy, one connection", "copy, many connections", "bare fetch")
# The time of headrace over that of each other program.
TIMES = {
    "copy, one connection": "time / copied over one connection",
    "copy, many connections": "time / copied over many connections",
    "bare fetch": "time / bare fetch of the same bytes",
}
MEMORY, BYTES = "peak memory / (weights + in flight)", "bytes fetched / (weights + graph)"
GOALS = dict(zip((*TIMES.values(), MEMORY, BYTES), (0.10, 0.60, 1.15, 1.05, 1.01), strict=True))
MAKE = """
import sys
import keras
import numpy as np
import tensorflow as tf

folder, layers, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class Dense(tf.Module):
    def __init__(self):
        noise = np.random.default_rng(1)
        scale = np.float32(width ** -0.5)
        self.kernels = [
            tf.Variable(noise.standard_normal((width, width), np.float32) * scale, name="kernel") for _ in range(layers)
        ]

    @tf.function(input_signature=[tf.TensorSpec((None, width), tf.float32, "x")])
    def serve(self, x):
        for kernel in self.kernels:
            x = tf.nn.relu(x @ kernel)
        return {"y": x}

module = Dense()
tf.saved_model.save(module, f"{folder}/tf", signatures={"serving_default": module.serve})
del module
model = keras.Sequential([keras.Input((width,), name="x")])
for _ in range(layers):
    model.add(keras.layers.Dense(width, activation="relu"))
model.save(f"{folder}/dense.keras")
model.export(f"{folder}/export", verbose=False)
"""


@dataclass(frozen=True)
class Run:
    """`peak` is bytes above the idle process; `fetched` bytes of objects that left the bucket; `weights` bytes in use."""

    model: str
    program: str
    round: int
    seconds: float
    peak: int
    fetched: int
    weights: int


@dataclass(frozen=True)
class Figures:
    date: str
    cores: int
    weights_mib: int
    connections: int
    latency_ms: float
    connection_mb_s: float
    total_mb_s: float
    rounds: int
    seconds: dict[str, dict[str, float]]
    peak_mib: dict[str, dict[str, float]]
    ratios: dict[str, dict[str, float]]
    goals: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", help="folder for models and copies, about six times --size (default: a new one)")
    parser.add_argument(
        "--size",
        type=int,
        default=4096,
        metavar="MIB",
        help="of each model; memory of five times as much is needed (default: %(default)s)",
    )
    parser.add_argument("--runs", type=int, default=3, help="rounds; the median counts (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--latency_ms", type=float, default=30.0, help="to the first byte (default: %(default)s)")
    parser.add_argument("--connection_mb_s", type=float, default=100.0, help="per connection (default: %(default)s)")
    parser.add_argument(
        "--total_mb_s",
        type=float,
        default=1000.0,
        help="of the bucket; 0: no limit, as fast as the cores that bucket and loader share allow (default: %(default)s)",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--bare", action="store_true", help="beside the bare fetch alone: for models too large to copy")
    parser.add_argument("--json", metavar="FILE", help="every run and the figures, for machines")
    parser.add_argument("--svg", metavar="FILE", help="the figures as a picture")
    parser.add_argument("--quick", action="store_true", help="16 MiB, one round: only shows that it runs")
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.size, asked.runs = 16, 1
    with _folder(asked.work) as folder:
        width = make_models(f"{folder}/models-{asked.size}", asked.size)
        runs: list[Run] = []
        for model in asked.models:
            # One at a time, since the bucket holds it in memory.
            with _bucket(f"{folder}/models-{asked.size}", model, asked) as url:
                runs += _rounds(asked, url, folder, width, model)
    figures = _figures(asked, runs)
    print("All of them run; so few bytes say nothing of speed." if asked.quick else _table(figures))
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump({**asdict(figures), "quick": asked.quick, "runs": [asdict(run) for run in runs]}, file, indent=1)
    if asked.svg:
        with open(asked.svg, "w", encoding="utf-8") as file:
            file.write(_picture(figures))
    return 0


@contextmanager
def _folder(given: str | None) -> Iterator[str]:
    if given:
        os.makedirs(given, exist_ok=True)
        yield os.path.abspath(given)
        return
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        yield folder


def make_models(folder: str, mebibytes: int) -> int:
    """Layers of one width whose kernels are as large as was asked; made once in each work folder."""
    width = math.isqrt(mebibytes * (1 << 20) // (4 * LAYERS))
    if not os.path.isdir(folder):
        print(f"making models of {mebibytes} MiB", file=sys.stderr)
        shutil.rmtree(f"{folder}.part", ignore_errors=True)
        os.makedirs(f"{folder}.part")
        _python("-c", MAKE, f"{folder}.part", str(LAYERS), str(width))
        os.rename(f"{folder}.part", folder)
    return width


@contextmanager
def _bucket(folder: str, model: str, asked: argparse.Namespace) -> Iterator[str]:
    habits = [f"--{name}={getattr(asked, name)}" for name in ("latency_ms", "connection_mb_s", "total_mb_s")]
    command = [sys.executable, "-m", "benchmarks.bucket", folder, model, *habits]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def _rounds(asked: argparse.Namespace, url: str, folder: str, width: int, model: str) -> Iterator[Run]:
    for number in range(asked.runs):
        task: dict[str, Any] = {"model": model, "width": width, "connections": asked.connections}
        files = _files(f"{folder}/models-{asked.size}", model)
        task |= {"folder": f"{folder}/copy", "files": files, "warm": asked.size * 5 << 18}
        predictions = set()
        weights = 0
        for program in _programs(asked):
            shutil.rmtree(task["folder"], ignore_errors=True)
            os.sync()  # else one program pays for writing what another left in the page cache
            before = _fetched(url)
            found = json.loads(_measure(url, {**task, "program": program}))
            fetched = _fetched(url) - before
            if program == "headrace":
                weights, task["bytes"] = found["weights"], min(fetched, max(files.values()))
            predictions.add(found["predictions"])
            yield Run(model, program, number, found["seconds"], found["peak"], fetched, weights)
            print(
                f"{model}, round {number + 1} of {asked.runs}: {program}: {found['seconds']:.2f} s",
                file=sys.stderr,
            )
        if len(predictions - {None}) != 1:
            raise SystemExit(f"The predictions of {model} differ: the comparison would mean nothing.")


def _programs(asked: argparse.Namespace) -> tuple[str, ...]:
    return (PROGRAMS[0], PROGRAMS[-1]) if asked.bare else PROGRAMS


def _files(models: str, model: str) -> dict[str, int]:
    """Names and sizes, in bytes."""
    if model.endswith(".keras"):
        return {model: os.path.getsize(f"{models}/{model}")}
    paths = [os.path.join(at, name) for at, _, names in os.walk(f"{models}/{model}") for name in names]
    return {os.path.relpath(path, models): os.path.getsize(path) for path in paths}


def _fetched(url: str) -> int:
    with urllib.request.urlopen(f"{url}/counts") as answer:
        return int(json.load(answer)["media_bytes"])


def _measure(url: str, task: dict[str, Any]) -> str:
    return _python("-m", "benchmarks.load_programs", json.dumps(task), STORAGE_EMULATOR_HOST=url)


def _python(*arguments: str, **more: str) -> str:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **more}
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{arguments[1]} ended with exit code {run.returncode}:\n{run.stderr[-4000:]}")
    return run.stdout.strip().rpartition("\n")[2]


def _figures(asked: argparse.Namespace, runs: Sequence[Run]) -> Figures:
    def medians(field: str, unit: float) -> dict[str, dict[str, float]]:
        return {
            model: {
                program: median(
                    getattr(run, field) / unit for run in runs if (run.model, run.program) == (model, program)
                )
                for program in _programs(asked)
            }
            for model in asked.models
        }

    seconds, peaks, fetched = medians("seconds", 1), medians("peak", 1), medians("fetched", 1)
    weights = {run.model: run.weights for run in runs}
    ratios = {}
    for model in asked.models:
        ours = seconds[model]["headrace"]
        ratios[model] = {TIMES[program]: ours / seconds[model][program] for program in _programs(asked)[1:]}
        ratios[model][MEMORY] = peaks[model]["headrace"] / (weights[model] + IN_FLIGHT)
        ratios[model][BYTES] = fetched[model]["headrace"] / weights[model]
    return Figures(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cores=usable_cores(),
        weights_mib=asked.size,
        connections=asked.connections,
        latency_ms=asked.latency_ms,
        connection_mb_s=asked.connection_mb_s,
        total_mb_s=asked.total_mb_s,
        rounds=asked.runs,
        seconds=seconds,
        peak_mib=medians("peak", 1 << 20),
        ratios=ratios,
        goals=GOALS,
    )


def _table(figures: Figures) -> str:
    total = f"{figures.total_mb_s:g} MB/s in all" if figures.total_mb_s else "no limit in all"
    machine = f"{figures.date}, {figures.cores} cores, models of {figures.weights_mib} MiB"
    bucket = f"{figures.latency_ms:g} ms to the first byte, {figures.connection_mb_s:g} MB/s per connection, {total}"
    lines = [
        f"{machine}, {figures.connections} connections, medians of {figures.rounds}",
        f"bucket on loopback: {bucket}; it shares the cores",
    ]
    for model, ratios in figures.ratios.items():
        lines += ["", MODELS[model]]
        for program in figures.seconds[model]:
            seconds, peak = figures.seconds[model][program], figures.peak_mib[model][program]
            lines.append(f"  {program:36} {seconds:8.2f} s  {peak:+8.0f} MiB")
        for name, ratio in ratios.items():
            mark = "kept" if ratio <= figures.goals[name] else "MISSED"
            lines.append(f"  {name:36} {ratio:8.3f}    goal {figures.goals[name]:.2f}  {mark}")
    return "\n".join(lines)


def _picture(figures: Figures) -> str:
    names = {
        "headrace": "headrace",
        "bare fetch": "fetching the bytes alone",
        "copy, many connections": f"copied over {figures.connections}, then loaded",
        "copy, one connection": "copied over one, then loaded",
    }
    rows: list[tuple[str, float, str]] = []
    for model, seconds in figures.seconds.items():
        rows.append(("", 0.0, MODELS[model]))
        rows += [
            (name, seconds[program], f"{seconds[program]:.2f} s")
            for program, name in names.items()
            if program in seconds
        ]
    return bars(
        f"Time to a ready model of {figures.weights_mib:,} MiB",
        f"{figures.latency_ms:g} ms to the first byte, {figures.connection_mb_s:g} MB/s per connection, "
        f"{figures.connections} connections, {figures.cores} cores shared with the bucket, {figures.date[:10]}",
        rows,
    )


if __name__ == "__main__":
    sys.exit(main())
