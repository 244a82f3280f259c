"""Images of their own sizes, in jobs, in memory and in pipelines: equal to the model itself, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.util import assert_that

import headrace
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.jobs.job import JOB_RECORD, fingerprint_of, stored_object
from headrace.transforms.storage import open_store
from tests.support.exif_images import jpeg, picture, seen
from tests.support.jobs import put, put_table, read_output

SIZES = ((16, 24), (33, 9), (5, 40), (16, 24), (1, 1))
TURNS = (1, 6, 3, 8, 1)
OWN: dict[str, Any] = {"decode_image": {"image": "own"}}
RULES = ColumnRules(decode_image=(("image", "own"),))


def table() -> pa.Table:
    import tensorflow as tf

    encoded = [jpeg(picture(*size, seed=i), turn) for i, (size, turn) in enumerate(zip(SIZES, TURNS, strict=True))]
    encoded[-1] = tf.io.encode_png(picture(7, 11)).numpy()
    return pa.table({"id": range(len(encoded)), "image": pa.array(encoded, pa.binary())})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What it finds in one image, with and without a batch dimension; `any` takes any number of images of one size."""
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(tf.random.stateless_normal((3, 3, 3, 2), (4, 2)))

    def features(image: Any) -> Any:
        return tf.nn.conv2d(tf.cast(image, tf.float32) / 255, module.w, 2, "SAME")

    def detect(image: Any) -> Any:
        found = features(image)
        score = found[0, ..., 0]
        places = tf.where(score > tf.reduce_mean(score))
        scores = tf.gather_nd(score, places)
        return {
            "mean": tf.reduce_mean(found, (1, 2)),
            "map": found,
            "boxes": places,
            "scores": scores[tf.newaxis],
            "count": tf.size(scores),
            "labels": tf.constant(["a", "b"]),
        }

    def any_number(image: Any) -> Any:
        found = features(image)
        return {"mean": tf.reduce_mean(found, (1, 2)), "map": found}

    folder = str(tmp_path_factory.mktemp("models") / "m")
    signatures = {
        "serving_default": tf.function(detect).get_concrete_function(
            tf.TensorSpec([1, None, None, 3], tf.uint8, "image")
        ),
        "any": tf.function(any_number).get_concrete_function(tf.TensorSpec([None, None, None, 3], tf.uint8, "image")),
    }
    tf.saved_model.save(module, folder, signatures)
    return folder


def upright() -> list[Any]:
    """The pixels of each image as it is seen."""
    import tensorflow as tf

    rows = zip(table()["image"].to_pylist(), TURNS, strict=True)
    return [seen(tf.io.decode_image(one).numpy(), turn) for one, turn in rows]


def wanted(model: str, signature: str = "serving_default") -> list[dict[str, Any]]:
    """By TensorFlow alone, an image at a time."""
    import tensorflow as tf

    loaded = tf.saved_model.load(model)
    call = loaded.signatures[signature]
    return [{name: tensor.numpy() for name, tensor in call(tf.constant(one[None])).items()} for one in upright()]


def check(
    found: pa.Table, expected: list[dict[str, Any]], batched: tuple[str, ...] = ("mean", "map", "scores")
) -> None:
    assert found.num_rows == len(expected)
    for name in expected[0]:
        for value, row in zip(found[name].to_pylist(), expected, strict=True):
            array = row[name][0] if name in batched else row[name]
            assert np.array_equal(np.array(value, array.dtype).reshape(array.shape), array), name


def test_a_job_from_a_bucket_equals_the_model_itself_without_bad_images(bucket: str, model: str) -> None:
    for path in sorted(Path(model).rglob("*")):
        if path.is_file():
            put(f"{bucket}/m/{path.relative_to(model)}", path.read_bytes())
    bad = pa.table({"id": [5, 6], "image": pa.array([b"GIF89a", None], pa.binary())})
    put_table(f"{bucket}/in/a.parquet", table().slice(0, 3))
    put_table(f"{bucket}/in/b.parquet", pa.concat_tables([bad, table().slice(3)]), row_group_size=3)
    given: dict[str, Any] = {
        "model": f"{bucket}/m",
        "input": f"{bucket}/in/*",
        "output": f"{bucket}/out",
        "report": "none",
        "on_error": "dead_letter",
        "max_bad_rows": "50%",
    }
    drawn = headrace.plan(**given, **OWN).text
    assert "of 1 row (images of their own size)" in drawn
    result = headrace.run(**given, **OWN, keep=["id"])
    assert (result.rows, result.bad_rows) == (7, 2)
    out = read_output(f"{bucket}/out")
    check(out, wanted(model))
    kinds = {field.name: str(field.type).replace(" not null", "").replace("element: ", "") for field in out.schema}
    assert kinds["boxes"] == "list<fixed_size_list<int64>[2]>"
    assert kinds["map"] == "list<list<fixed_size_list<float>[2]>>"
    assert (kinds["scores"], kinds["count"]) == ("list<float>", "int32")
    assert len({len(row or ()) for row in out["boxes"].to_pylist()}) > 2
    store = open_store(bucket)
    record = stored_object(store, store.stat(f"{bucket}/out/{JOB_RECORD}"))
    assert record["models"][""]["decode_image"] == [["image", "own"]]
    assert record["models"][""]["ignore_exif"] is False
    sampled = headrace.verify(**given, **OWN, keep=["id"], sample=3).document
    assert (sampled["sound"], sampled["checks"]["sample"]["looked_at"]) == (True, 3)
    with pytest.raises(headrace.OutputConflict, match="ignore_exif differ"):
        headrace.run(**given, **OWN, keep=["id"], ignore_exif=True)


def test_an_output_that_was_begun_before_exif_counted_goes_on_with_the_flag() -> None:
    def fingerprint(**more: Any) -> str:
        return fingerprint_of({"models": {"": {"digest": "d", "decode_image": [["image", [2, 3]]]} | more}})

    assert fingerprint() == fingerprint(ignore_exif=True) != fingerprint(ignore_exif=False)


def test_predict_in_memory_and_in_a_pipeline(model: str) -> None:
    expected = wanted(model)
    loaded = headrace.load_model(model)
    check(headrace.predict(loaded, table(), **OWN), expected)
    some = headrace.predict(model, table(), **OWN, keep=[], outputs=["count"], predictions={"count": "n"})
    assert some["n"].to_pylist() == [row["count"] for row in expected]
    as_stored = headrace.predict(loaded, table(), **OWN, ignore_exif=True)
    assert as_stored["mean"][0] == pa.scalar(expected[0]["mean"][0].tolist(), as_stored["mean"].type)
    assert len(as_stored["map"][1]) != len(expected[1]["map"][0])
    any_number = headrace.predict(model, table(), **OWN, signature="any")
    check(any_number, wanted(model, "any"))

    def same(batches: list[pa.RecordBatch]) -> None:
        check(pa.Table.from_batches(batches), expected)

    def same_counts(results: list[Any]) -> None:
        assert sorted(row.inference["count"] for row in results) == sorted(row["count"] for row in expected)

    pixels = upright()
    with beam.Pipeline() as pipeline:
        batch = table().to_batches()[0]
        once = pipeline | beam.Create([0])
        assert_that(once | "Batch" >> beam.Map(lambda _: batch) | headrace.Predict(model, rules=RULES), same)
        rows = once | "Rows" >> beam.FlatMap(lambda _: [{"image": one} for one in pixels])
        handler = headrace.StreamingModelHandler(model, rules=RULES)
        assert_that(rows | RunInference(handler), same_counts, label="counts")


def test_what_cannot_be_is_refused_before_anything_is_written(model: str, tmp_path: Path) -> None:
    put_table(f"{tmp_path}/in/a.parquet", table())
    given: dict[str, Any] = {"model": model, "input": f"{tmp_path}/in/*", "output": f"{tmp_path}/out"}
    with pytest.raises(headrace.InvalidRequest, match=r"batch_size=4 does not fit images of their own size"):
        headrace.plan(**given, **OWN, signature=["any"], batch_size=4)
    headrace.plan(**given, **OWN, batch_size=1)
    with pytest.raises(headrace.InvalidRequest, match=r"jit_compile cannot compile .* images of their own size"):
        headrace.plan(**given, **OWN, signature=["any"], jit_compile=True)
    with pytest.raises(headrace.InvalidRequest, match=r"decode_image=.*\"owm\".* is not a size.*TENSOR=own"):
        headrace.predict(model, table(), decode_image={"image": "owm"})
    for call in (headrace.plan, headrace.predict):
        arguments: dict[str, Any] = given if call is headrace.plan else {"model": model, "data": table()}
        with pytest.raises(headrace.InvalidRequest, match="ignore_exif does nothing without decode_image"):
            call(**arguments, ignore_exif=True)
    with pytest.raises(headrace.ColumnError, match=r"decode_image=\{'image': 'own'\}"):
        headrace.plan(**given, features={"image": "image"})
    assert not (tmp_path / "out").exists()
