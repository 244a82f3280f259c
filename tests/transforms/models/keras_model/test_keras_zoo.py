from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.models.keras_model import build as keras_build
from headrace.transforms.models.keras_model import files as keras_files
from headrace.transforms.models.keras_model import model as keras_model
from headrace.transforms.models.keras_model.model import describe, load
from headrace.transforms.models.keras_model.weights import SavedWeights, Tensor
from tests.support import keras_zoo
from tests.support.keras_saved import assert_same_bits, by_name, feed, loaded, repacked, stored, unchanged


@pytest.fixture(scope="module", params=keras_zoo.ZOO, ids=lambda make: make.__name__)
def exhibit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    shown = request.param()
    path = tmp_path_factory.mktemp("zoo") / "model.keras"
    shown.model.save(path)
    return path, shown.batch


class TestZoo:
    """Each model of the zoo, saved once, against Keras' own loading."""

    @pytest.mark.parametrize("place", ["resident", "streamed", "deflated"])
    def test_predicts_to_the_bit_as_keras_does(
        self, exhibit: tuple[Path, Any], place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import keras

        path, batch = exhibit
        data = path.read_bytes()
        if place == "streamed":
            monkeypatch.setattr(keras_files, "WHOLE_BYTES", 0)
        if place == "deflated":
            data = repacked(data, unchanged, zipfile.ZIP_DEFLATED)
        model = loaded(data)
        expected = by_name(keras.saving.load_model(path).predict_on_batch(batch))
        assert_same_bits(model.predict(feed(model, batch)), expected)

    def test_is_described_without_its_weights_as_it_is_loaded(
        self, exhibit: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import keras

        monkeypatch.setattr(keras_files, "WHOLE_BYTES", 0)
        store, ref = stored(exhibit[0].read_bytes())
        spec, model = describe(store, ref), load(store, ref)
        signature = spec.signatures["serving_default"]
        assert spec.format == "keras"
        assert (dict(signature.inputs), dict(signature.outputs)) == (model.inputs, model.outputs)
        assert (spec.parameters, spec.nbytes) == (model.parameters, model.nbytes)
        native = keras.saving.load_model(exhibit[0], compile=False)
        assert spec.parameters == sum(int(np.prod(v.shape)) for v in native.weights)

    def test_keras_asks_for_what_was_planned_and_nothing_else(
        self, exhibit: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, ref = stored(exhibit[0].read_bytes())
        with keras_model._open(store, ref) as opened:
            assert isinstance(opened, keras_model._Saved)
            planned = {tensor.dataset.path for tensor in opened.plan(keras_build.build(opened.recipe))}
            guessed = {tensor.dataset.path for tensor in opened.weights.guess()}
        asked: set[str] = set()
        take = SavedWeights.take

        def noting(weights: SavedWeights, tensor: Tensor, stream: Any) -> Any:
            asked.add(tensor.dataset.path)
            return take(weights, tensor, stream)

        monkeypatch.setattr(SavedWeights, "take", noting)
        load(store, ref)
        assert asked == planned
        assert {path for path in guessed - planned if "loss_tracker" not in path} == set()
        assert planned <= guessed

    def test_has_the_names_of_its_export(self, exhibit: tuple[Path, Any], tmp_path: Path) -> None:
        import keras
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

        native = keras.saving.load_model(exhibit[0], compile=False)
        if type(native).__name__ == "Tower":
            native(exhibit[1])  # export asks for a model that was called
        native.export(str(tmp_path), verbose=False)
        definition = SavedModel.FromString((tmp_path / "saved_model.pb").read_bytes())
        signature = definition.meta_graphs[0].signature_def["serving_default"]
        model = loaded(exhibit[0].read_bytes())
        assert set(model.inputs) == set(signature.inputs)
        assert set(model.outputs) == set(signature.outputs)
        for name, spec in model.inputs.items():
            dims = [None if d.size == -1 else d.size for d in signature.inputs[name].tensor_shape.dim]
            # An export opens the batch, even one that the model is fixed to.
            assert [None, *(spec.shape or ())[1:]] == dims
