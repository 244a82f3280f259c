"""Custom objects by name and by value, and the code that a file brings along."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import InvalidRequest, UnsupportedModel
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.pin import pin_model
from tests.support import keras_zoo
from tests.support.around import write_module
from tests.support.jobs import model_folder
from tests.support.keras_saved import assert_same_bits, by_name
from tests.support.warm import python

MODULE = '''
import keras

class Triple(keras.layers.Layer):
    """Registered nowhere."""
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones", name="w")
    def call(self, x):
        return x * self.w * 3

def halve(x):
    return x / 2

class Holder:
    @keras.saving.register_keras_serializable("mine")
    class Inner(Triple):
        pass
'''
MAKE = """
import sys, keras, numpy as np, my_layers
for name, layer in (("plain", my_layers.Triple()), ("registered", my_layers.Holder.Inner())):
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2, activation=my_layers.halve)])
    for form in ("keras", "h5"):
        model.save(f"{sys.argv[1]}/{name}.{form}")
    np.save(f"{sys.argv[1]}/{name}.npy", model.predict_on_batch(np.ones((3, 4), "float32")))
"""
LOAD = """
import sys, numpy as np
from headrace.transforms.errors import HeadraceError
from headrace.transforms.models.load import describe_model, load_model
for name in sys.argv[3:]:
    for form in ("keras", "h5"):
        uri = f"{sys.argv[1]}/{name}.{form}"
        given = tuple(filter(None, sys.argv[2].split(",")))
        try:
            model = load_model(uri, custom_objects=given)
            assert describe_model(uri, custom_objects=given).parameters == model.parameters
        except HeadraceError as error:
            print(name, form, error)
            continue
        found = model.predict({key: np.ones((3, 4), "float32") for key in model.inputs})["output_0"]
        print(name, form, found.tobytes() == np.load(f"{sys.argv[1]}/{name}.npy").tobytes())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("custom")
    (folder / "my_layers.py").write_text(MODULE)
    run(folder, MAKE, str(folder))
    return folder


def run(folder: Path, code: str, *arguments: str) -> list[str]:
    """In a process of its own, in which nothing is registered."""
    return python(textwrap.dedent(code), *arguments, path=[str(folder)]).splitlines()


def test_by_name(folder: Path) -> None:
    given = "my_layers:Triple,my_layers:halve,my_layers:Holder.Inner"
    found = run(folder, LOAD, str(folder), given, "plain", "registered")
    assert found == ["plain keras True", "plain h5 True", "registered keras True", "registered h5 True"]


def test_a_module_alone_registers_what_it_has(folder: Path) -> None:
    found = run(folder, LOAD, str(folder), "my_layers,my_layers:halve", "registered")
    assert found == ["registered keras True", "registered h5 True"]


def test_without_them(folder: Path) -> None:
    for line in run(folder, LOAD, str(folder), "", "plain"):
        assert "'Triple', which is not known here" in line or "'halve', which is not known here" in line
        assert "--custom_objects=module:name" in line


def test_what_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras_zoo.mlp().model.save(tmp_path / "x.keras")
    for name, source in {
        "half_written": "def f(:",
        "failing": "raise RuntimeError",
        "leaving": "raise SystemExit(0)",
    }.items():
        write_module(tmp_path, f"{name}_objects", source, monkeypatch)
    own = ("half_written_objects:x", "failing_objects:x", "leaving_objects")
    for given in (*own, "no_such_module:x", "json:no_such_name", ":x", ""):
        with pytest.raises(InvalidRequest, match="cannot be imported"):
            describe_model(str(tmp_path / "x.keras"), custom_objects=[given])


BACKEND = """
from headrace.transforms.errors import UnsupportedModel
from headrace.transforms.models.keras_model.build import keras_on_tensorflow
try:
    keras_on_tensorflow("m.keras")
except UnsupportedModel as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("backend", "why"), [("torch", "which cannot be imported"), ("mxnet", "which Keras does not have")]
)
def test_another_backend_of_keras_is_named(backend: str, why: str) -> None:
    environment = {**os.environ, "KERAS_BACKEND": backend}
    run = subprocess.run([sys.executable, "-c", BACKEND], capture_output=True, text=True, env=environment)
    assert f"KERAS_BACKEND={backend}, {why}" in run.stdout, run.stderr


def test_by_value(tmp_path: Path) -> None:
    import keras

    class Fourfold(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 4

    for form in ("keras", "h5"):
        keras.Sequential([keras.Input((2,)), Fourfold()]).save(uri := str(tmp_path / f"x.{form}"))
        with pytest.raises(UnsupportedModel, match="'Fourfold', which is not known here"):
            load_model(uri)
        model = load_model(uri, custom_objects={"Fourfold": Fourfold})
        (name,) = model.inputs
        batch = np.ones((2, 2), np.float32)
        np.testing.assert_array_equal(model.predict({name: batch})["output_0"], batch * 4)
        assert describe_model(uri, custom_objects={"Fourfold": Fourfold}).parameters == 0


def test_the_error_of_a_layers_own_call_is_shown(tmp_path: Path) -> None:
    import keras

    class Moody(keras.layers.Layer):
        fails = False

        def call(self, x: Any) -> Any:
            if self.fails:
                raise RuntimeError("the table\nis missing")
            return x

    keras.Sequential([keras.Input((2,)), Moody()]).save(uri := str(tmp_path / "x.keras"))
    Moody.fails = True
    with pytest.raises(UnsupportedModel, match=r"Exception encountered when calling Moody.*the table is missing"):
        load_model(uri, custom_objects={"Moody": Moody})


def test_classes_are_refused_where_they_are_not_used() -> None:
    with pytest.raises(InvalidRequest, match=r"custom_objects.* does not go with .*custom objects Thing"):
        load_model(str(model_folder() / "saved_model"), custom_objects={"Thing": object})


def test_they_are_part_of_what_the_model_is(tmp_path: Path) -> None:
    keras_zoo.mlp().model.save(tmp_path / "x.keras")
    uri = str(tmp_path / "x.keras")
    refs = [
        pin_model(uri),
        pin_model(uri, custom_objects=["a:b"]),
        pin_model(uri, custom_objects=["a:c"]),
        pin_model(uri, unsafe=True),
    ]
    assert len({ref.digest for ref in refs}) == len({hash(ref) for ref in refs}) == 4
    assert [pickle.loads(pickle.dumps(ref)) for ref in refs] == refs


def test_code_runs_only_where_it_is_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2, name="twice")])
    batch = np.ones((2, 2), np.float32)
    for form in ("keras", "h5"):
        model.save(uri := str(tmp_path / f"code.{form}"))
        for look in (load_model, describe_model):
            with pytest.raises(UnsupportedModel, match=r"Lambda layer 'twice'.*--unsafe_model"):
                look(uri)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded = load_model(uri, unsafe=True)
            load_model(uri, unsafe=True)
        warnings = [record.getMessage() for record in caplog.records if "safe mode is off" in record.getMessage()]
        assert len(warnings) == 1
        assert uri in warnings[0]
        (name,) = loaded.inputs
        assert_same_bits(loaded.predict({name: batch}), by_name(model.predict_on_batch(batch)))
        assert keras.src.saving.serialization_lib.in_safe_mode() is None
