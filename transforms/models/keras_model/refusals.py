"""Errors for a Keras configuration that safe mode refuses: the name, its place, and the flag that would allow it."""

from __future__ import annotations

from typing import Any

from ...errors import UnsupportedModel

KERAS_2_ONLY = {
    *("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceProperty", "InstanceMethod", "DenseFeatures"),
    *("SequenceFeatures", "ThresholdedReLU", "LocallyConnected1D", "LocallyConnected2D", "CuDNNLSTM", "CuDNNGRU"),
    *("RandomFourierFeatures", "LinearModel", "WideDeepModel", "TensorFlowOpLayer", "AddMetric", "AddLoss"),
}

_ALLOWED = "export the model with model.export(…); if you trust whoever wrote the file, --unsafe_model (unsafe=True)"
_OWN = (
    "Name it with --custom_objects=module:name (custom_objects=…), or import the module that registers it "
    f"with keras.saving.register_keras_serializable(), or {_ALLOWED} builds it."
)


def python_code(uri: str, what: str, place: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{uri} holds Python code in {what}, at {place}, which headrace does not run",
        expected="layers that are rebuilt from their configuration",
        found="a lambda",
        cure=f"Replace the Lambda by a registered layer or keras.ops, or {_ALLOWED} runs its code.",
    )


def unknown(uri: str, name: str, place: str, module: Any) -> UnsupportedModel:
    if name in KERAS_2_ONLY:
        return only_in_keras_2(uri, name, place)
    if isinstance(module, str) and (module == "keras" or module.startswith("keras.")):
        return UnsupportedModel(
            f"{uri} names {module}.{name} at {place}, which safe mode does not allow",
            expected="parts of a model that touch no file, no network and no setting of the process",
            found=f"{module}.{name}",
            cure=f"{_ALLOWED[0].upper()}{_ALLOWED[1:]} builds it.",
        )
    return UnsupportedModel(
        f"{uri} uses {name!r}, which is not known here, at {place}",
        expected="classes of Keras, or registered ones",
        found=f"a custom object {name!r}" + (f" of {module}" if isinstance(module, str) else ""),
        cure=_OWN,
    )


def refused(uri: str, what: str, place: str, expected: str, found: str = "") -> UnsupportedModel:
    return UnsupportedModel(
        f"{uri} has {what} at {place}, which safe mode does not allow",
        expected=expected,
        found=found or what,
        cure=f"{_ALLOWED[0].upper()}{_ALLOWED[1:]} builds it.",
    )


def malformed(uri: str, place: str, expected: str, found: Any) -> UnsupportedModel:
    return UnsupportedModel(
        f"{uri} has a configuration that Keras does not write",
        expected=f"{expected} at {place}",
        found=str(found)[:200],
        cure="Save the model again with this version of Keras, or export it with model.export(…).",
    )


def too_much(uri: str, what: str, expected: str, found: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The configuration of {uri} {what}",
        expected=expected,
        found=found,
        cure="Build the model with smaller numbers, or export it with model.export(…).",
    )


def only_in_keras_2(uri: str, name: str, place: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{uri} uses {name!r} at {place}, which Keras 3 no longer has",
        expected="layers of Keras 3",
        found=f"{name}, a layer of Keras 2",
        cure="Save it as a SavedModel with tf_keras: "
        "tf_keras.models.load_model(file).export(folder), and name that folder as the model.",
    )
