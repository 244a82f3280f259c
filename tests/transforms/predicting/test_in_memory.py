"""`headrace.predict` and `Model.predict`: every kind of data gives what TensorFlow gives, in the kind in which it came."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import headrace
from headrace.transforms.argument_names import with_argument_names
from headrace.transforms.errors import ColumnError, DataError, HeadraceError, InvalidRequest, NullFeature

ROWS = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`score` = age * 2 + weight . x, and `name` upper-cased, of three inputs with names."""
    import tensorflow as tf

    module = tf.Module()
    module.weight = tf.Variable([1.0, 10.0, 100.0])

    def call(age: Any, x: Any, name: Any) -> Any:
        return {
            "score": age * 2.0 + tf.linalg.matvec(x, module.weight),
            "upper": tf.strings.upper(name),
            "twice": x * 2.0,
        }

    function = tf.function(
        call,
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="age"),
            tf.TensorSpec([None, 3], tf.float32, name="x"),
            tf.TensorSpec([None], tf.string, name="name"),
        ],
    )
    folder = tmp_path_factory.mktemp("in_memory") / "model"
    tf.saved_model.save(module, str(folder), signatures=function)
    return str(folder)


def columns(rows: int = ROWS) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(rows)
    return {
        "id": np.arange(rows),
        "age": rng.normal(size=rows).astype(np.float32),
        "x": rng.normal(size=(rows, 3)).astype(np.float32),
        "name": np.array([f"n{i}" for i in range(rows)], object),
    }


def table(rows: int = ROWS) -> pa.Table:
    given = columns(rows)
    x = pa.FixedSizeListArray.from_arrays(pa.array(given["x"].reshape(-1)), 3)
    return pa.table({"id": given["id"], "age": given["age"], "x": x, "name": given["name"].tolist()})


def expected(rows: int = ROWS) -> tuple[np.ndarray[Any, Any], list[bytes]]:
    given = columns(rows)
    scores = given["age"] * np.float32(2) + given["x"] @ np.array([1, 10, 100], np.float32)
    return scores, [name.upper().encode() for name in given["name"]]


def frame() -> pd.DataFrame:
    given = columns()
    return pd.DataFrame({**given, "x": list(given["x"])}, index=[f"row {i}" for i in range(ROWS)])


def check(result: pa.Table) -> None:
    scores, names = expected(result.num_rows)
    np.testing.assert_allclose(result["score"].to_numpy(), scores, rtol=1e-5)
    assert result["upper"].to_pylist() == names
    assert result["id"].to_pylist() == list(range(result.num_rows))


def test_a_table_and_a_record_batch(model: str) -> None:
    found = headrace.predict(model, table())
    assert isinstance(found, pa.Table)
    assert found.column_names == ["id", "score", "twice", "upper"]
    check(found)
    (batch,) = table().combine_chunks().to_batches()
    of_batch = headrace.predict(model, batch)
    assert isinstance(of_batch, pa.RecordBatch)
    assert pa.Table.from_batches([of_batch]).equals(found.combine_chunks())


def test_a_dataframe_keeps_its_index(model: str) -> None:
    found = headrace.predict(model, frame(), keep=["id"])
    assert isinstance(found, pd.DataFrame)
    assert list(found.index) == list(frame().index)
    np.testing.assert_allclose(found["score"], expected()[0], rtol=1e-5)


def test_a_polars_frame(model: str) -> None:
    polars = pytest.importorskip("polars")
    found = headrace.predict(model, polars.from_arrow(table()))
    assert isinstance(found, polars.DataFrame)
    np.testing.assert_allclose(found["score"].to_numpy(), expected()[0], rtol=1e-5)


def test_a_dict_of_arrays_comes_back_as_arrays(model: str) -> None:
    found = headrace.predict(model, columns())
    assert found["twice"].shape == (ROWS, 3)
    np.testing.assert_array_equal(found["twice"], columns()["x"] * 2)
    np.testing.assert_allclose(found["score"], expected()[0], rtol=1e-5)


def test_an_iterable_is_predicted_piece_by_piece(model: str) -> None:
    taken = []

    def pieces() -> Iterator[pa.RecordBatch]:
        for piece in table().to_batches(max_chunksize=100):
            taken.append(piece.num_rows)
            yield piece

    found = headrace.predict(model, pieces())
    assert taken == []
    first = next(found)
    assert taken == [100]
    check(pa.Table.from_batches([first, *found]))


def test_no_rows_give_no_rows_with_the_same_columns(model: str) -> None:
    found = headrace.predict(model, table().slice(0, 0))
    assert found.schema == headrace.predict(model, table()).schema
    assert found.num_rows == 0


def test_more_rows_than_a_thread_takes_at_once_keep_their_order(model: str) -> None:
    many = pa.concat_tables([table()] * 500)
    found = headrace.predict(model, many, batch_size=1000, keep=["id"])
    assert found["id"].to_pylist() == list(range(ROWS)) * 500
    np.testing.assert_array_equal(found["score"].to_numpy(), np.tile(found["score"].to_numpy()[:ROWS], 500))


def test_a_path_is_a_model_too(model: str) -> None:
    assert headrace.predict(Path(model), table()).equals(headrace.predict(model, table()))
    assert headrace.load_model(Path(model)).signature == "serving_default"


def test_a_loaded_model_is_used_as_it_is(model: str) -> None:
    loaded = headrace.load_model(model)
    assert headrace.predict(loaded, table()).equals(headrace.predict(model, table()))
    assert "age: float32 [?]" in repr(loaded)
    assert "3 parameters, 12 bytes" in repr(loaded)


def test_the_model_is_fetched_once(model: str) -> None:
    from headrace.transforms.models import process_cache

    headrace.predict(model, table())
    before = len(process_cache._places)
    headrace.predict(model, table())
    assert len(process_cache._places) == before


def test_rules_are_the_commands_rules(model: str) -> None:
    nulls = table().set_column(1, "age", pa.array([None, *range(1, ROWS)], pa.int64()))
    with pytest.raises(ColumnError, match=r"cast=\[\"age\"\]|cast"):
        headrace.predict(model, nulls)
    with pytest.raises(NullFeature) as raised:
        headrace.predict(model, nulls, cast=["age"])
    assert "fill=" in str(raised.value)
    assert "--" not in str(raised.value)
    filled = headrace.predict(model, nulls, cast=["age"], fill={"age": 0.5})
    assert filled.num_rows == ROWS
    renamed = headrace.predict(
        model,
        table().rename_columns(["id", "years", "x", "name"]),
        features={"age": "years"},
        predictions={"score": "s"},
    )
    np.testing.assert_allclose(renamed["s"].to_numpy(), expected()[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("folder/*.parquet", r"headrace\.run"),
        (7, "DataFrame"),
        ({"age": np.float32(3)}, "one value"),
        ({"age": np.zeros(2, np.float32), "x": np.zeros((3, 3), np.float32)}, "age 2, x 3"),
        (object(), "DataFrame"),
    ],
)
def test_what_is_no_data_is_refused(model: str, data: Any, text: str) -> None:
    with pytest.raises((DataError, InvalidRequest), match=text):
        headrace.predict(model, data)


def test_model_predict_takes_columns_and_names_the_one_that_does_not_fit(model: str) -> None:
    loaded = headrace.load_model(model)
    arrays = loaded.predict({name: array for name, array in columns().items() if name != "id"})
    for data in (table(), frame()):
        np.testing.assert_array_equal(loaded.predict(data)["score"], arrays["score"])
    wrong = table().set_column(1, "age", pa.array(range(ROWS)))
    with pytest.raises(DataError, match=r"'age'.*float32.*int64"):
        loaded.predict(wrong)
    with pytest.raises(DataError, match="missing age"):
        loaded.predict(table().drop_columns(["age"]))


def _child(model: str, path: str) -> None:
    np.save(path, headrace.predict(model, table())["score"].to_numpy())


def test_in_a_spawned_process_and_in_a_thread(model: str, tmp_path: Path) -> None:
    path = str(tmp_path / "scores.npy")
    child = multiprocessing.get_context("spawn").Process(target=_child, args=(model, path))
    child.start()
    found: list[pa.Table] = []
    thread = threading.Thread(target=lambda: found.append(headrace.predict(model, table())))
    thread.start()
    thread.join()
    child.join(120)
    assert child.exitcode == 0
    np.testing.assert_array_equal(np.load(path), found[0]["score"].to_numpy())


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("Add --fill=age=0", 'Add fill={"age": 0}'),
        ("Add --fill age=-1.5, or not", 'Add fill={"age": -1.5}, or not'),
        ("--keep=a,b keeps", 'keep=["a", "b"] keeps'),
        ("or --keep= for none", "or keep=[] for none"),
        ("--keep names a column", "keep names a column"),
        ("or say --cast x.", 'or say cast=["x"].'),
        ("--cast x, or", 'cast=["x"], or'),
        ("Say --feature x=a,b", 'Say features={"x": "a"},b'),
        ("--prediction {title}=c", 'predictions={"{title}": "c"}'),
        ("--on_error=dead_letter lets", 'on_error="dead_letter" lets'),
        ("--batch_size=8", "batch_size=8"),
        ("a--b, ---x", "a--b, ---x"),
    ],
)
def test_flags_become_arguments(flags: str, arguments: str) -> None:
    assert with_argument_names(HeadraceError("No.", cure=flags)).cure == arguments
