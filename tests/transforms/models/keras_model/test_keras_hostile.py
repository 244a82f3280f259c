"""Configurations that no Keras writes: other values in a name's place, one name beside another, numbers without end."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from headrace.transforms.errors import HeadraceError, UnsupportedModel
from headrace.transforms.models.keras_model.build import Recipe, build
from tests.transforms.models.keras_model.test_keras_safe_mode import (
    applied,
    built,
    call,
    function,
    layer,
    model,
    no_effects,
    older,
)

DENSE = {"class_name": "Dense", "config": {"name": "y", "units": 2}}


def data(**config: Any) -> dict[str, Any]:
    return applied(function("add"), {"x2": {"class_name": "__numpy__", "config": config}})


NO_NAMES: dict[str, Any] = {
    "a class": model(layer([], {}, call("x"))),  # type: ignore[arg-type]
    "a class within data": data(value={"class_name": []}, dtype="int32"),
    "a dtype of data": data(value=1, dtype=[]),
    "a function": applied({**function("relu"), "config": {}}),
    "a class in arguments": applied(function("split"), {"axis": {"class_name": {}, "x": 1}}),
    "a registered name": model({**layer("Dense", {"units": 2}, call("x")), "registered_name": ["Dense"]}),
    "a module": model({**layer("Dense", {"units": 2}, call("x")), "module": ["keras.layers"]}),
}
NO_NAMES_OLDER: dict[str, Any] = {
    "a layer": older({"class_name": "Dense", "config": {"name": [1], "units": 2}}),
    "a layer beside one with a slash": older({"class_name": "Dense", "config": {"name": {"a/b": 1}, "units": {}}}),
    "a model within": {
        "class_name": "Model",
        "config": {
            "name": "a/b",
            "layers": [
                {"class_name": "Model", "name": {}, "config": {"layers": [{"class_name": "InputLayer"}]}},
                {**DENSE, "name": {}, "inbound_nodes": [[["y", 1, 0, {}]]]},
            ],
        },
    },
}


@pytest.mark.parametrize("what", NO_NAMES)
def test_what_stands_for_a_name_and_is_none(what: str) -> None:
    with no_effects(), pytest.raises(HeadraceError):
        built(NO_NAMES[what])


@pytest.mark.parametrize("what", NO_NAMES_OLDER)
def test_what_stands_for_a_name_in_the_older_form(what: str) -> None:
    with no_effects(), pytest.raises(HeadraceError):
        built(NO_NAMES_OLDER[what], legacy=True)


@pytest.mark.parametrize("version", [5, ["2.1"], {}, True])
def test_a_version_that_is_no_text(version: Any) -> None:
    described = {**model(layer("Dense", {"units": 2}, call("x"))), "keras_version": version}
    assert build(Recipe("config.json", json.dumps(described))).model.inputs


class TestBesideWhatIsRegistered:
    """Keras goes by `class_name` where the module is missing, and by `registered_name` else."""

    @pytest.fixture(autouse=True)
    def known(self) -> Any:
        import keras

        class Scale(keras.layers.Layer):
            def call(self, x: Any) -> Any:
                return x

        class TorchModuleWrapper(Scale):
            pass

        self.called: list[Any] = []

        def loads(*arguments: Any, **options: Any) -> Any:
            self.called.append((arguments, options))

        names = {"pkg>Scale": Scale, "pkg>TorchModuleWrapper": TorchModuleWrapper, "pkg>loads": loads}
        with keras.saving.CustomObjectScope(names):
            yield
        assert self.called == []

    @pytest.mark.parametrize(
        ("name", "registered"),
        [
            ("TorchModuleWrapper", "pkg>Scale"),
            ("TorchModuleWrapper", "pkg>TorchModuleWrapper"),
            ("JaxLayer", "pkg>Scale"),
            ("TFSMLayer", "pkg>Scale"),
            ("pkg>loads", "pkg>Scale"),
            ("Lambda", "pkg>Scale"),
            ("StringLookup", "pkg>Scale"),
        ],
    )
    def test_a_class_by_another_ones_registered_name(self, name: str, registered: str) -> None:
        described = {
            "class_name": name,
            "config": {"name": "y", "module": "AAAA", "function": ["4wEA", None, None]},
            "registered_name": registered,
        }
        with no_effects(), pytest.raises(UnsupportedModel, match=r"registered as .*--unsafe_model"):
            build(Recipe("m.h5", json.dumps(older(described)), True, "3.15.0"))
        with no_effects(), pytest.raises(HeadraceError):  # where Keras 2 wrote it, `class_name` alone counts
            built(older(described), legacy=True)
        with no_effects(), pytest.raises(UnsupportedModel, match=r"registered as .*--unsafe_model"):
            built(model({**described, "name": "y", "inbound_nodes": call("x")}))

    @pytest.mark.parametrize("module", ["pickle", "keras.saving", "keras.utils", None])
    def test_a_function_by_the_end_of_a_registered_name(self, module: str | None) -> None:
        with no_effects(), pytest.raises(UnsupportedModel, match=r"'loads'|names .*loads"):
            built(applied(function("loads", module)))

    def test_what_is_meant_is_built(self) -> None:
        described = {**layer("Scale", {}, call("x"), "mine"), "registered_name": "pkg>Scale"}
        assert built(model(described)).inputs
        assert built(older({"class_name": "pkg>Scale", "config": {"name": "y"}}), legacy=True).inputs


@pytest.mark.parametrize("place", ["batch_shape", "shape"])
def test_a_shape_of_many_large_numbers_is_refused_at_once(place: str) -> None:
    """Their product would have four million digits."""
    described = model(layer("Dense", {"units": 2}, call("x")))
    described["config"]["layers"][0]["config"] = {"name": "x", "dtype": "float32", place: [None, *[10**39] * 100_000]}
    text = json.dumps(described)
    before = time.process_time()
    with pytest.raises(UnsupportedModel, match="no row fits"):
        build(Recipe("m.keras", text, False, "3.15.0"))
    assert time.process_time() - before < 5


def test_the_shape_of_an_input_is_bounded_however_it_is_given() -> None:
    described = model(layer("Flatten", {}, call("x")))
    for given in ({"shape": [10**12]}, {"shape": [10**6] * 3}, {"shape": [4], "batch_size": 10**9}):
        described["config"]["layers"][0]["config"] = {"name": "x", "dtype": "float32", **given}
        with pytest.raises(UnsupportedModel, match="no row fits"):
            built(described)
