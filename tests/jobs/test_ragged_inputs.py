"""Ragged and sparse inputs in jobs, `headrace.predict`, `load_model` and Beam: equal to the function that was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace
from headrace.transforms.beam.model_handler import StreamingModelHandler
from headrace.transforms.models.load import describe_model
from tests.support.jobs import put, put_table, read_output

ROWS = 40


def table(rows: int = ROWS) -> pa.Table:
    generator = np.random.default_rng(5)
    lengths = generator.integers(0, 6, rows)
    draw = [generator.normal(size=n).astype(np.float32).tolist() for n in lengths]
    return pa.table(
        {
            "id": pa.array(range(rows)),
            "a": pa.array(generator.normal(size=rows), pa.float32()),
            "words": pa.array([["grün", "", "b", "c"][: i % 5] for i in range(rows)], pa.list_(pa.string())),
            "deep": pa.array(
                [[draw[i], [], draw[-i]][: i % 4] for i in range(rows)], pa.list_(pa.large_list(pa.float32()))
            ),
            "bag": pa.array(draw, pa.list_(pa.float32())),
            "at": pa.array([generator.permutation(9)[:n].tolist() for n in lengths], pa.list_(pa.int32())),
        }
    )


def call(module: Any) -> Any:
    import tensorflow as tf

    def serve(a: Any, words: Any, deep: Any, sp: Any) -> Any:
        return {
            "y": tf.sparse.sparse_dense_matmul(sp, module.w)[:, 0] + a + tf.reduce_sum(tf.reduce_sum(deep, 2), 1),
            "n": words.row_lengths(),
            "loud": tf.strings.upper(words),
            "twice": sp * 2.0,
        }

    return serve


def specs() -> list[Any]:
    import tensorflow as tf

    return [
        tf.TensorSpec([None], tf.float32, "a"),
        tf.RaggedTensorSpec([None, None], tf.string),
        tf.RaggedTensorSpec([None, None, None], tf.float32, row_splits_dtype=tf.int32),
        tf.SparseTensorSpec([None, 9], tf.float32),
    ]


@pytest.fixture(scope="module")
def native() -> Any:
    """The module and the function as it is before any file is written."""
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(np.random.default_rng(0).normal(size=(9, 1)).astype(np.float32))
    module.serve = tf.function(call(module), input_signature=specs())
    return module


@pytest.fixture(scope="module")
def model(native: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    import tensorflow as tf

    folder = str(tmp_path_factory.mktemp("ragged") / "m")
    tf.saved_model.save(native, folder, signatures=native.serve)
    return folder


def fed(rows: pa.Table) -> tuple[Any, ...]:
    """What TensorFlow itself makes of the rows' Python values."""
    import tensorflow as tf

    plain = rows.to_pydict()
    pairs = [
        (i, at, v) for i in range(len(rows)) for at, v in sorted(zip(plain["at"][i], plain["bag"][i], strict=True))
    ]
    sparse = tf.SparseTensor(
        np.array([one[:2] for one in pairs], np.int64).reshape(-1, 2),
        np.array([one[2] for one in pairs], np.float32),
        [len(rows), 9],
    )
    deep = tf.ragged.constant(plain["deep"], tf.float32, 2, row_splits_dtype=tf.int32)
    words = tf.ragged.constant(plain["words"], tf.string, 1)
    return tf.constant(plain["a"], tf.float32), words, deep, sparse


def check(found: pa.Table, native: Any) -> None:
    wanted = native.serve(*fed(table()))
    assert np.array(found["y"]).tobytes() == wanted["y"].numpy().tobytes()
    assert found["n"].to_pylist() == wanted["n"].numpy().tolist()
    assert found["loud"].to_pylist() == wanted["loud"].to_list()
    twice: Any = found["twice"].to_pylist()
    pairs = [(i, one["index"], one["value"]) for i, row in enumerate(twice) for one in row]
    assert np.array_equal([one[:2] for one in pairs], wanted["twice"].indices)
    assert np.array([one[2] for one in pairs], np.float32).tobytes() == wanted["twice"].values.numpy().tobytes()


FEED: dict[str, Any] = {"features": {"sp": ["at", "bag"]}}


def test_a_job_from_a_bucket_equals_the_exported_function(bucket: str, model: str, native: Any) -> None:
    for path in sorted(Path(model).rglob("*")):
        if path.is_file():
            put(f"{bucket}/m/{path.relative_to(model)}", path.read_bytes())
    put_table(f"{bucket}/in/a.parquet", table())
    given: dict[str, Any] = {"model": f"{bucket}/m", "input": f"{bucket}/in/*", "output": f"{bucket}/out"}
    planned = headrace.plan(**given, **FEED)
    assert "words   ragged string [batch, ?]" in planned.text
    kinds = {one["tensor"]["name"]: one["tensor"].get("kind") for one in planned.document["columns"] if one["tensor"]}
    assert kinds == {
        "a": None,
        "deep": "ragged",
        "sp": "sparse",
        "words": "ragged",
        "y": None,
        "n": None,
        "loud": None,
        "twice": "sparse",
    }
    headrace.run(**given, **FEED, keep=["id"])
    found = read_output(f"{bucket}/out")
    assert found["id"].to_pylist() == list(range(ROWS))
    check(found, native)


def test_load_model_and_predict_in_memory(model: str, native: Any) -> None:
    loaded = headrace.load_model(model)
    assert "words: ragged string [?, ?]" in repr(loaded)
    check(headrace.predict(loaded, table(), **FEED), native)
    a, words, deep, sparse = fed(table())
    wanted = native.serve(a, words, deep, sparse)
    for given in (words, words.numpy(), table()["words"].to_pylist()):
        found = loaded.predict({"a": a.numpy(), "words": given, "deep": deep, "sp": sparse})
        assert found["y"].tobytes() == wanted["y"].numpy().tobytes()
        assert found["n"].tolist() == wanted["n"].numpy().tolist()
    for wrong in (a.numpy(), [[["a"]]], deep.values, [1]):
        with pytest.raises(
            headrace.DataError, match=r"'words' of signature .*Expected: words: ragged string \[\?, \?\]"
        ):
            loaded.predict({"a": a.numpy(), "words": wrong, "deep": deep, "sp": sparse})


def test_a_function_without_a_signature(tmp_path: Path, native: Any) -> None:
    import tensorflow as tf

    tf.saved_model.save(native, str(tmp_path / "hub"))
    check(headrace.predict(str(tmp_path / "hub"), table(), signature="serve", **FEED), native)


def test_of_a_function_that_the_model_does_not_hold_only_sparse_inputs_can_be_known(tmp_path: Path) -> None:
    import tensorflow as tf

    def call(d: Any, words: Any, sp: Any) -> Any:
        return {"y": d["a"] + tf.cast(d["b"] + words.row_lengths(), tf.float32) + tf.sparse.reduce_sum(sp, 1)}

    dense = {"a": tf.TensorSpec([None], tf.float32), "b": tf.TensorSpec([None], tf.int64)}
    own = [dense, tf.RaggedTensorSpec([None, None], tf.float32), tf.SparseTensorSpec([None, 9], tf.float32)]
    for held in (False, True):
        module = tf.Module()
        serve = tf.function(call, input_signature=own)
        if held:
            module.serve = serve
        tf.saved_model.save(module, str(tmp_path / str(held)), signatures=serve)
        inputs = describe_model(str(tmp_path / str(held))).signatures["serving_default"].inputs
        kinds = {name: one.composite.kind if one.composite else "dense" for name, one in inputs.items()}
        ragged = {"words": "ragged"} if held else {"words": "dense", "words_1": "dense"}
        assert kinds == {"d": "dense", "d_1": "dense", "sp": "sparse"} | ragged


def test_sparse_placeholders_of_tensorflow_1(tmp_path: Path) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.sparse_placeholder(tf.float32, [None, 9], name="x")
        y = tf.sparse.sparse_dense_matmul(x, tf.reshape(tf.range(18, dtype=tf.float32), [9, 2]))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y, "z": x * 3.0})
        builder = v1.saved_model.builder.SavedModelBuilder(str(tmp_path / "m"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    found = headrace.predict(str(tmp_path / "m"), table(), features={"x": ["at", "bag"]})
    sparse = fed(table())[3]
    native = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"]
    wanted = native(x_indices=sparse.indices, x_values=sparse.values, x_dense_shape=sparse.dense_shape)
    assert np.array(found["y"].to_pylist(), np.float32).tobytes() == wanted["y"].numpy().tobytes()
    values = [one["value"] for row in found["z"].to_pylist() for one in row]
    assert np.array(values, np.float32).tobytes() == wanted["z"].values.numpy().tobytes()


def test_rows_of_a_handler_are_nested_lists(tmp_path: Path) -> None:
    import tensorflow as tf

    spec = tf.RaggedTensorSpec([None, None], tf.int64)
    module = tf.Module()
    module.serve = tf.function(lambda x: {"y": tf.reduce_sum(x, 1), "x": x + 1}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    handler = StreamingModelHandler(str(tmp_path / "m"), resource_hints={})
    found = list(handler.run_inference([{"x": [1, 2]}, {"x": []}, {"x": np.array([5])}], handler.load_model()))
    assert [int(one.inference["y"]) for one in found] == [3, 0, 5]
    assert [one.inference["x"].tolist() for one in found] == [[2, 3], [], [6]]


def test_plan_and_inspect_tell_before_anything_is_written(model: str, tmp_path: Path) -> None:
    flat = table().set_column(2, "words", pa.array(["no list"] * ROWS))
    put_table(f"{tmp_path}/in/a.parquet", flat)
    given: dict[str, Any] = {"model": model, "input": f"{tmp_path}/in/*", "output": f"{tmp_path}/out"}
    with pytest.raises(headrace.ColumnError, match=r"'words' in .* does not fit tensor 'words'.*ragged string"):
        headrace.run(**given, **FEED)
    with pytest.raises(headrace.ColumnError, match=r"constant.* names the ragged input 'words'"):
        headrace.plan(**given, **FEED, constant={"words": "a"})
    given["input"] = f"{tmp_path}/lists/*"
    put_table(f"{tmp_path}/lists/a.parquet", table())
    with pytest.raises(headrace.InvalidRequest, match=r"jit_compile cannot compile|'deep', which is ragged"):
        headrace.plan(**given, **FEED, jit_compile=True)
    assert not (tmp_path / "out").exists()
    told = " ".join(headrace.inspect(model=model).text.split())
    assert "words takes lists of string as long as they are" in told
    assert "deep takes lists of lists of float32 as long as they are" in told
    assert "sp takes lists of float32 as long as they are, which are its first values in a row, or two columns" in told


def test_a_fixed_batch_of_ragged_rows_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = tf.RaggedTensorSpec([4, None], tf.float32)
    module.serve = tf.function(lambda x: {"y": tf.reduce_sum(x, 1)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    with pytest.raises(headrace.UnsupportedModel, match="'x' has no batch dimension"):
        headrace.predict(str(tmp_path / "m"), {"x": pa.array([[1.0]], pa.list_(pa.float32()))})
