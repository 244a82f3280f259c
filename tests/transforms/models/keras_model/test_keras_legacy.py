"""Whole models in HDF5 files: as Keras 2 wrote them, by Keras 2 itself, and as Keras 3 still does."""

from __future__ import annotations

import io
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import CorruptModel, ModelError, NotAModel, UnsupportedModel
from headrace.transforms.models.keras_model import files as keras_files
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.pin import pin_model
from headrace.transforms.storage import open_store
from headrace.transforms.storage.memory import put
from tests.support import keras2_zoo, keras_zoo
from tests.support.keras_saved import assert_same_bits, by_name, feed
from tests.support.warm import python

_names = itertools.count()
# Keras 3 itself cannot read the others.
READ_BY_KERAS_3 = ("mlp", "reading", "normalizing")
KEPT_BY_H5 = ("mlp", "unnamed", "convolutional", "augmenting", "normalizing", "recurrent", "nested")


@pytest.fixture(scope="module")
def keras2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras2")
    done = subprocess.run(
        [sys.executable, "tests/support/keras2_zoo.py", str(folder)],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(params=["resident", "streamed"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "streamed":
        monkeypatch.setattr(keras_files, "WHOLE_BYTES", 0)
    return str(request.param)


def in_memory(data: bytes) -> str:
    uri = f"memory://legacy/{next(_names)}.h5"
    put(uri, data)
    return uri


def saved_h5(model: Any, folder: Path) -> bytes:
    model.save(path := folder / "model.h5")
    return path.read_bytes()


def changed(data: bytes, edit: Callable[[Any], object]) -> str:
    import h5py

    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        edit(file)
    return in_memory(buffer.getvalue())


@pytest.mark.usefixtures("place")
class TestKeras2:
    @pytest.mark.parametrize("file", [*(f"{make.__name__}.h5" for make in keras2_zoo.MODELS), "nested.keras"])
    def test_predicts_as_keras_2_did(self, keras2: Path, file: str) -> None:
        model, name = load_model(str(keras2 / file)), file.partition(".")[0]
        assert model.format == ("keras_h5" if file.endswith(".h5") else "keras")
        found = model.predict(feed(model, keras2_zoo.BATCHES[name]))
        expected = by_name(list(np.load(keras2 / f"{name}.npz").values()))
        assert found.keys() == expected.keys()
        for output, value in expected.items():
            np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", READ_BY_KERAS_3)
    def test_predicts_to_the_bit_as_keras_3_does(self, keras2: Path, name: str) -> None:
        import keras

        path, batch = str(keras2 / f"{name}.h5"), keras2_zoo.BATCHES[name]
        model = load_model(path)
        native = keras.saving.load_model(path, compile=False)
        assert_same_bits(model.predict(feed(model, batch)), by_name(native.predict_on_batch(batch)))
        spec = describe_model(path)
        assert (spec.parameters, spec.nbytes) == (model.parameters, model.nbytes)
        assert dict(spec.signatures["serving_default"].inputs) == model.inputs
        assert dict(spec.signatures["serving_default"].outputs) == model.outputs

    def test_inputs_may_be_of_any_length(self, keras2: Path) -> None:
        for name, tail in (("reading", ()), ("recurrent", (4,))):
            model = load_model(str(keras2 / f"{name}.h5"))
            (spec,) = model.inputs.values()
            assert spec.shape == (None, None, *tail)
            native = model._keep[0]  # type: ignore[index]
            for steps in (4, 9):
                batch = np.ones((3, steps, *tail), np.float32)
                # predict_on_batch relaxes its shapes with the second length, and TimeDistributed errs from then on.
                assert_same_bits(model.predict({spec.name: batch}), by_name(native(batch, training=False)))

    def test_architecture_and_weights_apart(self, keras2: Path, tmp_path: Path) -> None:
        """to_json of Keras 2 up to 2.12 is what the HDF5 file holds."""
        import h5py

        for name in ("mlp", "nested", "recurrent"):
            with h5py.File(keras2 / f"{name}.h5") as file:
                (tmp_path / "model.json").write_text(file.attrs["model_config"])
            apart = load_model(str(tmp_path / "model.json"), weights=str(keras2 / f"{name}-weights.h5"))
            whole = load_model(str(keras2 / f"{name}.h5"))
            batch = keras2_zoo.BATCHES[name]
            assert apart.format == "keras_config"
            assert_same_bits(apart.predict(feed(apart, batch)), whole.predict(feed(whole, batch)))
            again = load_model(str(tmp_path / "model.json"), weights=str(keras2 / f"{name}.h5"))
            assert_same_bits(again.predict(feed(again, batch)), whole.predict(feed(whole, batch)))


class TestOldForms:
    """What versions before 2.3 wrote, made of what Keras 2 writes now."""

    def same(self, keras2: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> Any:
        """The model of a configuration changed by `edit`, which predicts as the unchanged one does."""

        def rewrite(file: Any) -> None:
            config = json.loads(file.attrs["model_config"])
            edit(config)
            file.attrs["model_config"] = json.dumps(config)

        uri = changed((keras2 / f"{name}.h5").read_bytes(), rewrite)
        model, plain = load_model(uri), load_model(str(keras2 / f"{name}.h5"))
        batch = keras2_zoo.BATCHES[name]
        found, expected = model.predict(feed(model, batch)), plain.predict(feed(plain, batch))
        assert_same_bits(found, expected)
        signature = describe_model(uri).signatures["serving_default"]
        assert (dict(signature.inputs), dict(signature.outputs)) == (model.inputs, model.outputs)
        assert [spec.shape for spec in model.inputs.values()] == [spec.shape for spec in plain.inputs.values()]
        return model

    @pytest.mark.parametrize("name", ["mlp", "reading"])
    @pytest.mark.parametrize("bare", [True, False])
    def test_no_input_layer(self, keras2: Path, name: str, bare: bool) -> None:
        def edit(config: dict[str, Any]) -> None:
            layers = config["config"]["layers"]
            shape = layers.pop(0)["config"]["batch_input_shape"]
            layers[0]["config"]["batch_input_shape"] = shape
            if bare:
                config["config"] = layers

        self.same(keras2, name, edit)

    def test_names_with_a_slash(self, keras2: Path) -> None:
        def edit(config: dict[str, Any]) -> None:
            text = json.dumps(config).replace('"shared"', '"block/shared"').replace('"left"', '"in/left"')
            config.update(json.loads(text))

        assert "in_left" in self.same(keras2, "nested", edit).inputs

    def test_defaults_of_then(self, keras2: Path) -> None:
        def edit(config: dict[str, Any]) -> None:
            for layer in config["config"]["layers"]:
                layer["config"].pop("recurrent_activation", None)
                inner = layer["config"].get("layer", {}).get("config", {})
                if inner.pop("recurrent_activation", None):
                    del inner["reset_after"]

        uri = str(keras2 / "gated.h5")

        def rewrite(file: Any) -> None:
            file.attrs["keras_version"] = "2.1.2"
            config = json.loads(file.attrs["model_config"])
            edit(config)
            file.attrs["model_config"] = json.dumps(config)

        model, plain = load_model(changed(Path(uri).read_bytes(), rewrite)), load_model(uri)
        batch = keras2_zoo.BATCHES["gated"]
        assert_same_bits(model.predict(feed(model, batch)), plain.predict(feed(plain, batch)))
        self.same(keras2, "filming", edit)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", KEPT_BY_H5)
def test_keras_3_files_predict_to_the_bit(tmp_path: Path, name: str) -> None:
    import keras

    shown = getattr(keras_zoo, name)()
    uri = in_memory(saved_h5(shown.model, tmp_path))
    model = load_model(uri)
    native = keras.saving.load_model(tmp_path / "model.h5", compile=False)
    assert_same_bits(model.predict(feed(model, shown.batch)), by_name(native.predict_on_batch(shown.batch)))
    assert describe_model(uri).nbytes == model.nbytes


def test_names_that_do_not_fit_one_attribute(tmp_path: Path) -> None:
    import h5py
    import keras

    layers = [keras.layers.Dense(3, name=f"{i}-" + "x" * 2000) for i in range(40)]
    data = saved_h5(keras.Sequential([keras.Input((3,)), *layers]), tmp_path)
    with h5py.File(io.BytesIO(data)) as file:
        assert "layer_names1" in file["model_weights"].attrs
    model = load_model(in_memory(data))
    batch = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    native = keras.saving.load_model(tmp_path / "model.h5", compile=False)
    assert_same_bits(model.predict(feed(model, batch)), by_name(native.predict_on_batch(batch)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """24 MiB of weights, and twice as many bytes of Adam's state."""
    import keras

    model = keras.Sequential([keras.Input((1024,))] + [keras.layers.Dense(1024) for _ in range(6)])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((2, 1024), np.float32), np.ones((2, 1024), np.float32), verbose=0)
    return saved_h5(model, tmp_path_factory.mktemp("trained"))


def test_the_optimizer_is_never_fetched(trained: bytes) -> None:
    ref = pin_model(in_memory(trained))
    store = open_store(ref.uri)
    from headrace.transforms.models.keras_model import model as keras_model

    model = keras_model.load(store, ref)
    assert ref.objects[0].size > 2.9 * model.nbytes
    assert model.nbytes == model.parameters * 4 == 6 * (1024 * 1024 + 1024) * 4
    assert model.nbytes < store.counters.bytes_read <= 1.02 * model.nbytes + (192 << 10)
    assert store.counters.requests < 60
    store = open_store(ref.uri)
    assert keras_model.describe(store, ref).nbytes == model.nbytes
    assert store.counters.bytes_read < 512 << 10


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return saved_h5(keras_zoo.mlp().model, tmp_path_factory.mktemp("mlp"))


class TestRefusals:
    def test_bytecode_is_never_unmarshalled(self, mlp: bytes) -> None:
        layer = {
            "class_name": "Lambda",
            "config": {"name": "code", "function": ["!not bytecode!", None, None], "function_type": "lambda"},
        }

        def add(file: Any) -> None:
            config = json.loads(file.attrs["model_config"])
            config["config"]["layers"].append(layer)
            file.attrs["model_config"] = json.dumps(config)

        uri = changed(mlp, add)
        for look in (load_model, describe_model):
            with pytest.raises(UnsupportedModel, match=r"Python code in Lambda layer 'code'.*--unsafe_model"):
                look(uri)
        with pytest.raises(UnsupportedModel, match="cannot rebuild"):
            load_model(uri, unsafe=True)

    def test_a_vocabulary_that_the_file_does_not_hold(self, tmp_path: Path) -> None:
        uri = in_memory(saved_h5(keras_zoo.looking_up().model, tmp_path))
        with pytest.raises(UnsupportedModel, match="no vocabulary for its StringLookup"):
            load_model(uri)

    def test_weights_alone(self, keras2: Path) -> None:
        with pytest.raises(NotAModel, match=r"no whole model.*--weights"):
            load_model(str(keras2 / "mlp-weights.h5"))

    @pytest.mark.parametrize("name", ["TFOpLambda", "DenseFeatures", "ThresholdedReLU", "LocallyConnected1D"])
    def test_layers_that_only_keras_2_has(self, mlp: bytes, name: str) -> None:
        def rename(file: Any) -> None:
            file.attrs["model_config"] = file.attrs["model_config"].replace('"Dropout"', f'"{name}"')

        uri = changed(mlp, rename)
        for unsafe in (False, True):
            with pytest.raises(UnsupportedModel, match=rf"'{name}'.*Save it as a SavedModel with tf_keras") as raised:
                load_model(uri, unsafe=unsafe)
            assert "--custom_objects" not in str(raised.value)

    def test_an_unknown_layer(self, mlp: bytes) -> None:
        def rename(file: Any) -> None:
            file.attrs["model_config"] = file.attrs["model_config"].replace('"Dropout"', '"Drizzle"')

        with pytest.raises(UnsupportedModel, match=r"'Drizzle'.*--custom_objects"):
            load_model(changed(mlp, rename))


class TestDamage:
    def test_a_weight_is_missing(self, mlp: bytes) -> None:
        def drop(file: Any) -> None:
            layer = next(layer for layer in file["model_weights"].values() if len(layer.attrs["weight_names"]))
            del layer[layer.attrs["weight_names"][0]]

        with pytest.raises(CorruptModel, match="has no weight"):
            load_model(changed(mlp, drop))

    def test_a_layer_is_missing(self, mlp: bytes) -> None:
        def drop(file: Any) -> None:
            group = file["model_weights"]
            group.attrs["layer_names"] = group.attrs["layer_names"][:1]

        with pytest.raises(CorruptModel, match="number of layers"):
            load_model(changed(mlp, drop))

    def test_a_weight_is_not_named(self, mlp: bytes) -> None:
        def drop(file: Any) -> None:
            for layer in file["model_weights"].values():
                if len(layer.attrs["weight_names"]):
                    layer.attrs["weight_names"] = layer.attrs["weight_names"][:1]

        with pytest.raises(CorruptModel, match="number of weights"):
            load_model(changed(mlp, drop))

    def test_a_shape_differs(self, mlp: bytes) -> None:
        def turn(file: Any) -> None:
            for layer in file["model_weights"].values():
                for name in layer.attrs["weight_names"]:
                    value = layer[name][()].T.copy()
                    del layer[name]
                    layer[name] = value

        with pytest.raises(CorruptModel, match=r"do not fit its Dense"):
            load_model(changed(mlp, turn))

    def test_names_are_not_text(self, mlp: bytes) -> None:
        def number(file: Any) -> None:
            file["model_weights"].attrs["layer_names"] = np.arange(3)

        with pytest.raises(CorruptModel, match="layer_names"):
            load_model(changed(mlp, number))

    def test_links_that_leave_the_file(self, mlp: bytes) -> None:
        import h5py

        def link(file: Any) -> None:
            group = file["model_weights"]
            name = next(n for n in group if len(group[n].attrs["weight_names"]))
            del group[name]
            group[name] = h5py.ExternalLink("/etc/passwd", "x")

        with pytest.raises(UnsupportedModel, match="an external link"):
            load_model(changed(mlp, link))

    def test_truncated(self, mlp: bytes) -> None:
        for length in [*range(8, 600, 41), *range(600, len(mlp), 1777), len(mlp) - 1]:
            with pytest.raises((CorruptModel, NotAModel)):
                load_model(in_memory(mlp[:length]))

    def test_flipped_bits_never_crash(self, mlp: bytes, tmp_path: Path) -> None:
        (tmp_path / "model.h5").write_bytes(mlp)
        python(
            "import sys; from tests.transforms.models.keras_model.test_keras_legacy import flip; flip(sys.argv[1], 60)",
            str(tmp_path / "model.h5"),
        )


def flip(path: str, times: int) -> None:
    """Loads the file streamed, with a bit of it wrong: a `ModelError`, or a model that predicts."""
    keras_files.WHOLE_BYTES = 0
    data = Path(path).read_bytes()
    rng = random.Random(5)
    for _ in range(times):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            load_model(in_memory(bytes(damaged))).predict({"pixels": np.ones((2, 12), np.float32)})
        except ModelError:
            continue
