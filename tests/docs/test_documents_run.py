"""The blocks of the documents that are not marked `test`, run all the same: headrace's commands in a bucket that has what they
name, and Python. What a block needs is put there before; of others' programs, and of what a machine here has not, each that is
left out is told here with the reason.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.pipeline import demo
from headrace.transforms.storage import open_store
from tests.docs.test_documents import commands, is_ours
from tests.support.jobs import put, put_inputs, put_model, put_table
from tests.support.orbax_checkpoints import real
from tests.support.strict import put_mixed, strict_model
from tests.support.warm import Warm, python

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "gs://bucket"
LEFT_OUT = {
    "make ": "a target of the Makefile",
    "python -m examples.": "tests/docs/test_examples.py runs these",
    "python examples/": "tests/docs/test_examples.py runs these too",
    "--device=gpu": "there may be no GPU",
    "--runner=DataflowRunner": "tests/pipeline/runners/test_dataflow.py submits these",
    "--on_error=skip_shard": "it ends with exit code 1, as tests/jobs/test_poison.py shows",
    "--input=delta+gs://": "tests/jobs/test_delta.py and test_iceberg.py read such tables",
    "gs://bucket/presets/": "tests/transforms/models/keras_model/test_hub_preset.py runs such presets",
    "RunInference(": "what it replaces, which reads from a true bucket alone",
    "import ray": "what it replaces, which is not installed",
    "from pyspark": "what it replaces, which is not installed",
    "from google.cloud import aiplatform": "what it replaces, a service",
}


def unmarked(page: Path) -> list[tuple[str, str]]:
    """Language and content of each block that tests/docs/test_readme.py does not run, and nothing above leaves out."""
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in found if not any(sign in block[1] for sign in LEFT_OUT)]


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if unmarked(page)]
Run = Callable[..., None]


@pytest.fixture
def bucket() -> Iterator[str]:
    before = dict(os.environ)
    with demo.emulated_bucket("bucket"):
        yield BUCKET
    os.environ.clear()
    os.environ.update(before)


def a_model_and_inputs(folder: Path, run: Run) -> None:
    put_model("saved_model", f"{BUCKET}/model")
    put_inputs(f"{BUCKET}/in", [30, 20])


def columns(folder: Path, run: Run) -> None:
    import tensorflow as tf

    class Health(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 4], tf.float32, "image"),
                tf.TensorSpec([None, 3], tf.float32, "numbers"),
            ]
        )
        def __call__(self, image: Any, numbers: Any) -> dict[str, Any]:
            return {"output_0": tf.reduce_sum(image, axis=1) + tf.reduce_sum(numbers, axis=1)}

    module = Health()
    tf.saved_model.save(module, str(folder / "model"), signatures=module.__call__.get_concrete_function())
    upload(folder / "model", "model")

    class Taxi(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
        def __call__(self, examples: Any) -> dict[str, Any]:
            features = {
                "age": tf.io.FixedLenFeature([], tf.int64),
                "height": tf.io.FixedLenFeature([], tf.float32),
                "words": tf.io.VarLenFeature(tf.string),
            }
            parsed = tf.io.parse_example(examples, features)
            return {"tip": tf.cast(parsed["age"], tf.float32) + parsed["height"]}

    taxi = Taxi()
    tf.saved_model.save(taxi, str(folder / "taxi"), signatures=taxi.__call__.get_concrete_function())
    upload(folder / "taxi", "models/taxi")
    pixels = pa.array([[1.0, 2.0, 3.0, 4.0]] * 9, pa.list_(pa.float32()))
    numbers = {name: pa.array([1.5] * 9, pa.float32()) for name in ("age", "height", "weight")}
    table = {
        "id": range(9),
        "day": ["Monday"] * 9,
        "payload": pa.StructArray.from_arrays([pixels], ["pixels"]),
        "customer": pa.StructArray.from_arrays([pa.array(range(9), pa.int64())], ["age"]),
        "words": [["a", "b"]] * 9,
    }
    put_table(f"{BUCKET}/in/part-0.parquet", pa.table({**table, **numbers}))


def dead_letters(folder: Path, run: Run) -> None:
    upload(Path(strict_model()), "model")
    bad = {7: "value", 900: "length"}
    put_mixed(f"{BUCKET}/in", [2_000], bad)
    put_mixed(f"{folder}/in", [2_000], bad)
    run(f"--model={strict_model()}", "--input=in/*.parquet", "--output=out", "--on_error=dead_letter")


def inputs(folder: Path, run: Run) -> None:
    a_model_and_inputs(folder, run)
    put_inputs(f"{BUCKET}/in/deeper", [10])
    for place in ("late/part-7", "other/part-8"):
        put_inputs(f"{BUCKET}/{place}", [5])
        (ref,) = open_store(BUCKET).list(f"{BUCKET}/{place}/")
        put(f"{BUCKET}/{place}.parquet", open_store(BUCKET).read(ref))
    put(f"{BUCKET}/lists/tonight.txt", f"{BUCKET}/other/part-8.parquet\n".encode())


def checkpoints(folder: Path, run: Run) -> None:
    upload(real("table"), "checkpoints")


def photos(folder: Path, run: Run) -> None:
    import tensorflow as tf

    class Brightness(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 224, 224, 3], tf.uint8, "pixels")])
        def __call__(self, pixels: Any) -> dict[str, Any]:
            return {"brightness": tf.reduce_mean(tf.cast(pixels, tf.float32), axis=[1, 2, 3])}

    module = Brightness()
    tf.saved_model.save(module, str(folder / "image"), signatures=module.__call__.get_concrete_function())
    upload(folder / "image", "image-model")

    class Detector(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8, "image")])
        def __call__(self, image: Any) -> dict[str, Any]:
            gray = tf.reduce_mean(tf.cast(image[0], tf.float32), -1)
            places = tf.cast(tf.where(gray >= tf.reduce_mean(gray)), tf.float32)
            boxes = tf.concat([places, places + 1], 1)
            return {"boxes": boxes, "scores": tf.ones([1, tf.shape(boxes)[0]])}

    detector = Detector()
    tf.saved_model.save(detector, str(folder / "own"), signatures=detector.__call__.get_concrete_function())
    upload(folder / "own", "detector")
    image = tf.io.encode_png(tf.zeros((8, 8, 3), tf.uint8)).numpy()
    (folder / "photos").mkdir()
    (folder / "photos/cat.png").write_bytes(image)
    table = pa.table({"name": ["cat.png"], "image": pa.array([image], pa.binary())})
    put_table(f"{BUCKET}/photos/part-0.parquet", table)


def dataflow(folder: Path, run: Run) -> None:
    import keras

    features = keras.Input((64,), name="features")
    keras.Model(features, keras.layers.Dense(10)(features)).save(folder / "model.keras")
    rows = pa.array([[0.5] * 64] * 900, pa.list_(pa.float32(), 64))
    put_table(f"{folder}/in/part-0.parquet", pa.table({"id": range(900), "features": rows}))


def migration(folder: Path, run: Run) -> None:
    import keras

    features = keras.Input((64,), name="features")
    model = keras.Model(features, keras.layers.Dense(10)(features))
    model.export(folder / "model", verbose=False)
    model.save(folder / "model.keras")
    upload(folder / "model", "model")
    put(f"{BUCKET}/model.keras", (folder / "model.keras").read_bytes())
    rows = pa.array([[0.5] * 64] * 9, pa.list_(pa.float32(), 64))
    put_table(f"{BUCKET}/in/part-0.parquet", pa.table({"id": range(9), "features": rows}))


def report(folder: Path, run: Run) -> None:
    put_model("saved_model", f"{BUCKET}/model")
    for day in (27, 28):
        put_inputs(f"{BUCKET}/in/2026-11-{day}", [30, 20])
    before = "2026-11-27"
    run(f"--model={BUCKET}/model", f"--input={BUCKET}/in/{before}/*.parquet", f"--output={BUCKET}/out/{before}")


def resuming(folder: Path, run: Run) -> None:
    a_model_and_inputs(folder, run)
    run(f"--model={BUCKET}/model", f"--input={BUCKET}/in/*.parquet", f"--output={BUCKET}/out")
    put_inputs(f"{folder}/in/day=1", [30])
    run(f"--model={BUCKET}/model", "--input=in/**/*.parquet", "--output=out")


def nothing(folder: Path, run: Run) -> None:
    """The page makes its own model and data."""


PREPARE = {
    "columns.md": columns,
    "dataflow.md": dataflow,
    "dead_letters.md": dead_letters,
    "images.md": photos,
    "inputs.md": inputs,
    "migration.md": migration,
    "models.md": checkpoints,
    "report.md": report,
    "reading.md": resuming,
    "resuming.md": resuming,
}


def upload(source: Path, name: str) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            put(f"{BUCKET}/{name}/{path.relative_to(source)}", path.read_bytes())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, bucket: str, warm: Warm, tmp_path: Path) -> None:
    def run(*argv: str) -> None:
        log = tmp_path / "log.txt"
        assert warm.wait(warm.start(argv, str(log), os.environ, str(tmp_path))) == 0, f"{argv}\n{log.read_text()}"

    PREPARE.get(page.name, nothing)(tmp_path, run)
    for language, content in unmarked(page):
        if language == "python":
            python(content, folder=str(tmp_path))
            continue
        for words in commands(content):
            if (argv := is_ours(words)) is not None:
                run(*argv)
            elif words[0] == "cp":
                subprocess.run(["sh", "-c", " ".join(words)], cwd=tmp_path, check=True)
            else:
                assert words == ["pip", "install", "."], words


def test_what_is_left_out_is_there() -> None:
    text = "".join(page.read_text("utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
    assert not [sign for sign in LEFT_OUT if sign not in text and "examples" not in sign]
