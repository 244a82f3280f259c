"""Batches of one size: models that are fixed to one, and graphs that XLA compiles for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.pipeline.checks.preflight import prepare
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.transforms.columns.plan import ColumnChoice, choose_batch_rows, plan_columns
from headrace.transforms.errors import InvalidRequest
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.nested_arrow import flat
from headrace.transforms.predicting.predictor import load_predictor
from tests.support.around import Capture, Job, job_in, record_of, save_signature
from tests.support.jobs import expected_scores, model_folder, put_inputs, put_table, read_output, rows, scores

COUNTS = (21, 0, 16, 3)


@pytest.fixture
def job(tmp_path: Path, capfd: Capture) -> Job:
    put_inputs(f"{tmp_path}/in", COUNTS)
    return job_in(str(tmp_path), capfd)


def spread(x: Any) -> dict[str, Any]:
    """What a row gives depends on that row alone."""
    import tensorflow as tf

    return {
        "y": tf.nn.softmax(tf.matmul(x, tf.reshape(tf.range(12, dtype=tf.float32), [4, 3]))),
        "low": tf.reduce_min(x, 1),
    }


@pytest.fixture
def fixed(tmp_path: Path) -> str:
    """A SavedModel of `x`, float32 [8, 4], to `y` [8, 3] and `low` [8]."""
    return save_signature(tmp_path / "fixed", spread, {"x": ([8, 4], "float32")})


def padded(model: Any, table: pa.Table, batch: int) -> Any:
    """What the plain model says of the rows, the last batch filled up with the last row."""
    x = flat(table["x"].combine_chunks()).to_numpy().reshape(-1, 4)
    found = []
    for first in range(0, len(x), batch):
        part = x[first : first + batch]
        filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        found.append({name: value[: len(part)] for name, value in model(filled).items()})
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def each_file() -> list[pa.Table]:
    return [rows(sum(COUNTS[:i]), count) for i, count in enumerate(COUNTS) if count]


def test_a_model_of_a_fixed_batch_predicts_any_number_of_rows(job: Job, fixed: str, tmp_path: Path) -> None:
    import tensorflow as tf

    code, _, err = job(model=fixed)
    assert code == 0, err
    found = read_output(f"{tmp_path}/out")
    assert found.schema.field("y").type.list_size == 3
    assert found["id"].to_pylist() == list(range(sum(COUNTS)))
    loaded = tf.saved_model.load(fixed)
    plain = loaded.signatures["serving_default"]
    wanted = [
        padded(lambda x: {k: v.numpy() for k, v in plain(x=tf.constant(x)).items()}, one, 8) for one in each_file()
    ]
    np.testing.assert_array_equal(scores(found, "y"), np.concatenate([one["y"] for one in wanted]))
    np.testing.assert_array_equal(found["low"].to_numpy(), np.concatenate([one["low"] for one in wanted]))
    record = record_of(f"{tmp_path}/out")
    assert (record["batch_size"], record["batch_rule"]) == (8, "the batch that the model is fixed to")


def test_another_batch_is_refused(job: Job, fixed: str, tmp_path: Path) -> None:
    for flags in (["--batch_size=7"], ["--batch_size=16"]):
        code, _, err = job(*flags, model=fixed)
        assert code == 2
        assert "the batch that a model is fixed to: 8" in err
        assert "Leave --batch_size out" in err
    other = save_signature(tmp_path / "other", spread, {"x": ([4, 4], "float32")})
    code, _, err = job(f"--model=a={fixed}", f"--model=b={other}", model="")
    assert code == 2
    assert "fixed to: 4 and 8" in err
    assert "Run a job for each" in err
    assert not (tmp_path / "out").exists()
    assert job("plan", "--batch_size=8", model=fixed)[0] == 0


def test_a_fixed_model_beside_a_free_one_shares_its_batches(job: Job, fixed: str, tmp_path: Path) -> None:
    code, _, err = job(f"--model=a={fixed}", f"--model=b={model_folder()}/saved_model", model="")
    assert code == 0, err
    found = read_output(f"{tmp_path}/out")
    free = [expected_scores("saved_model", one, 8) for one in each_file()]
    np.testing.assert_array_equal(scores(found, "b_output_0"), np.concatenate(free))
    assert len(found["a_low"]) == sum(COUNTS)


@pytest.mark.parametrize(
    ("first", "second", "fragments"),
    [([8, 4], [None, 4], ["'x'", "[8, 4]"]), ([8, 4], [4, 4], ["'x'", "[8, 4]"])],
)
def test_inputs_of_different_batches_are_refused(
    job: Job, tmp_path: Path, first: list[int | None], second: list[int | None], fragments: list[str]
) -> None:
    model = save_signature(
        tmp_path / "m", lambda x, z: {"y": x * 2, "w": z * 2}, {"x": (first, "float32"), "z": (second, "float32")}
    )
    code, _, err = job("--feature=z=x", model=model)
    assert code == 2
    assert all(fragment in err for fragment in fragments), err


def test_an_output_without_the_fixed_batch_is_left_out_and_refused_by_name(job: Job, tmp_path: Path) -> None:
    import tensorflow as tf

    model = save_signature(
        tmp_path / "m", lambda x: {"y": x * 2, "mean": tf.reduce_mean(x, 0)}, {"x": ([8, 4], "float32")}
    )
    code, _, err = job("--outputs=mean", model=model)
    assert code == 2
    assert "'mean'" in err
    code, _, _ = job(model=model)
    assert code == 0
    assert {"mean", "y"} & set(read_output(f"{tmp_path}/out").column_names) == {"y"}


def test_predict_is_held_to_the_fixed_batch_too(fixed: str) -> None:
    signature = describe_model(fixed).signatures["serving_default"]
    plan = plan_columns(rows(0, 1).schema, [(signature, ColumnChoice())], None)
    assert choose_batch_rows(plan, None) == (8, "the batch that the model is fixed to")
    assert choose_batch_rows(plan, 8) == (8, "given")
    with pytest.raises(InvalidRequest, match="fixed to: 8"):
        choose_batch_rows(plan, 9)


def test_a_tflite_model_of_a_fixed_batch(job: Job, tmp_path: Path) -> None:
    import tensorflow as tf

    for batch in (1, 8):
        concrete = tf.function(spread).get_concrete_function(x=tf.TensorSpec([batch, 4], tf.float32, name="x"))
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        path = tmp_path / f"fixed-{batch}.tflite"
        path.write_bytes(converter.convert())
        model = load_model(str(path))
        (name,) = model.inputs
        column = f"--feature={name}=x"
        code, _, err = job(column, model=path, output=f"{tmp_path}/out{batch}")
        assert code == 0, err
        found = read_output(f"{tmp_path}/out{batch}")
        wanted = [padded(lambda x, m=model, n=name: m.predict({n: x}), one, batch) for one in each_file()]
        for output in model.outputs:
            whole = np.concatenate([one[output] for one in wanted])
            np.testing.assert_array_equal(scores(found, output) if whole.ndim > 1 else found[output].to_numpy(), whole)
    code, _, err = job(column, "--jit_compile", model=path)
    assert code == 2
    assert "Found: a TFLite flatbuffer" in err
    assert "Leave --jit_compile out" in err


@pytest.mark.parametrize("name", ["saved_model", "model.keras"])
def test_xla_compiles_one_graph_and_the_last_batch_is_filled_up(job: Job, tmp_path: Path, name: str) -> None:
    code, _, err = job("--jit_compile", "--batch_size=8", model=f"{model_folder()}/{name}")
    assert code == 0, err
    found = read_output(f"{tmp_path}/out")
    assert found["id"].to_pylist() == list(range(sum(COUNTS)))
    wanted = np.concatenate([expected_scores(name, one, 8) for one in each_file()])
    np.testing.assert_allclose(scores(found), wanted, rtol=1e-5, atol=1e-6)
    assert record_of(f"{tmp_path}/out")["jit_compile"] is True
    flags = [f"--model={model_folder()}/{name}", f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/other"]
    request = parse_request(parse_flags([*flags, "--jit_compile", "--batch_size=8"]), "run")
    predictor = load_predictor(prepare(request).job)
    for batch in rows(0, 21).to_batches(8):
        assert predictor(batch).num_rows == batch.num_rows
    assert predictor(rows(0, 1).to_batches()[0].slice(0, 0)).num_rows == 0
    assert predictor.traces == 1


def test_compiled_and_not_are_two_jobs(job: Job) -> None:
    assert job("--jit_compile", model=f"{model_folder()}/saved_model")[0] == 0
    code, _, err = job(model=f"{model_folder()}/saved_model")
    assert code == 2
    assert "another job: jit_compile differ" in err


def test_strings_cannot_be_compiled_and_it_is_told_before(job: Job, tmp_path: Path) -> None:
    import tensorflow as tf

    upper = save_signature(tmp_path / "m", lambda t: {"u": tf.strings.upper(t)}, {"t": ([None], "string")})
    code, _, err = job("--feature=t=name", "--jit_compile", model=upper)
    assert code == 2
    assert "--jit_compile cannot compile" in err
    assert "strings in 't'" in err
    assert not (tmp_path / "out").exists()
    assert job("--feature=t=name", model=upper)[0] == 0


def test_what_xla_lacks_ends_the_job_as_the_models_fault_and_not_the_rows(job: Job, tmp_path: Path) -> None:
    import tensorflow as tf

    inside = save_signature(
        tmp_path / "m", lambda t: {"n": tf.strings.length(tf.strings.as_string(t))}, {"t": ([None], "int64")}
    )
    put_table(f"{tmp_path}/in/part-9.parquet", rows(100, 3))
    code, _, err = job("--feature=t=id", "--jit_compile", model=inside)
    assert code == 1
    told = err[err.index("The job failed") :]
    assert f"XLA cannot compile {inside}" in told
    assert "AsString" in told
    assert "Leave --jit_compile out" in told
    assert job("--feature=t=id", "--overwrite", model=inside)[0] == 0
