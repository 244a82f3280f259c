"""Keras models that draw random numbers or keep state between calls are known by their layers, before a weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import StreamingModelHandler
from headrace.transforms.errors import UnsupportedModel
from headrace.transforms.models.load import describe_for_job, describe_model, load_model
from headrace.transforms.models.pin import pin_model
from headrace.transforms.models.spec import Operations


def _saved(folder: Path, call: Callable[[Any, Any], Any], shape: tuple[int, ...], **how: Any) -> str:
    import keras

    x = keras.Input(shape, name="x", **how)
    path = folder / "model.keras"
    keras.Model(x, call(keras.layers, x)).save(path)
    return str(path)


def _found(uri: str) -> Operations:
    return describe_model(uri).operations["serving_default"]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_stateful_recurrent_layer_is_refused_in_jobs_unless_that_is_allowed(tmp_path: Path, kind: str) -> None:
    uri = _saved(tmp_path, lambda of, x: getattr(of, kind)(2, stateful=True, name="memory")(x), (3, 1), batch_size=4)
    assert _found(uri).writes == (f"{kind} 'memory'",)
    with pytest.raises(UnsupportedModel, match=f"{kind} 'memory'.*--allow_stateful_model"):
        describe_for_job(pin_model(uri), "serving_default")
    describe_for_job(pin_model(uri, allow_stateful=True), "serving_default")
    with pytest.raises(UnsupportedModel, match=f"{kind} 'memory'.*allow_stateful"):
        StreamingModelHandler(uri).load_model()
    model = load_model(uri)
    assert model.operations == _found(uri)
    x = {"x": np.ones((4, 3, 1), np.float32)}
    first, second = (next(iter(model.predict(x).values())) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    "call",
    [
        lambda of, x: of.LSTM(2, dropout=0.5)(x),
        lambda of, x: of.Dropout(0.5)(x),
        lambda of, x: of.Dropout(0.0)(x, training=True),
        lambda of, x: of.BatchNormalization()(x),
    ],
    ids=["recurrent", "dropout", "rate 0", "normalization"],
)
def test_what_acts_only_in_training_is_neither_random_nor_state(tmp_path: Path, call: Any) -> None:
    assert _found(_saved(tmp_path, call, (3, 1))) == Operations()
