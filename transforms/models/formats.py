"""The formats of models: the module that reads each, and what a model of it can do."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol, cast

from ..storage import Store
from .model import Model
from .ref import ModelRef
from .spec import ModelSpec
from .streaming.tensor_stream import StreamOptions


class Reader(Protocol):
    """The interface of a format's module."""

    def describe(self, store: Store, ref: ModelRef, signature: str | None = None) -> ModelSpec: ...

    def load(self, store: Store, ref: ModelRef, signature: str, stream: StreamOptions) -> Model: ...


@dataclass(frozen=True, slots=True)
class ModelFormat:
    module: str
    """Imported when a model of the format is read: it may import TensorFlow, Keras or h5py."""
    in_words: str
    runs_on_tensorflow: bool = True
    runs_on_gpu: bool = True
    compiles: bool = True
    """XLA can compile it."""

    @property
    def reader(self) -> Reader:
        return cast(Reader, importlib.import_module(f"{__package__}.{self.module}"))


FORMATS = {
    "saved_model": ModelFormat("saved_model.tf2", "a SavedModel"),
    "keras": ModelFormat("keras_model.model", "a Keras model"),
    "keras_h5": ModelFormat("keras_model.model", "a Keras model in an HDF5 file"),
    "keras_config": ModelFormat("keras_model.model", "a Keras configuration with weights apart"),
    "keras_hub": ModelFormat("keras_model.model", "a KerasHub preset", compiles=False),
    "keras_orbax": ModelFormat("keras_model.model", "an Orbax checkpoint of a Keras model"),
    "tflite": ModelFormat("tflite", "a TFLite flatbuffer", runs_on_tensorflow=False, runs_on_gpu=False, compiles=False),
}


def format_of(ref: ModelRef) -> ModelFormat:
    return FORMATS[ref.format]
