"""Errors for a Keras configuration that safe mode refuses: the name, its place, and the flag that would allow it.

And for files that are not as Keras saved them.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import CorruptModel, HeadraceError, UnsupportedModel

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
# `inject_argument_info_in_traceback` of keras/src/utils/traceback_utils.py writes it in bold.
_MET_IN_CALL = re.compile(r"\x1b\[1m(.*?)\x1b\[0m", re.DOTALL)


def damaged(what: str, expected: str, found: str = "") -> CorruptModel:
    cure = "Copy the file again from where it was saved, or save it again."
    return CorruptModel(what, expected=expected, found=found, cure=cure)


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


def cannot_build(error: Exception, uri: str) -> HeadraceError:
    if isinstance(error, HeadraceError):
        return error
    unknown = re.search(r"(?:Could not locate (?:class|function)|Unknown [\w ]+:) '([^']+)'", str(error))
    if unknown and unknown[1] in KERAS_2_ONLY:
        return only_in_keras_2(uri, unknown[1], "its configuration")
    if unknown:
        return UnsupportedModel(
            f"{uri} uses {unknown[1]!r}, which is not known here",
            expected="classes of Keras, or registered ones",
            found=f"a custom object {unknown[1]!r}",
            cure="Name it with --custom_objects=module:name (custom_objects=…), or import the module that registers it "
            "with keras.saving.register_keras_serializable(), or export the model with model.export(…).",
        )
    return UnsupportedModel(
        f"Keras cannot rebuild the model of {uri} from its configuration",
        expected="a configuration that this version of Keras reads",
        found=cause(error),
        cure="Save the model again with this version of Keras, or export it with model.export(…).",
    )


def cause(error: BaseException) -> str:
    """`brief`, and what Keras says at the end of its text: the error that it met."""
    _, met, inner = str(error).rpartition("Exception encountered:")
    if not met:
        return brief(error)
    return f"{brief(error)} … {' '.join(inner.split())[:600]}"


def brief(error: BaseException) -> str:
    """Its kind, its first line, and what Keras puts between that and the arguments of a layer's call: the error that it met."""
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else ""
    met = _MET_IN_CALL.search(str(error)) if first.startswith("Exception encountered when calling") else None
    inner = f" … {' '.join(met[1].split())[:600]}" if met else ""
    return f"{type(error).__name__}: {first[:300]}{inner}"
