"""Inputs and outputs of unknown rank: shapes from the columns, and from one row that is run before the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that

import headrace
from tests.support.around import record_of
from tests.support.jobs import put, put_table, read_output


def table() -> pa.Table:
    x = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 4)
    return pa.table({"id": range(9), "x": lists, "n": pa.array([None, *range(8)], pa.float32())})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`y` and `s` of unknown rank, `n` of one number a row."""
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(0.3)
    module.serve = tf.function(
        lambda x, n: {"y": x * module.w, "s": tf.reduce_sum(x, tf.range(1, tf.rank(x))), "n": n + 1.0},
        input_signature=[tf.TensorSpec(None, tf.float32, "x"), tf.TensorSpec([None], tf.float32, "n")],
    )
    folder = str(tmp_path_factory.mktemp("ranks") / "m")
    tf.saved_model.save(module, folder, signatures=module.serve)
    return folder


def check(found: pa.Table, model: str, rows: pa.Table) -> None:
    import tensorflow as tf

    x = np.array(rows["x"].to_pylist(), np.float32)
    loaded = tf.saved_model.load(model)
    wanted = loaded.signatures["serving_default"](x=tf.constant(x), n=tf.zeros([len(x)]))
    assert found.schema.field("y").type.num_fields == 1
    assert np.array(found["y"].to_pylist(), np.float32).tobytes() == wanted["y"].numpy().tobytes()
    assert np.array(found["s"].to_pylist(), np.float32).tobytes() == wanted["s"].numpy().tobytes()


def test_a_job_from_a_bucket(bucket: str, model: str) -> None:
    for path in sorted(Path(model).rglob("*")):
        if path.is_file():
            put(f"{bucket}/m/{path.relative_to(model)}", path.read_bytes())
    put_table(f"{bucket}/in/a.parquet", table())
    given: dict[str, Any] = {"model": f"{bucket}/m", "input": f"{bucket}/in/*", "output": f"{bucket}/out"}
    letters: dict[str, Any] = {"on_error": "dead_letter", "max_bad_rows": "20%"}
    assert "list<" in " ".join(headrace.plan(**given, **letters).text.split())
    # Its first row is null, so that the second one is looked at.
    headrace.run(**given, **letters, report="none")
    found = read_output(f"{bucket}/out")
    assert found["id"].to_pylist() == list(range(1, 9))
    check(found, model, table().slice(1))
    assert record_of(f"{bucket}/out")["models"][""]["output_rank"] == {"s": 1, "y": 2}
    again = headrace.run(**given, **letters, report="none")
    assert again.computed_rows == 0


def test_predict_in_memory_and_in_a_pipeline(model: str) -> None:
    rows = table().slice(1)
    check(headrace.predict(model, rows), model, rows)

    def same(batches: list[pa.RecordBatch]) -> None:
        check(pa.Table.from_batches(batches), model, rows)

    with beam.Pipeline() as pipeline:
        (batch,) = rows.combine_chunks().to_batches()
        assert_that(pipeline | beam.Create([0]) | beam.Map(lambda _: batch) | headrace.Predict(model), same)


def test_what_cannot_be_found_out_is_refused_before_anything_is_written(model: str, tmp_path: Path) -> None:
    put_table(f"{tmp_path}/in/a.parquet", table().slice(0, 0))
    given: dict[str, Any] = {"model": model, "input": f"{tmp_path}/in/*", "output": f"{tmp_path}/out"}
    with pytest.raises(headrace.UnsupportedModel, match=r"does not say how many dimensions.*Found: no rows in"):
        headrace.run(**given)
    headrace.plan(**given, outputs=["n"])
    given["input"] = f"{tmp_path}/nulls/*"
    put_table(f"{tmp_path}/nulls/a.parquet", table().slice(0, 1))
    with pytest.raises(headrace.NullFeature, match=r"'n' of .* is null in row 0"):
        headrace.run(**given)
    assert not (tmp_path / "out").exists()
    told = " ".join(headrace.inspect(model=model, input=given["input"]).text.split())
    assert "(of the first row) y float32 any shape" in told
