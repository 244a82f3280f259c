"""`--tf_example` of whole jobs, of `headrace.predict` and of `Predict`: equal to the model fed by tf.train.Example itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that

import headrace
from headrace.transforms.columns.rules import ColumnRules
from headrace.transforms.jobs.job import JOB_RECORD, stored_object
from headrace.transforms.models.spec import ExampleFeature
from headrace.transforms.storage import open_store
from tests.support import zoo_v1
from tests.support.example_models import every_kind, example, sequence_example
from tests.support.jobs import put, put_table, read_output

ROWS = 7


def table(rows: int = ROWS) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(rows)),
            "x": pa.array([i / 3 if i % 3 else None for i in range(rows)], pa.float32()),
            "n": pa.array([(-5) ** (i * 3) for i in range(rows)], pa.int64()),
            "words": pa.array(
                [["grün", "", "b"][: i % 4] if i % 5 else None for i in range(rows)], pa.list_(pa.string())
            ),
        }
    )


def examples(of: pa.Table) -> list[bytes]:
    kinds = {"x": "float32", "n": "int64", "words": "string"}

    def values(found: Any) -> Any:
        some = found if isinstance(found, list) else None if found is None else [found]
        return some and [one.encode() if isinstance(one, str) else one for one in some]

    return [example({name: (kind, values(row[name])) for name, kind in kinds.items()}) for row in of.to_pylist()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`y` [2] has a variable in it; `words` counts."""
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable([[0.3, -1.7]])
    spec = {
        "x": tf.io.FixedLenFeature([], tf.float32, 0.25),
        "n": tf.io.FixedLenFeature([], tf.int64),
        "words": tf.io.VarLenFeature(tf.string),
    }

    def call(examples: Any) -> Any:
        found = tf.io.parse_example(examples, spec)
        lengths = tf.strings.length(tf.sparse.to_dense(found["words"]))
        return {
            "y": tf.matmul(found["x"][:, None], module.w) + tf.cast(found["n"], tf.float32)[:, None],
            "letters": tf.reduce_sum(lengths, 1),
        }

    folder = tmp_path_factory.mktemp("models") / "m"
    concrete = tf.function(call).get_concrete_function(tf.TensorSpec([None], tf.string, "examples"))
    tf.saved_model.save(module, str(folder), signatures=concrete)
    return str(folder)


def wanted(model: str, of: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """By TensorFlow alone."""
    import tensorflow as tf

    loaded = tf.saved_model.load(model)
    found = loaded.signatures["serving_default"](examples=tf.constant(examples(of)))
    return {name: tensor.numpy() for name, tensor in found.items()}


def put_folder(folder: Path, uri: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            put(f"{uri}/{path.relative_to(folder)}", path.read_bytes())


def check(found: pa.Table, of: dict[str, np.ndarray[Any, Any]]) -> None:
    assert np.array_equal(np.array(found["y"].to_pylist(), np.float32), of["y"])
    assert found["letters"].to_pylist() == of["letters"].tolist()


def test_a_job_from_a_bucket_equals_tensorflow(bucket: str, model: str) -> None:
    put_folder(Path(model), f"{bucket}/m")
    put_table(f"{bucket}/in/a.parquet", table())
    given: dict[str, Any] = {
        "model": f"{bucket}/m",
        "input": f"{bucket}/in/*",
        "output": f"{bucket}/out",
        "report": "none",
    }
    drawn = headrace.plan(**given, tf_example=["examples"]).text
    assert "examples  tf.train.Example [batch]" in drawn
    headrace.run(**given, tf_example=["examples"], keep=["id"])
    check(read_output(f"{bucket}/out"), wanted(model, table()))
    store = open_store(bucket)
    record = stored_object(store, store.stat(f"{bucket}/out/{JOB_RECORD}"))["models"][""]
    assert record["tf_example"] == [["examples", []]]
    assert record["feature"] == {"n": ["n"], "words": ["words"], "x": ["x"]}
    with pytest.raises(headrace.OutputConflict, match="tf_example"):
        headrace.run(**given, tf_example={"examples": ["n", "x"]}, keep=["id"])


def test_sequences_in_a_job_from_a_bucket_equal_tensorflow(bucket: str, tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable([0.3, -1.7])
    context = {"user": tf.io.FixedLenFeature([], tf.int64)}
    lists = {"pairs": tf.io.FixedLenSequenceFeature([2], tf.float32), "words": tf.io.RaggedFeature(tf.string)}

    def call(sequences: Any) -> Any:
        user, steps, lengths = tf.io.parse_sequence_example(sequences, context, lists)
        total = tf.reduce_sum(tf.reduce_sum(steps["pairs"] * module.w, 2), 1) / tf.cast(lengths["pairs"], tf.float32)
        return {"y": total + tf.cast(user["user"], tf.float32), "n": tf.reduce_sum(steps["words"].row_lengths())}

    concrete = tf.function(call).get_concrete_function(tf.TensorSpec([None], tf.string, "sequences"))
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=concrete)
    put_folder(tmp_path / "m", f"{bucket}/sequences")
    rows = [
        {"user": 3, "pairs": [[0.1, 0.2], [7.0, -3.5]], "words": [["a", "grün"], []]},
        {"user": -1, "pairs": [[1e-9, 2.5]], "words": None},
        {"user": 2**40, "pairs": [[3.0, 4.0]] * 9, "words": []},
    ]
    kinds = [
        ("user", pa.int64()),
        ("pairs", pa.list_(pa.list_(pa.float32(), 2))),
        ("words", pa.list_(pa.list_(pa.string()))),
    ]
    put_table(f"{bucket}/sequences_in/a.parquet", pa.Table.from_pylist(rows, pa.schema(kinds)))
    headrace.run(
        model=f"{bucket}/sequences",
        input=f"{bucket}/sequences_in/*",
        output=f"{bucket}/sequences_out",
        tf_example=["sequences"],
        outputs=["y"],
        report="none",
    )
    features = [
        ExampleFeature("user", "int64", (), True),
        ExampleFeature("pairs", "float32", (None, 2), True, steps=True),
        ExampleFeature("words", "string", (None, None), False, steps=True),
    ]
    serialized = tf.constant([sequence_example(row, features) for row in rows])
    native = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"](sequences=serialized)["y"].numpy()
    found = np.array(read_output(f"{bucket}/sequences_out")["y"].to_pylist(), np.float32)
    assert found.tobytes() == native.tobytes()


def test_predict_in_memory_and_in_a_pipeline(model: str) -> None:
    loaded = headrace.load_model(model)
    of = wanted(model, table())
    check(headrace.predict(loaded, table(), tf_example=["examples"]), of)
    renamed = table().rename_columns(["id", "x", "m", "words"])
    check(headrace.predict(loaded, renamed, tf_example="examples", features={"n": "m"}), of)
    left_out = headrace.predict(
        loaded, renamed, tf_example={"examples": ["x", "n"]}, features={"n": "m"}, fill={"x": 0.5}
    )
    assert left_out.column_names == ["id", "words", "letters", "y"]
    assert left_out["letters"].to_pylist() == [0] * ROWS
    assert left_out["y"][0].as_py() == pytest.approx([1 + 0.15, 1 - 0.85])

    def same(batches: list[pa.RecordBatch]) -> None:
        check(pa.Table.from_batches(batches), of)

    with beam.Pipeline() as pipeline:
        rules = ColumnRules(tf_example=(("examples", ()),))
        batch = table().to_batches()[0]
        assert_that(
            pipeline | beam.Create([0]) | beam.Map(lambda _: batch) | headrace.Predict(model, rules=rules), same
        )


def test_a_model_of_tensorflow_1_and_every_kind_of_feature(tmp_path: Path) -> None:
    import tensorflow as tf

    inputs = zoo_v1.estimator(tmp_path / "one")["serving_default"]["inputs"]
    rows = pa.table({"word": ["red", "blau", "nowhere"], "number": [None, [3.0, -2.0], [0.5, 0.5]]})
    loaded = headrace.load_model(str(tmp_path / "one"))
    found = headrace.predict(loaded, rows, tf_example=["inputs"], cast=["number"])
    native = tf.saved_model.load(str(tmp_path / "one"))
    own = native.signatures["serving_default"](tf.constant(inputs))
    assert np.array_equal(np.array(found["scores"].to_pylist(), np.float32), own["scores"].numpy())
    folder = every_kind(tmp_path / "two")
    rows = pa.table(
        {
            "age": [True],
            "half": pa.array([None], pa.float32()),
            "ids": [[1, 2]],
            "pair": pa.array([None], pa.list_(pa.float32())),
            "steps": pa.array([1.5], pa.float32()),
            "tags": pa.array([None], pa.list_(pa.string())),
            "twos": [[[1, 2], [3, 4]]],
            "word": pa.array([None], pa.string()),
        }
    )
    found = headrace.predict(folder, rows, tf_example=["examples"])
    assert found.to_pylist() == [
        {
            "age": 1,
            "half": 0.5,
            "ids": [1, 2],
            "pair": [7.0, 8.0],
            "steps": [1.5],
            "tags": [],
            "twos": [[1, 2], [3, 4]],
            "word": b"none",
        }
    ]


def test_rows_without_a_required_value_are_dead_letters(model: str, tmp_path: Path) -> None:
    rows = table().set_column(2, "n", pa.array([1, None, 3, 4, None, 6, 7]))
    put_table(f"{tmp_path}/in/a.parquet", rows)
    given: dict[str, Any] = {"model": model, "input": f"{tmp_path}/in/*", "output": f"{tmp_path}/out", "report": "none"}
    result = headrace.run(**given, tf_example=["examples"], on_error="dead_letter", max_bad_rows="50%")
    assert (result.rows, result.bad_rows) == (7, 2)
    assert read_output(f"{tmp_path}/out")["id"].to_pylist() == [0, 2, 3, 5, 6]


def test_a_column_of_text_is_not_taken_for_examples(model: str, tmp_path: Path) -> None:
    """Neither as the only one that fits nor by its name; one that holds Examples is."""
    given: dict[str, Any] = {"model": model, "output": f"{tmp_path}/out"}
    for name in ("review", "examples"):
        given["input"] = f"{tmp_path}/{name}.parquet"
        put_table(given["input"], pa.table({"id": [1, 2], name: ["good", "bad"]}))
        said = rf"'{name}' in .* holds no serialized messages.*serialized tf.train.Example of n int64.*'good' in row 0"
        with pytest.raises(headrace.ColumnError, match=rf'{said}.*tf_example="examples"'):
            headrace.plan(**given)
        with pytest.raises(headrace.ColumnError, match=r"holds no serialized messages"):
            headrace.predict(model, {name: ["good", "bad"]})
        # Whoever names it knows better.
        headrace.plan(**given, features={"examples": name})
    held = pa.table({"id": [1, 2], "e": pa.array(examples(table())[1:3], pa.binary())})
    given["input"] = f"{tmp_path}/held.parquet"
    put_table(given["input"], held)
    headrace.run(**given, report="none")
    expected = wanted(model, table())
    check(read_output(f"{tmp_path}/out"), {name: values[1:3] for name, values in expected.items()})
    check(headrace.predict(model, held), {name: values[1:3] for name, values in expected.items()})


def test_one_broken_example_among_others_is_a_bad_row(model: str, tmp_path: Path) -> None:
    held = [*examples(table())[1:4], b"\xff\xff"]
    put_table(f"{tmp_path}/in.parquet", pa.table({"id": range(4), "e": pa.array(held, pa.binary())}))
    given: dict[str, Any] = {"model": model, "input": f"{tmp_path}/in.parquet", "output": f"{tmp_path}/out"}
    with pytest.raises(
        headrace.HeadraceError, match=r"Row 3 .*in\.parquet cannot be predicted.*Could not parse example"
    ):
        headrace.run(**given, report="none")
    result = headrace.run(**given, report="none", on_error="dead_letter", max_bad_rows=1)
    assert (result.rows, result.bad_rows) == (4, 1)
    # Most are none.
    given["input"] = f"{tmp_path}/most.parquet"
    put_table(given["input"], pa.table({"e": pa.array([*held[:1], b"\xff", b"\xff"], pa.binary())}))
    with pytest.raises(headrace.ColumnError, match=r"holds no serialized messages.*in row 1"):
        headrace.plan(**{**given, "output": f"{tmp_path}/other"})


def test_columns_that_do_not_fit_name_the_flag_and_inspect_the_features(model: str, tmp_path: Path) -> None:
    put_table(f"{tmp_path}/in/a.parquet", table().drop_columns(["words"]))
    given: dict[str, Any] = {"model": model, "input": f"{tmp_path}/in/*", "output": f"{tmp_path}/out"}
    with pytest.raises(
        headrace.ColumnError, match=r'No column fits.*serialized tf.train.Example.*tf_example="examples"'
    ):
        headrace.plan(**given)
    with pytest.raises(headrace.ColumnError, match=r"no column 'words'"):
        headrace.plan(**given, tf_example=["examples"])
    with pytest.raises(headrace.DataError, match=r"missing examples.*headrace.predict\(model, data, tf_example="):
        headrace.load_model(model).predict(table())
    looked = headrace.inspect(model=model)
    assert "takes serialized tf.train.Example of n int64, words string [?]," in " ".join(looked.text.split())
    (told,) = looked.document["models"][0]["signatures"]["serving_default"]["inputs"]
    assert told["example"]["features"][0] == {
        "name": "n",
        "dtype": "int64",
        "shape": [],
        "required": True,
        "steps": False,
    }
    both = headrace.inspect(**{key: given[key] for key in ("model", "input")}, tf_example={"examples": ["n", "x"]})
    (link,) = [one for one in both.document["columns"] if one["kind"] == "feature"]
    assert (link["how"], [one["name"] for one in link["columns"]]) == ("encoded", ["n", "x"])
