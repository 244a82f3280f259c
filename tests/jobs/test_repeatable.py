"""Jobs of models that draw random numbers, keep state, take constants, or have outputs without rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.cli import main
from headrace.transforms.jobs.job import JOB_RECORD

Capture = pytest.CaptureFixture[str]


def _export(folder: Path, call: Any, module: Any, **specs: Any) -> Path:
    import tensorflow as tf

    inputs = {name: tf.TensorSpec(shape, "float32", name) for name, shape in specs.items()}
    concrete = tf.function(call).get_concrete_function(**inputs)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": concrete})
    return folder


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    pq.write_table(pa.table({"x": np.arange(6, dtype=np.float32)}), tmp_path / "in.parquet")
    return [f"--input={tmp_path}/in.parquet", f"--output={tmp_path}/out"]


def test_a_random_model_is_announced_and_no_sample_is_compared(tmp_path: Path, argv: list[str], capfd: Capture) -> None:
    import tensorflow as tf

    model = _export(tmp_path / "m", lambda x: {"y": tf.nn.dropout(x, 0.5)}, tf.Module(), x=[None])
    argv = [f"--model={model}", *argv]
    for command in ("inspect", "plan", "run"):
        assert main([command, *argv]) == 0
        assert "random numbers" in capfd.readouterr().out, command
    record = json.loads((tmp_path / "out" / JOB_RECORD).read_text())
    assert record["models"][""]["random_operations"] == ["RandomUniform"]
    manifest = pq.read_table(next((tmp_path / "out/_manifest").glob("*.pq")))
    assert json.loads(manifest.schema.metadata[b"headrace.job"])["models"][""]["random_operations"] == ["RandomUniform"]
    assert "draws random numbers" in (tmp_path / "out/_headrace/report.html").read_text()
    assert main(["verify", *argv, "--sample=2"]) == 0
    assert "no sample can be compared" in " ".join(capfd.readouterr().out.split())


def test_a_stateful_model_runs_only_if_that_is_allowed(tmp_path: Path, argv: list[str], capfd: Capture) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.calls = tf.Variable(0.0)
    model = _export(tmp_path / "m", lambda x: {"y": x + module.calls.assign_add(1.0)}, module, x=[None])
    argv = [f"--model={model}", *argv]
    for command in ("plan", "run"):
        assert main([command, *argv]) == 2
        told = capfd.readouterr().err
        assert "AssignAddVariableOp" in told
        assert "--allow_stateful_model" in told
    assert not (tmp_path / "out").exists()
    assert main([*argv, "--allow_stateful_model"]) == 0
    record = json.loads((tmp_path / "out" / JOB_RECORD).read_text())
    assert record["models"][""]["allow_stateful_model"] == ["AssignAddVariableOp"]
    assert "changes its own state" in (tmp_path / "out/_headrace/report.html").read_text()


def test_constants_and_chosen_outputs(tmp_path: Path, argv: list[str], capfd: Capture) -> None:
    import tensorflow as tf

    def call(x: Any, t: Any, w: Any) -> Any:
        return {"y": x / t, "z": x * tf.reduce_sum(w, 1), "labels": tf.constant(["a", "b", "c"]), "u": x}

    model = _export(tmp_path / "m", call, tf.Module(), x=[None], t=[], w=[None, 2])
    argv = [f"--model={model}", *argv, "--report=none"]
    assert main(["plan", *argv]) == 2
    assert "--constant" in capfd.readouterr().err
    argv += ["--constant=t=0.5", "--constant=w=[1, 2.5]"]
    assert main(["plan", *argv]) == 0
    assert "one value for the whole batch" in capfd.readouterr().out
    assert main([*argv, "--outputs=z,y", "--batch_size=4"]) == 0
    table = pq.ParquetFile(next((tmp_path / "out").glob("*.parquet"))).read()
    assert sorted(set(table.column_names) - {"x"}) == ["y", "z"]
    assert table["y"].to_pylist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert table["z"].to_pylist() == [0.0, 3.5, 7.0, 10.5, 14.0, 17.5]
    for wrong, word in (("--constant=t=warm", "t=warm"), ("--constant=s=1", "'s'"), ("--outputs=labels", "labels")):
        assert main(["plan", *[a for a in argv if not a.startswith(wrong[:13])], wrong]) == 2
        assert word in capfd.readouterr().err


def test_a_module_that_registers_operations_is_imported_everywhere(
    tmp_path: Path, argv: list[str], capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    (tmp_path / "registers.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write('x')")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = _export(tmp_path / "m", lambda x: {"y": x + 1.0}, tf.Module(), x=[None])
    argv = [f"--model={model}", *argv, "--report=none"]
    assert main([*argv, "--import_module=registers"]) == 0
    assert (tmp_path / "imported").read_text() == "x"
    capfd.readouterr()
    assert main(["plan", *argv, "--import_module=no_such_module"]) == 2
    assert "no_such_module" in capfd.readouterr().err
