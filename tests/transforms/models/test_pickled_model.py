"""A loaded model in another process: pickled, it is loaded again there; forked, it says that it cannot compute."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.transforms.errors import InvalidRequest, UnsupportedModel
from headrace.transforms.models.load import load_model
from tests.support.jobs import FEATURES, model_folder

_UNPICKLE = """
import pickle, sys
import numpy as np
with open(sys.argv[1], "rb") as file:
    models = pickle.load(file)
assert models[0] is models[1]
x = {"x": np.load(sys.argv[2])}
np.save(sys.argv[3], models[0].predict(x)["output_0"])
"""
# A forked child in which TensorFlow's threads are missing would wait for ever.
_SECONDS = 25


@pytest.mark.parametrize("name", ["saved_model", "model.keras"])
def test_a_pickled_model_is_loaded_once_where_it_is_unpickled(tmp_path: Path, name: str) -> None:
    model = load_model(str(model_folder() / name))
    x = np.arange(2 * FEATURES, dtype=np.float32).reshape(2, FEATURES)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "models").write_bytes(pickle.dumps([model, pickle.loads(pickle.dumps(model))]))
    arguments = [str(tmp_path / part) for part in ("models", "x.npy", "y.npy")]
    run = subprocess.run([sys.executable, "-c", _UNPICKLE, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model.predict({"x": x})["output_0"])


def test_custom_objects_given_as_classes_cannot_be_pickled() -> None:
    model = load_model(str(model_folder() / "model.keras"), custom_objects={"Unused": object})
    with pytest.raises(InvalidRequest, match="module:name"):
        pickle.dumps(model)


@pytest.mark.parametrize("where", ["the model itself", "loaded again", "another model"])
def test_a_forked_child_ends_with_an_error_that_says_what_to_do(where: str) -> None:
    model = load_model(str(model_folder() / "saved_model"))
    x = {"x": np.ones((1, FEATURES), np.float32)}
    model.predict(x)
    again = str(model_folder() / "model.keras") if where == "another model" else model.ref
    read, write = os.pipe()
    child = os.fork()
    if not child:
        said = "no error"
        try:
            (model if where == "the model itself" else load_model(again)).predict(x)
        except UnsupportedModel as error:
            said = str(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], _SECONDS)
        assert ready, "the forked child hangs"
        assert "spawn" in os.read(read, 4096).decode()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
