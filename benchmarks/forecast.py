"""How far `plan --trial` is off: its forecast beside the job itself, for five kinds of models and data.

Each job is forecast by a process of its own from a part of its rows, and then run by another. Ratios are forecast by
measured: of the core seconds that shards took, of the whole job's seconds, from its first check to its end, and of the peak of
memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import measure, work
from benchmarks.measure import Goal, Machine
from headrace.transforms.storage import open_store

FILES = 8
COLUMNS = [f"column_{i:02d}" for i in range(40)]


@dataclass(frozen=True)
class Kind:
    """`rows` take about a quarter of a minute on two cores, `trial` of them a second or more. `model` makes a Keras model,
    `table` so many rows.
    """

    rows: int
    trial: int
    model: Callable[[], Any]
    table: Callable[[int], Any]
    flags: tuple[str, ...] = ()


def _small() -> Any:
    import keras

    return _dense(keras.Input((64,), name="x"), 256, 256, 10)


def _wide() -> Any:
    import keras

    return _dense(keras.Input((1024,), name="x"), 4096, 4096, 1000)


def _of_columns() -> Any:
    import keras

    return _dense(keras.Input((len(COLUMNS),), name="x"), 64, 1)


def _dense(inputs: Any, *units: int) -> Any:
    import keras

    x = inputs
    for size in units:
        x = keras.layers.Dense(size, activation="relu")(x)
    return keras.Model(inputs, x)


def _text() -> Any:
    import keras

    words = [f"word{i}" for i in range(10_000)]
    inputs = keras.Input((), name="x", dtype="string")
    tokens = keras.layers.TextVectorization(vocabulary=words, output_sequence_length=32)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10_002, 64)(tokens))
    return keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x))


def _images() -> Any:
    import keras

    x = inputs = keras.Input((96, 96, 3), name="x", dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(x)
    for filters in (16, 32, 64):
        x = keras.layers.Conv2D(filters, 3, strides=2, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def _vectors(size: int) -> Callable[[int], Any]:
    def table(rows: int) -> Any:
        import numpy as np
        import pyarrow as pa

        values = pa.array(np.random.default_rng(0).standard_normal(rows * size, dtype=np.float32))
        return pa.table({"id": np.arange(rows), "x": pa.FixedSizeListArray.from_arrays(values, size)})

    return table


def _many_columns(rows: int) -> Any:
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(0)
    return pa.table({"id": np.arange(rows)} | {name: random.random(rows, np.float32) for name in COLUMNS})


def _sentences(rows: int) -> Any:
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(12_000)])
    return pa.table({"id": np.arange(rows), "x": [" ".join(random.choice(words, 20)) for _ in range(rows)]})


def _jpegs(rows: int) -> Any:
    import numpy as np
    import pyarrow as pa
    import tensorflow as tf

    random = np.random.default_rng(0)
    some = [np.kron(random.integers(0, 255, (16, 16, 3), np.uint8), np.ones((10, 10, 1), np.uint8)) for _ in range(50)]
    encoded = [tf.io.encode_jpeg(image).numpy() for image in some]
    return pa.table({"id": np.arange(rows), "x": pa.array([encoded[i % 50] for i in range(rows)], pa.binary())})


KINDS = {
    "small": Kind(4_000_000, 400_000, _small, _vectors(64)),
    "wide": Kind(20_000, 2_000, _wide, _vectors(1024)),
    "columns": Kind(4_000_000, 400_000, _of_columns, _many_columns, (f"--feature=x={','.join(COLUMNS)}",)),
    "strings": Kind(2_000_000, 100_000, _text, _sentences),
    "images": Kind(20_000, 2_000, _images, _jpegs, ("--decode_image=x=96x96",)),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = measure.arguments("forecast", __doc__, runs=1, room="3 GB")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS), help="some of the jobs")
    asked = parser.parse_args(argv)
    lines, figures = [f"{'job':<9}{'core seconds':>22}{'job, s':>20}{'memory, MB':>20}   busy"], {}
    goals: list[Goal] = []
    with measure.work_folder(asked.work) as folder:
        for name in asked.kinds:
            for round_ in range(1 if asked.quick else asked.runs):
                figures[f"{name}-{round_}"] = found = _compared(folder, name, asked.quick)
                cells = (
                    f"{found['forecast'][what]:8.0f} /{found['real'][what]:6.0f} ={ratio:5.2f}"
                    for what, ratio in found["ratio"].items()
                )
                lines.append(f"{name:<9}{''.join(cells)}   {found['busy']:.0%}")
                measure.show_progress(lines[-1])
    machine = Machine.here()
    measure.show(asked, "\n".join([str(machine), *lines]), goals, {**asdict(machine), "figures": figures})
    return 0


def _compared(folder: str, name: str, quick: bool) -> dict[str, Any]:
    kind = KINDS[name]
    rows, trial = (kind.rows // 200, kind.trial // 100) if quick else (kind.rows, kind.trial)
    model = work.once(f"{folder}/{name}-model", lambda target: measure.apart(_make_model, name, target))
    # Made once in one file, and named many times: more rows, but no more bytes.
    inputs = work.once(f"{folder}/{name}-{rows}", lambda target: measure.apart(_make_table, name, rows, target))
    output, log = f"{folder}/{name}-out", f"{folder}/log"
    shutil.rmtree(output, ignore_errors=True)
    flags = [
        f"--model={model}/model.keras",
        f"--input={inputs}/*.parquet",
        f"--output={output}",
        "--keep=id",
        *kind.flags,
    ]
    measure.run(name, measure.python("headrace", "plan", *flags, f"--trial={trial}", "--json"), log)
    made = _document(log)["forecast"]
    used = measure.run(name, measure.python("headrace", *flags, "--json"), log)
    summary, measured = _document(log), made["trial"]
    core_seconds = made["core_hours"] * 3600
    forecast = {
        "core_seconds": core_seconds,
        "seconds": core_seconds / measured["cores"] + measured["load_seconds"],
        "megabytes": measured["peak_bytes"] / 1e6,
    }
    real = {"core_seconds": _core_seconds(output), "seconds": summary["seconds"], "megabytes": used.peak / 1e6}
    shutil.rmtree(output)
    ratio = {what: forecast[what] / real[what] for what in real}
    return {"trial": measured, "forecast": forecast, "real": real, "ratio": ratio, "busy": measured["busy"]}


def _document(log: str) -> dict[str, Any]:
    """The JSON that a command printed, among the lines of its log."""
    with open(log, encoding="utf-8") as file:
        text = file.read()
    document: dict[str, Any] = json.JSONDecoder().raw_decode(
        text[text.index("\n{\n") + 1 :] if text[0] != "{" else text
    )[0]
    return document


def _core_seconds(output: str) -> float:
    """Seconds of all shards, as the manifest has them."""
    import pyarrow.parquet as pq

    from headrace.transforms.jobs.job import SUCCESS, stored_object

    store = open_store(output)
    mark = stored_object(store, store.stat(f"{output}/{SUCCESS}"))
    tables = [pq.read_table(f"{output}/{name}") for name in mark["manifest"]]
    spent = [table[f"{part}_seconds"].to_numpy().sum() for table in tables for part in ("read", "predict", "write")]
    return float(sum(spent))


def _make_model(name: str, folder: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    KINDS[name].model().save(f"{folder}/model.keras")


def _make_table(name: str, rows: int, folder: str) -> None:
    import pyarrow.parquet as pq

    most = min(rows // FILES, 50_000)
    pq.write_table(KINDS[name].table(most), f"{folder}/0000.parquet", row_group_size=16_384)
    for copy in range(1, rows // most):
        os.link(f"{folder}/0000.parquet", f"{folder}/{copy:04d}.parquet")


if __name__ == "__main__":
    sys.exit(main())
