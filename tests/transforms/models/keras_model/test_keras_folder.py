"""Keras models whose files lie apart: the unzipped folder, shards of weights, a configuration and weights of two URIs."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import (
    CorruptModel,
    InvalidRequest,
    NotAModel,
    ObjectChanged,
    SignatureNotFound,
    UnsupportedModel,
)
from headrace.transforms.models.keras_model import files as keras_files
from headrace.transforms.models.keras_model import model as keras_model
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.pin import pin_model
from headrace.transforms.storage import open_store
from headrace.transforms.storage.memory import put
from tests.support import keras_zoo
from tests.support.faulty_store import FaultyStore
from tests.support.keras_saved import assert_same_bits, by_name, feed

GIB = 1 << 30


@pytest.fixture(params=["resident", "streamed"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "streamed":
        monkeypatch.setattr(keras_files, "WHOLE_BYTES", 0)
    return str(request.param)


def unzipped(model: Any, folder: Path) -> str:
    model.save(folder / "model.keras")
    with zipfile.ZipFile(folder / "model.keras") as archive:
        archive.extractall(folder / "model")
    os.remove(folder / "model.keras")
    return str(folder / "model")


def sharded(model: Any, folder: Path, shards: int) -> str:
    """config.json, and about as many shards of weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(model.to_json())
    sizes = [int(np.prod(v.shape)) * 4 for v in model.weights]
    model.save_weights(folder / "model.weights.json", max_shard_size=max(*sizes, sum(sizes) / shards) / GIB)
    return str(folder)


def in_memory(folder: str, name: str) -> str:
    uri = f"memory://apart/{name}"
    for path in Path(folder).rglob("*"):
        if path.is_file():
            put(f"{uri}/{path.relative_to(folder)}", path.read_bytes())
    return uri


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("make", keras_zoo.ZOO, ids=lambda make: make.__name__)
def test_a_folder_predicts_to_the_bit_as_keras_does(make: Any, tmp_path: Path) -> None:
    import keras

    shown = make()
    folder = unzipped(shown.model, tmp_path)
    model = load_model(folder)
    assert model.format == "keras"
    native = keras.saving.load_model(folder, compile=False)
    assert_same_bits(model.predict(feed(model, shown.batch)), by_name(native.predict_on_batch(shown.batch)))
    spec = describe_model(folder)
    assert (spec.parameters, spec.nbytes) == (model.parameters, model.nbytes)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("make", [keras_zoo.convolutional, keras_zoo.recurrent, keras_zoo.nested])
def test_a_configuration_and_weights_of_two_places(make: Any, tmp_path: Path) -> None:
    import keras

    shown = make()
    config = sharded(shown.model, tmp_path, 3) + "/config.json"
    assert len(list(tmp_path.glob("model_*.weights.h5"))) >= 2
    shown.model.save_weights(tmp_path / "it.weights.h5")
    native = keras.models.model_from_json(Path(config).read_text())
    native.load_weights(tmp_path / "it.weights.h5")
    expected = by_name(native.predict_on_batch(shown.batch))
    for name in ("it.weights.h5", "model.weights.json", "it.keras", "it.h5", ""):
        weights = str(tmp_path / name)
        if name in ("it.keras", "it.h5"):
            shown.model.save(weights)
        if name:
            model, spec = load_model(config, weights=weights), describe_model(config, weights=weights)
            assert model.format == spec.format == "keras_config"
        else:
            model, spec = load_model(str(tmp_path)), describe_model(str(tmp_path))
        assert_same_bits(model.predict(feed(model, shown.batch)), expected)
        assert (spec.parameters, spec.nbytes) == (model.parameters, model.nbytes)


def large(layers: int = 6) -> Any:
    import keras

    model = keras.Sequential([keras.Input((1024,))] + [keras.layers.Dense(1024) for _ in range(layers)])
    model.compile("adam", "mse")
    model.fit(np.ones((2, 1024), np.float32), np.ones((2, 1024), np.float32), verbose=0)
    return model


def test_only_what_inference_uses_is_fetched(tmp_path: Path) -> None:
    model = large()
    places = {"folder": unzipped(model, tmp_path), "shards": sharded(model, tmp_path / "shards", 4)}
    for name, folder in places.items():
        ref = pin_model(in_memory(folder, name))
        store = open_store(ref.uri)
        found = keras_model.load(store, ref)
        assert found.nbytes == 6 * (1024 * 1024 + 1024) * 4
        metadata = (192 << 10) * (len(ref.objects) - 1)
        assert found.nbytes < store.counters.bytes_read <= 1.02 * found.nbytes + metadata
        store = open_store(ref.uri)
        assert keras_model.describe(store, ref).nbytes == found.nbytes
        assert store.counters.bytes_read < metadata + (256 << 10)


def test_the_weights_may_lie_in_another_store(tmp_path: Path) -> None:
    shown = keras_zoo.mlp()
    (tmp_path / "config.json").write_text(shown.model.to_json())
    shown.model.save_weights(tmp_path / "x.weights.h5")
    put("memory://elsewhere/x.weights.h5", (tmp_path / "x.weights.h5").read_bytes())
    config = str(tmp_path / "config.json")
    model = load_model(config, weights="memory://elsewhere/x.weights.h5")
    assert_same_bits(
        model.predict(feed(model, shown.batch)),
        load_model(config, weights=str(tmp_path / "x.weights.h5")).predict(feed(model, shown.batch)),
    )
    ref = pin_model(config, weights="memory://elsewhere/x.weights.h5")
    assert pickle.loads(pickle.dumps(ref)) == ref
    put("memory://elsewhere/x.weights.h5", (tmp_path / "x.weights.h5").read_bytes() + b"\0")
    assert pin_model(config, weights="memory://elsewhere/x.weights.h5").digest != ref.digest
    with pytest.raises(ObjectChanged):
        load_model(ref)


def test_shards_are_pinned_and_their_indexes_read_side_by_side(tmp_path: Path) -> None:
    ref = pin_model(in_memory(sharded(large(12), tmp_path, 8), "many"))
    assert len([o for o in ref.objects if o.uri.endswith(".weights.h5")]) >= 8
    store = FaultyStore(open_store(ref.uri))
    with keras_model._open(store, ref) as saved:
        assert isinstance(saved, keras_model._Saved)
        saved.weights.guess()
        assert saved.weights.round_trips <= 6


class TestRefusals:
    def test_a_configuration_alone(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(keras_zoo.mlp().model.to_json())
        for uri in (str(tmp_path), str(tmp_path / "config.json")):
            with pytest.raises(NotAModel, match=r"weights|no SavedModel"):
                load_model(uri)

    def test_weights_that_are_none(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(keras_zoo.mlp().model.to_json())
        (tmp_path / "x.h5").write_bytes(b"something else")
        (tmp_path / "x.weights.json").write_text("{}")
        for name, found in (
            ("x.h5", "no weights of Keras"),
            ("y.h5", "no weights at"),
            ("x.weights.json", "weight_map"),
        ):
            with pytest.raises(NotAModel, match=found):
                pin_model(str(tmp_path / "config.json"), weights=str(tmp_path / name))

    def test_weights_beside_a_whole_model(self, tmp_path: Path) -> None:
        keras_zoo.mlp().model.save(tmp_path / "x.keras")
        with pytest.raises(InvalidRequest, match=r"a file that holds a whole model\. Leave it out"):
            pin_model(str(tmp_path / "x.keras"), weights=str(tmp_path / "x.keras"))

    def test_npz(self, tmp_path: Path) -> None:
        folder = unzipped(keras_zoo.mlp().model, tmp_path)
        os.rename(f"{folder}/model.weights.h5", f"{folder}/model.weights.npz")
        with pytest.raises(UnsupportedModel, match="npz"):
            load_model(folder)

    def test_weights_of_another_model(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(keras_zoo.mlp().model.to_json())
        for name in ("x.weights.h5", "x.h5"):
            other = keras_zoo.convolutional().model
            other.save_weights(tmp_path / name) if "weights" in name else other.save(tmp_path / name)
            with pytest.raises(CorruptModel, match="do not fit"):
                load_model(str(tmp_path / "config.json"), weights=str(tmp_path / name))

    def test_only_serving_default(self, tmp_path: Path) -> None:
        with pytest.raises(SignatureNotFound):
            load_model(unzipped(keras_zoo.mlp().model, tmp_path), "predict")


class TestDamage:
    def index(self, folder: str) -> Any:
        return json.loads(Path(folder, "model.weights.json").read_text())

    def test_names_that_leave_the_folder(self, tmp_path: Path) -> None:
        folder = sharded(keras_zoo.convolutional().model, tmp_path, 3)
        for name in ("../x.weights.h5", "/etc/x.weights.h5", "a\\x.weights.h5", "https://x/x.weights.h5", 7, None):
            index = self.index(folder)
            index["weight_map"][next(iter(index["weight_map"]))] = name
            Path(folder, "model.weights.json").write_text(json.dumps(index))
            with pytest.raises(CorruptModel, match="no sound one"):
                load_model(folder)

    def test_a_shard_is_missing(self, tmp_path: Path) -> None:
        folder = sharded(keras_zoo.convolutional().model, tmp_path, 3)
        os.remove(Path(folder, "model_00001.weights.h5"))
        with pytest.raises(CorruptModel, match=r"model_00001\.weights\.h5"):
            load_model(folder)

    def test_the_map_lacks_a_layer(self, tmp_path: Path) -> None:
        folder = sharded(keras_zoo.convolutional().model, tmp_path, 3)
        index = self.index(folder)
        del index["weight_map"]["/layers/conv2d/vars"]
        Path(folder, "model.weights.json").write_text(json.dumps(index))
        with pytest.raises(CorruptModel, match=r"Conv2D|no value for variable"):
            load_model(folder)

    def test_the_map_is_no_json(self, tmp_path: Path) -> None:
        folder = sharded(keras_zoo.convolutional().model, tmp_path, 3)
        for text in ("", "{", "[" * 100_000):
            Path(folder, "model.weights.json").write_text(text)
            with pytest.raises(CorruptModel, match="not JSON"):
                load_model(folder)

    def test_truncated(self, tmp_path: Path, place: str) -> None:
        folder = sharded(keras_zoo.convolutional().model, tmp_path, 3)
        for path in Path(folder).glob("*.weights.h5"):
            whole = path.read_bytes()
            for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
                path.write_bytes(whole[:length])
                with pytest.raises(CorruptModel):
                    load_model(folder)
            path.write_bytes(whole)
        load_model(folder)
