"""The command imports what its job uses; nothing else changes by that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.pipeline.unused_modules import unused_modules
from tests.support import model_zoo

# After a job: what was loaded, whether Keras can still be had, and whether it registers anything that loading a model asks for.
PROGRAM = """
import importlib, json, sys
from headrace.pipeline.start import entry
sys.argv[1:] = json.loads(sys.argv[1])
try:
    entry()
except SystemExit as end:
    code = end.code
loaded = sorted(sys.modules)

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.saved_model import nested_structure_coder, revived_types
from tensorflow.python.saved_model.registration import registration

def registered():
    return [
        sorted(revived_types._REVIVED_TYPE_REGISTRY),
        list(registration._class_registry._registered_names),
        list(registration._saver_registry._registered_names),
        [type(codec).__name__ for codec in nested_structure_coder._codecs],
        sorted(ops._gradient_registry._registry),
    ]

before = registered()
dense = tf.keras.layers.Dense.__name__
from headrace.pipeline.flags.beam_options import _every_flag
flags = sorted(flag for action in _every_flag()._actions for flag in action.option_strings)
print(json.dumps({"code": code, "loaded": loaded, "same": before == registered(), "dense": dense, "flags": flags}))
"""

FLAGS = """
import json
from headrace.pipeline.flags.beam_options import _every_flag
print(json.dumps(sorted(flag for action in _every_flag()._actions for flag in action.option_strings)))
"""


def test_a_job_imports_neither_keras_nor_clients_of_clouds(tmp_path: Path) -> None:
    inputs = model_zoo.keras_export(tmp_path / "model")["serving_default"]["pixels"]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(inputs.ravel()), inputs.shape[1])
    pq.write_table(pa.table({"pixels": rows}), tmp_path / "rows.parquet")
    job = [f"--model={tmp_path}/model", f"--input={tmp_path}/rows.parquet", f"--output={tmp_path}/out", "--json"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(job)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert not found["code"]
    assert json.loads("\n".join(run.stdout.splitlines()[:-1]))["rows"] == len(inputs)
    unused = {"keras", "apache_beam.typehints.pandas_type_compatibility", *unused_modules(job)}
    assert "pandas" in unused
    assert len(unused) > 8
    assert unused & set(found["loaded"]) == set()
    # Of what is left out, a SavedModel and the command line need nothing.
    assert found["same"]
    assert found["dense"] == "Dense"
    # Another process without left-out modules: this one may know options of Beam that another test has imported.
    whole = subprocess.run([sys.executable, "-c", FLAGS], capture_output=True, text=True, env=environment, check=True)
    assert found["flags"] == json.loads(whole.stdout)


@pytest.mark.parametrize(
    "flag",
    [
        "--runner=DataflowRunner",
        "--temp_location=gs://b/t",
        "--preprocess=m:f",
        "--import_module=m",
        "--user_package=p",
    ],
)
def test_a_flag_of_beam_or_a_module_of_the_user_leaves_nothing_out(flag: str) -> None:
    job = ["--model=m", "--input=i", "--output", "o", "--verbose"]
    assert unused_modules(job) == unused_modules(["plan", *job]) != ()
    assert unused_modules([*job, flag]) == unused_modules(["plan", *job, *flag.split("=")]) == ()
