"""Several models in one pass over the rows: whose columns are whose, and that each says what it says alone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.transforms.nested_arrow import flat
from headrace.transforms.parquet.reader import read_batches
from headrace.transforms.storage import open_store
from tests.support.around import Capture, Job, job_in, record_of, save_signature
from tests.support.jobs import expected_scores, model_folder, put_inputs, put_table, read_output, rows, scores
from tests.support.loose import loose

COUNTS = (20, 0, 30)


@pytest.fixture
def job(tmp_path: Path, capfd: Capture) -> Job:
    """A SavedModel, `model`, and a Keras file, `model.keras`, of the same network; 50 rows in three files."""
    put_inputs(f"{tmp_path}/in", COUNTS)
    shutil.copytree(model_folder() / "saved_model", tmp_path / "model")
    shutil.copy(model_folder() / "model.keras", tmp_path)
    return job_in(str(tmp_path), capfd, batch_size="8")


def both(tmp_path: Path) -> list[str]:
    return [f"--model=a={tmp_path}/model", f"--model=b={tmp_path}/model.keras"]


@pytest.fixture
def line(tmp_path: Path) -> str:
    """`left` and `right`, float32 [batch], to their `sum` and `difference`."""
    return save_signature(
        tmp_path / "line",
        lambda left, right: {"sum": left + right, "difference": left - right},
        {"left": ([None], "float32"), "right": ([None], "float32")},
    )


def test_each_says_what_it_says_alone(job: Job, tmp_path: Path) -> None:
    code, out, err = job(*both(tmp_path))
    assert code == 0, err
    assert "50 rows" in out
    found = read_output(f"{tmp_path}/out")
    assert found.schema.names == ["id", "name", "a_output_0", "b_output_0"]
    for column, name in (("a_output_0", "saved_model"), ("b_output_0", "model.keras")):
        alone = f"{tmp_path}/alone-{name}"
        assert job(f"--model={model_folder()}/{name}", output=alone)[0] == 0
        assert found[column].equals(read_output(alone)["output_0"])
        parts = [expected_scores(name, rows(first, count), 8) for first, count in ((0, 20), (20, 30))]
        np.testing.assert_array_equal(scores(found, column), np.concatenate(parts))


def test_the_rows_are_read_once(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import headrace.transforms.steps.predict_shard

    read: list[int] = []

    def counted(*arguments: Any) -> Any:
        for batch in read_batches(*arguments):
            read.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(headrace.transforms.steps.predict_shard, "read_batches", counted)
    assert job(*both(tmp_path))[0] == 0
    assert sum(read) == sum(COUNTS)
    manifest = [pq.read_table(path) for path in Path(f"{tmp_path}/out/_manifest").iterdir()]
    assert sum(sum(loose(table["rows"].to_pylist())) for table in manifest) == sum(COUNTS)


def test_a_name_before_the_dot_says_whose_it_is(job: Job, tmp_path: Path, line: str) -> None:
    ids = rows(0, 6)["id"].to_numpy()
    put_table(
        f"{tmp_path}/pairs/p.parquet",
        pa.table({"p": ids.astype(np.float32), "q": pa.array([None, *ids[1:]], pa.float64()), "x": rows(0, 6)["x"]}),
    )
    code, _, err = job(
        f"--model=one={line}",
        f"--model=two={line}",
        f"--model=net={tmp_path}/model",
        "--feature=left=p",
        "--feature=one.right=p",
        "--feature=two.right=q",
        "--cast=two.right",
        "--fill=two.right=7",
        "--prediction=one.sum=double",
        "--prediction=two.difference=rest",
        "--keep=q",
        input=f"{tmp_path}/pairs/*.parquet",
    )
    assert code == 0, err
    found = read_output(f"{tmp_path}/out")
    assert sorted(found.schema.names) == sorted(["q", "double", "one_difference", "two_sum", "rest", "net_output_0"])
    p, q = ids.astype(np.float32), np.array([7, *ids[1:]], np.float32)
    for column, wanted in (("double", p + p), ("one_difference", p - p), ("two_sum", p + q), ("rest", p - q)):
        np.testing.assert_array_equal(found[column].to_numpy(), wanted)
    record = record_of(f"{tmp_path}/out")["models"]
    assert record["two"]["feature"] == {"left": ["p"], "right": ["q"]}
    assert (record["two"]["fill"], record["two"]["cast"]) == ([["right", "7"]], ["right"])
    assert not record["one"].get("fill")


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_said_of_one_model_wins_in_any_order(job: Job, tmp_path: Path, line: str, order: int) -> None:
    p, q = pa.array([1.0, None], pa.float32()), pa.array([10.0, 20.0], pa.float32())
    put_table(f"{tmp_path}/pairs/p.parquet", pa.table({"p": p, "q": q}))
    pairs = [
        ("--feature=left=q", "--feature=one.left=p"),
        ("--fill=left=3", "--fill=one.left=5"),
        ("--prediction=sum=s", "--prediction=one.sum=t"),
    ]
    flags = [flag for pair in pairs for flag in pair[::order]]
    models = (f"--model=one={line}", f"--model=two={line}", "--feature=right=q")
    code, _, err = job(*models, *flags, input=f"{tmp_path}/pairs/*.parquet")
    assert code == 0, err
    found = read_output(f"{tmp_path}/out")
    assert found.select(["t", "s"]).to_pydict() == {"t": [11.0, 25.0], "s": [20.0, 40.0]}


def test_an_output_of_no_values_is_refused_before(job: Job, tmp_path: Path) -> None:
    model = save_signature(tmp_path / "none", lambda x: {"y": x[:, :0], "z": x}, {"x": ([None, 4], "float32")})
    code, _, err = job("plan", f"--model={model}")
    assert code == 2
    assert "The columns that the model gives cannot be written" in err
    assert "y: fixed_size_list" in err


def test_signatures_and_weights_are_each_models_own(job: Job, tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    total = tf.function(lambda x: {"y": tf.reduce_sum(x, 1)}).get_concrete_function(spec)
    most = tf.function(lambda x: {"y": tf.reduce_max(x, 1)}).get_concrete_function(spec)
    tf.saved_model.save(module, str(tmp_path / "two"), signatures={"serving_default": total, "most": most})
    network = keras.saving.load_model(model_folder() / "model.keras")
    (tmp_path / "config.json").write_text(network.to_json())
    network.save_weights(tmp_path / "k.weights.h5")
    code, _, err = job(
        f"--model=a={tmp_path}/two",
        f"--model=b={tmp_path}/two",
        f"--model=k={tmp_path}/config.json",
        "--signature=b=most",
        f"--weights=k={tmp_path}/k.weights.h5",
    )
    assert code == 0, err
    found, x = read_output(f"{tmp_path}/out"), flat(rows(0, 50)["x"].combine_chunks()).to_numpy().reshape(-1, 4)
    np.testing.assert_array_equal(found["b_y"].to_numpy(), x.max(axis=1))
    np.testing.assert_allclose(found["a_y"].to_numpy(), x.sum(axis=1), rtol=1e-5)
    parts = [expected_scores("model.keras", rows(first, count), 8) for first, count in ((0, 20), (20, 30))]
    np.testing.assert_array_equal(scores(found, "k_output_0"), np.concatenate(parts))


def test_plan_and_inspect_show_each(job: Job, tmp_path: Path) -> None:
    code, out, err = job("plan", *both(tmp_path))
    assert code == 0, err
    assert f"Model    a: {tmp_path}/model\n" in out
    assert f"Model    b: {tmp_path}/model.keras\n" in out
    assert re.search(r"^x .* ─+▶ +a\.x +float32", out, re.MULTILINE)
    assert re.search(r"^b_output_0 .* ◀─+ +b\.output_0 +float32", out, re.MULTILINE)
    code, out, err = job("inspect", *both(tmp_path), input="", output="")
    assert code == 0, err
    assert f"{tmp_path}/model\n" in out
    assert f"{tmp_path}/model.keras\n" in out


def test_another_model_among_them_is_another_job_and_is_named(job: Job, tmp_path: Path) -> None:
    assert job(*both(tmp_path))[0] == 0
    assert "Nothing to do" in job(*both(tmp_path))[1]
    import keras

    keras.saving.load_model(model_folder() / "model.keras").save(tmp_path / "model.keras")
    code, _, err = job(*both(tmp_path))
    assert code == 2
    assert 'another job: model b differs. Expected: model b {"digest": ' in err
    code, _, err = job(f"--model=a={tmp_path}/model")
    assert code == 2
    assert "model b" in err


@pytest.mark.parametrize(
    ("models", "flags", "fragments"),
    [
        (["a=model", "model.keras"], [], ["--model is given several times", "--model=NAME=URI", "model.keras"]),
        (["a=model", "a=model.keras"], [], ["--model is given twice for 'a'"]),
        (
            ["a=model", "b=model"],
            ["--feature=z=x"],
            ["--feature names 'z', which no model has", "one of x", "NAME.TENSOR"],
        ),
        (["a=model", "b=model"], ["--feature=c.x=x"], ["'c.x'"]),
        (["a=model", "b=model"], ["--feature=a.z=x"], ["no input 'z'"]),
        (["a=model", "b=model"], ["--prediction=score=s"], ["--prediction names 'score'", "output_0"]),
        (["a=model", "b=model"], ["--prediction=output_0=s"], ["'a.output_0'", "'b.output_0'", "would both be 's'"]),
        (["a=model", "b=model"], ["--prediction=a.output_0=id"], ["'a.output_0'", "a kept column", "'id'"]),
        (["a=model", "b=model"], ["--signature=c=most"], ["--signature=c=", "names no model", "'a', 'b'"]),
        (["a=model", "b=model"], ["--weights=c=w.h5"], ["--weights=c=", "names no model"]),
        (["a=model"], ["--weights=w.h5"], ["does not say for which model", "--weights=NAME=URI", "'a'"]),
        (["a=model", "b=model"], ["--fill=c.x=0"], ["--fill names 'c.x'"]),
        (["a=model", "b=modle"], [], ["modle"]),
    ],
)
def test_clashes_and_unknown_names(
    job: Job, tmp_path: Path, models: list[str], flags: list[str], fragments: list[str]
) -> None:
    given = [
        f"--model={name}{'=' if name else ''}{tmp_path}/{uri}" for name, _, uri in (m.rpartition("=") for m in models)
    ]
    code, _, err = job(*given, *flags)
    assert code == 2
    assert all(fragment in err for fragment in fragments), err
    assert not (tmp_path / "out").exists()


def test_a_uri_with_an_equals_sign_needs_no_name(job: Job, tmp_path: Path) -> None:
    shutil.copytree(model_folder() / "saved_model", tmp_path / "day=7" / "model")
    code, _, err = job(f"--model={tmp_path}/day=7/model")
    assert code == 0, err
    assert open_store(str(tmp_path)).stat(f"{tmp_path}/out/_SUCCESS").size
    assert read_output(f"{tmp_path}/out").schema.names == ["id", "name", "output_0"]
