"""Images per second through ResNet50, JPEG bytes in Parquet, beside a loop that decodes with all cores, then predicts.

The weights are random, the images 224x224 noise smoothed to photographs' size. Each program runs as a process of its own on
few and on more images; the difference between the two counts, so that start-up is left out. Medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure, work
from benchmarks.measure import Goal, Machine
from headrace.pipeline.terminal.log import quiet_stderr

SIDE = 224
LEAST = 0.95
PROGRAMS = ("bare loop, all cores decode", "headrace")


@dataclass(frozen=True)
class Run:
    """One process: seconds from start to end, and the peak of its memory in bytes."""

    program: str
    images: int
    round: int
    wall: float
    cpu: float
    peak: int


@dataclass(frozen=True)
class Sizes:
    """Images in a file, files, and under how many names they are read for the small and for the large run."""

    images: int
    files: int
    small: int
    large: int


def main(argv: Sequence[str] | None = None) -> int:
    parser = measure.arguments("images", __doc__, runs=3, room="120 MB")
    parser.add_argument(
        "--headrace", default="", metavar="FLAGS", help="more flags for headrace, as --headrace=--batch_size=16"
    )
    asked = parser.parse_args(argv)
    cores = Machine.here().cores
    sizes = Sizes(4, cores, 0, 1) if asked.quick else Sizes(32, 2 * cores, 1, 4)
    with measure.work_folder(asked.work) as folder:
        # Making and exporting ResNet50 takes longer than all the rest of a quick run.
        make = _write_small if asked.quick else _write_resnet50
        model = work.once(f"{folder}/{'small' if asked.quick else 'resnet50'}", make)
        images = work.once(f"{folder}/jpeg-{sizes.images}-{sizes.files}", lambda target: _write_images(target, sizes))
        runs = _rounds(asked, folder, model, images, sizes)
    rates = {name: 1 / _per_image(runs, name, "wall") for name in PROGRAMS}
    machine = Machine.here()
    lines = [
        f"{machine}\nmedians of {1 if asked.quick else asked.runs}",
        "",
        f"{'':<30} {'images/s':>9} {'CPU-ms/image':>13} {'peak MiB':>9}",
    ]
    for name, rate in rates.items():
        peak = max(run.peak for run in runs if run.program == name) / (1 << 20)
        lines.append(f"{name:<30} {rate:>9.2f} {_per_image(runs, name, 'cpu') * 1000:>13.1f} {peak:>9,.0f}")
    goals = [Goal(f"headrace / {PROGRAMS[0]}", rates["headrace"] / rates[PROGRAMS[0]], LEAST, at_least=True)]
    everything = {**asdict(machine), "images_per_second": rates, "runs": [asdict(run) for run in runs]}
    measure.show(asked, "\n".join(lines), goals, everything)
    return 0


def _rounds(asked: argparse.Namespace, folder: str, model: str, images: str, sizes: Sizes) -> list[Run]:
    runs: list[Run] = []
    output = f"{folder}/out"
    for number in range(1 if asked.quick else asked.runs):
        for times in filter(None, (sizes.small, sizes.large)):
            inputs, count = work.under_more_names(images, times), sizes.images * sizes.files * times
            scores: list[np.ndarray[Any, Any]] = []
            for name in measure.in_turn(PROGRAMS, number):
                shutil.rmtree(output, ignore_errors=True)
                command = measure.python("benchmarks.peers.decoded_loop", model, inputs, output)
                if name == "headrace":
                    where = [f"--model={model}", f"--input={inputs}/*.parquet", f"--output={output}"]
                    flags = [f"--decode_image=image={SIDE}x{SIDE}", "--prediction=output_0=scores", "--keep=id"]
                    command = measure.python("pipeline", *where, *flags, *asked.headrace.split())
                used = measure.run(name, command, f"{folder}/log.txt")
                table = pq.read_table(sorted(glob.glob(f"{output}/*.parquet"))).sort_by("id")
                if table.num_rows != count:
                    raise SystemExit(f"{name} wrote {table.num_rows} rows, not {count}.")
                scores.append(np.stack(list(table["scores"].to_numpy())))
                if not np.allclose(scores[0], scores[-1], rtol=1e-3, atol=1e-5):
                    raise SystemExit("The programs' predictions differ: comparing them means nothing.")
                runs.append(Run(name, count, number, used.wall, used.cpu, used.peak))
                measure.show_progress(f"round {number + 1}: {name}, {count} images in {used.wall:.1f} s")
    shutil.rmtree(output)
    return runs


def _per_image(runs: Sequence[Run], name: str, field: str) -> float:
    """Seconds, from the difference between the two sizes of each round; from the one size of a quick run."""
    rounds: dict[int, list[Run]] = {}
    for run in runs:
        if run.program == name:
            rounds.setdefault(run.round, []).append(run)
    return median(
        (getattr(large, field) - sum(getattr(run, field) for run in less))
        / (large.images - sum(run.images for run in less))
        for *less, large in rounds.values()
    )


def _write_images(folder: str, sizes: Sizes) -> None:
    with quiet_stderr():
        import tensorflow as tf

    random = np.random.default_rng(0)
    for number in range(sizes.files):
        noise = random.integers(0, 256, (sizes.images, SIDE // 8, SIDE // 8, 3)).astype(np.float32)
        smooth = tf.cast(tf.image.resize(noise, (SIDE, SIDE), method="bicubic"), tf.float32)
        grain = random.normal(0, 8, smooth.shape).astype(np.float32)
        images = tf.cast(tf.clip_by_value(smooth + grain, 0, 255), tf.uint8)
        encoded = pa.array([tf.io.encode_jpeg(image, quality=90).numpy() for image in images], pa.binary())
        ids = pa.array(np.arange(sizes.images) + number * sizes.images)
        pq.write_table(
            pa.table({"id": ids, "image": encoded}), f"{folder}/part-{number:03d}.parquet", compression="zstd"
        )


def _write_resnet50(folder: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet_stderr():
        import keras

    keras.utils.set_random_seed(0)
    network = keras.applications.ResNet50(weights=None)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    keras.Model(image, network(keras.applications.resnet50.preprocess_input(image))).export(folder, verbose=False)


def _write_small(folder: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet_stderr():
        import keras

    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    hidden = keras.layers.Conv2D(8, 7, strides=4, activation="relu")(image / 255.0)
    scores = keras.layers.Dense(10, activation="softmax")(keras.layers.GlobalAveragePooling2D()(hidden))
    keras.Model(image, scores).export(folder, verbose=False)


if __name__ == "__main__":
    sys.exit(main())
