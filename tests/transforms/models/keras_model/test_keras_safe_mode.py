"""Safe mode: what a configuration may name, over every name that Keras has, and what a hostile one asks for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from headrace.transforms.errors import HeadraceError, NotAModel, UnsupportedModel
from headrace.transforms.models.keras_model.allow_list import CLASSES, FUNCTIONS
from headrace.transforms.models.keras_model.build import Recipe, build
from headrace.transforms.models.keras_model.safe_mode import check
from headrace.transforms.models.keras_model.unrolled import MOST_STEPS, release
from tests.support import keras_allow_list

# `make test` tries every name, in some of the places, and builds some of what is allowed; with this variable, all of it.
WHOLE = "HEADRACE_ALL_KERAS_NAMES" in os.environ
# No divisors of the number of places, so that each is tried, and each name that is refused everywhere in at least two.
_TRIED, _BUILT = (1, 1) if WHOLE else (3, 29)


def layer(kind: str, config: Any, calls: Any, module: str | None = "keras.layers", name: str = "y") -> dict[str, Any]:
    config = {"name": name, **config} if isinstance(config, dict) else config
    described = {"class_name": kind, "config": config, "registered_name": None, "name": name, "inbound_nodes": calls}
    return described if module is None else {**described, "module": module}


def tensor(name: str = "x", shape: tuple[int | None, ...] = (None, 4)) -> dict[str, Any]:
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": list(shape), "dtype": "float32", "keras_history": [name, 0, 0]},
    }


def call(*names: str, shape: tuple[int | None, ...] = (None, 4), **kwargs: Any) -> list[Any]:
    return [{"args": [tensor(name, shape) for name in names], "kwargs": kwargs}]


def model(*layers: dict[str, Any], shape: tuple[int | None, ...] = (None, 4)) -> dict[str, Any]:
    first = layer("InputLayer", {"batch_shape": list(shape), "dtype": "float32"}, [], name="x")
    config = {"name": "m", "trainable": True, "layers": [first, *layers]}
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [[layers[-1]["name"], 0, 0]]}
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "registered_name": None,
        "config": {**config, **ends},
    }


def older(described: dict[str, Any]) -> dict[str, Any]:
    """A Sequential model of one layer, as HDF5 files have it."""
    first = {"class_name": "InputLayer", "config": {"batch_input_shape": [None, 4], "name": "x"}}
    return {"class_name": "Sequential", "config": {"name": "m", "layers": [first, described]}}


def function(name: str, module: str | None = "keras.ops") -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def applied(described: Any, arguments: Any = None) -> dict[str, Any]:
    return model(layer("Lambda", {"function": described, "arguments": arguments or {}}, call("x")))


def built(described: Any, legacy: bool = False) -> Any:
    version = "2.12.0" if legacy else "3.15.0"
    return build(Recipe("m.keras", json.dumps(described), legacy, version)).model


_effects: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _effects is None:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path, flags = os.fsdecode(arguments[0]), arguments[2] or 0
        # Modules are imported as they are needed.
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or not path.startswith((sys.prefix, sys.base_prefix)):
            _effects.append(f"{event} {path}")
    elif event.startswith(
        ("socket.", "subprocess.", "os.exec", "os.system", "os.remove", "os.rename", "os.mkdir", "shutil.")
    ):
        _effects.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@contextmanager
def no_effects() -> Iterator[None]:
    global _effects
    before, _effects = settings(), []
    try:
        yield
        seen = _effects
    finally:
        _effects = None
    assert seen == []
    assert settings() == before


def settings() -> dict[str, Any]:
    """What is one for the whole process."""
    import keras
    from keras.src.backend.common import global_state
    from keras.src.saving import object_registration, serialization_lib

    generator = global_state.get_global_attribute("global_seed_generator")
    return {
        "floatx": keras.config.floatx(),
        "epsilon": keras.config.epsilon(),
        "image_data_format": keras.config.image_data_format(),
        "dtype_policy": keras.config.dtype_policy().name,
        "backend": keras.config.backend(),
        "traceback": keras.config.is_traceback_filtering_enabled(),
        "interactive": keras.config.is_interactive_logging_enabled(),
        "flash": keras.config.is_flash_attention_enabled(),
        "safe": serialization_lib.in_safe_mode(),
        "objects": dict(object_registration.GLOBAL_CUSTOM_OBJECTS),
        "generator": None if generator is None else generator.state.numpy().tolist(),
    }


class TestAllowList:
    def test_a_rule_covers_every_name_of_keras(self) -> None:
        assert keras_allow_list.uncovered() == []

    def test_is_what_the_rules_make(self) -> None:
        """Else: python -m tests.support.keras_allow_list --write, and look at what changed."""
        assert keras_allow_list.GENERATED.read_text() == keras_allow_list.generated()

    def test_short_names_lead_to_what_is_on_it(self) -> None:
        """Files of the older form have class names alone, which Keras looks up among the names of its layers' module."""
        from keras.src import layers

        allowed = {
            id(thing)
            for (module, name), thing in keras_allow_list.universe().items()
            if name in CLASSES.get(module, ())
        }
        for name in frozenset[str]().union(*CLASSES.values()):
            if name in vars(layers):
                assert id(vars(layers)[name]) in allowed, name


def placed(module: str, name: str) -> dict[str, tuple[Any, bool]]:
    """Configurations that name it: as a layer, as a function, in an argument, and as older files do."""
    as_class: dict[str, Any] = {"module": module, "class_name": name, "config": {}, "registered_name": None}
    as_function = function(name, module)
    return {
        "layer": (model(layer(name, {}, call("x"), module)), False),
        "function of a Lambda": (applied(as_function), False),
        "argument": (applied(function("add"), {"x2": [as_class]}), False),
        "function in an argument": (applied(function("add"), {"x2": {"deep": as_function}}), False),
        "initializer": (model(layer("Dense", {"units": 2, "kernel_initializer": as_class}, call("x"))), False),
        "argument of a call": (model(layer("Dense", {"units": 2}, call("x", training=as_function))), False),
        "older layer": (older({"class_name": name, "config": {"name": "y"}}), True),
        "older Lambda": (older({"class_name": "Lambda", "config": {"name": "y", "function": as_function}}), True),
    }


REFUSALS = ("which safe mode does not allow", "which is not known here", "which Keras 3 no longer has")


def outcome(described: Any, legacy: bool) -> str | None:
    """What the refusal says, or None where the model is built."""
    try:
        built(described, legacy)
    except HeadraceError as error:
        return str(error)
    return None


def test_every_name_of_keras_is_allowed_or_refused_and_nothing_else_happens() -> None:
    import keras

    built(model(layer("Dense", {"units": 2}, call("x"))))  # whatever is made once
    keras.random.uniform((1,))
    names, allowed, tried, loaded = sorted(keras_allow_list.universe()), 0, 0, 0
    short = frozenset[str]().union(*CLASSES.values())
    with no_effects():
        for module, name in names:
            is_class, is_function = name in CLASSES.get(module, ()), name in FUNCTIONS.get(module, ())
            allowed += is_class or is_function
            for place, (described, legacy) in placed(module, name).items():
                if place == "older layer":
                    may = name in short
                else:
                    may = is_class if place in ("layer", "argument", "initializer") else is_function
                tried += 1
                if tried % (_BUILT if may else _TRIED):
                    continue
                said = outcome(described, legacy)
                loaded += said is None
                assert may or any(text in (said or "") for text in REFUSALS), (module, name, place, said)
    print(f"{len(names)} names, {allowed} allowed, {tried} configurations, {loaded} loaded, 0 effects")
    assert len(names) > 2000
    assert 1000 < allowed < 0.7 * len(names)


FOREIGN = {
    "module": "keras.layers",
    "class_name": "TFSMLayer",
    "config": {"filepath": "/tmp/x"},
    "registered_name": None,
}
REFUSED = {
    "a class where a function belongs": (applied(function("TFSMLayer", "keras.layers")), "TFSMLayer"),
    "an object where a function belongs": (applied({**FOREIGN, "class_name": "Dense"}), "'Dense'"),
    "an allowed class as a function": (applied(function("Dense", "keras.layers")), "a function"),
    "a function where a layer belongs": (model({**layer("function", "relu", call("x"), "keras.ops")}), "a class"),
    "a bare function's name": (applied(function("get", "builtins")), "'get'"),
    "a class by a bare function's name": (applied(function("Sequential", "builtins")), "'Sequential'"),
    "another module": (model(layer("JSONDecoder", {}, call("x"), "json")), "JSONDecoder"),
    "an inner module": (model(layer("TFSMLayer", {}, call("x"), "keras.src.export.tfsm_layer")), "TFSMLayer"),
    "a registered name beside": (
        model({**layer("Dense", {"units": 2}, call("x")), "registered_name": "Sequential"}),
        "Sequential",
    ),
    "a function's registered name beside": (
        applied({**function("relu"), "registered_name": "TFSMLayer"}),
        "TFSMLayer",
    ),
    "within an argument": (applied(function("add"), {"x2": [{"deep": FOREIGN}]}), r"arguments\.x2\[0\]\.deep"),
    "in how it was built": (
        model({**layer("Dense", {"units": 2}, call("x")), "build_config": {"input_shape": FOREIGN}}),
        "build_config",
    ),
    "wrapped": (model(layer("TimeDistributed", {"layer": FOREIGN}, call("x"))), r"config\.layer"),
    "a cell": (model(layer("RNN", {"cell": [FOREIGN]}, call("x"))), r"config\.cell\[0\]"),
    "a dtype policy": (model(layer("Dense", {"units": 2, "dtype": FOREIGN}, call("x"))), r"config\.dtype"),
    "a vocabulary's file": (model(layer("StringLookup", {"vocabulary": "/etc/passwd"}, call("x"))), "/etc/passwd"),
    "weights' file": (model(layer("TextVectorization", {"idf_weights": "/etc/passwd"}, call("x"))), "/etc/passwd"),
    "a type": (applied(function("add"), {"x2": {"class_name": "__typespec__", "config": []}}), "TensorFlow"),
    "code": (applied({"class_name": "__lambda__", "config": {"code": "!"}}), "Python code"),
    "code elsewhere": (applied(function("add"), {"x2": {"class_name": "__lambda__", "config": {}}}), "Python code"),
}
OLDER = {
    "a resolver": {"class_name": "deserialize", "config": {"config": {}}},
    "a SavedModel": {"class_name": "TFSMLayer", "config": {"filepath": "/tmp/x"}},
    "passive": {
        "class_name": "Dense",
        "config": {"units": 2, "activation": {**FOREIGN, "__passive_serialization__": True}},
    },
    "a vocabulary": {"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
    "a class as a function": {"class_name": "Lambda", "config": {"function": function("TFSMLayer", "keras.layers")}},
    "bytecode": {"class_name": "Lambda", "config": {"function": ["!", None, None]}},
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_its_place_and_the_flag(what: str) -> None:
    described, text = REFUSED[what]
    with no_effects(), pytest.raises(UnsupportedModel, match=text) as raised:
        built(described)
    assert "--unsafe_model" in str(raised.value)
    assert "at config." in str(raised.value)


@pytest.mark.parametrize("what", OLDER)
def test_refused_in_the_older_form(what: str) -> None:
    with no_effects(), pytest.raises(UnsupportedModel, match="--unsafe_model"):
        built(older(OLDER[what]), legacy=True)


def doubling(times: int) -> dict[str, Any]:
    """A model that calls a model twice, which calls a model twice, …"""
    made = model(layer("Dense", {"units": 4}, call("x")))
    for _ in range(times):
        inner = {**made, "name": "y", "inbound_nodes": call("x") + call("y")}
        inner["config"] = {**made["config"], "name": "y"}
        made = model(inner)
        made["config"]["output_layers"] = [["y", 1, 0]]
    return made


def unrolled(steps: int, kind: str = "SimpleRNN", config: Any = None) -> dict[str, Any]:
    shape = (None, steps, 1)
    return model(layer(kind, config or {"units": 1, "unroll": True}, call("x", shape=shape)), shape=shape)


DENSE = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 1}, "registered_name": None}
LSTM = {"module": "keras.layers", "class_name": "LSTM", "config": {"units": 1, "unroll": True}, "registered_name": None}
TOO_MUCH = {
    "unrolled": unrolled(20_000),
    "unrolled both ways": unrolled(20_000, "Bidirectional", {"layer": LSTM}),
    "distributed": unrolled(2_000_000, "TimeDistributed", {"layer": DENSE}),
    "called again and again": doubling(40),
    "split": applied(function("split"), {"indices_or_sections": 10**9}),
    "units": model(layer("Dense", {"units": 10**40}, call("x"))),
    "an input": model(layer("Dense", {"units": 1}, call("x")), shape=(None, 10**12)),
    "computed while it is built": model(
        layer("Lambda", {"function": function("ones")}, [{"args": [[10**6] * 2], "kwargs": {}}])
    ),
    "a mean for each": model(
        layer("RepeatVector", {"n": 10**9}, call("x"), name="r"),
        layer("Normalization", {"mean": 0.0, "variance": 1.0, "axis": [1, 2]}, call("r", shape=(None, 10**9, 4))),
    ),
    "spectra": model(layer("MelSpectrogram", {"fft_length": 10**8}, call("x"))),
    "n-grams": model(layer("TextVectorization", {"ngrams": 10**9}, call("x"))),
    "words of no vocabulary": model(layer("StringLookup", {"vocabulary": ["a"], "num_oov_indices": 10**9}, call("x"))),
    "a text of great size": applied(
        function("add"), {"x2": {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "S2000000000"}}}
    ),
    "nested": json.loads('{"a":' * 400 + "1" + "}" * 400),
    "nested models": json.loads(
        '{"class_name": "Sequential", "module": "keras", "config": {"name": "s", "layers": [' * 90 + "]}}" * 90
    ),
    "nested beyond JSON": None,
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_small_files_that_ask_for_much_are_refused_at_once(what: str) -> None:
    import resource

    text = json.dumps(TOO_MUCH[what]) if TOO_MUCH[what] else "[" * 200_000
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(HeadraceError):
        build(Recipe("m.keras", text, False, "3.15.0"))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 5
    assert after.ru_maxrss - before.ru_maxrss < 512 << 10


def test_honest_configurations_are_not_refused() -> None:
    activation: dict[str, Any] = {
        "module": "keras.layers",
        "class_name": "LeakyReLU",
        "config": {},
        "registered_name": None,
    }
    for described in (
        applied(function("relu")),
        applied(function("preprocess_input", "keras.applications.imagenet_utils")),
        model(layer("Dense", {"units": 3, "activation": function("relu", "builtins")}, call("x"))),
        model(layer("Dense", {"units": 3, "activation": activation}, call("x"))),
        model(layer("Multiply", {}, [{"args": [tensor(), 2.0], "kwargs": {}}], "keras.src.ops.numpy")),
        {**model(layer("Dense", {"units": 3}, call("x"))), "compile_config": {"optimizer": function("x", "os")}},
        unrolled(20),
        unrolled(MOST_STEPS),
        doubling(3),
    ):
        assert built(described).inputs
    for described in (
        DENSE,
        {**DENSE, "config": {"units": 3, "kernel_initializer": {"class_name": "Ones", "config": {}}}},
    ):
        assert built(older(described), legacy=True).inputs


def test_steps_are_counted_where_the_graph_is_made_and_not_after() -> None:
    """The inner model leaves its steps open; the outer one calls it with many."""
    import keras

    inner = model(
        layer("SimpleRNN", {"units": 1, "unroll": True}, call("x", shape=(None, None, 1))), shape=(None, None, 1)
    )
    calls = call("x", shape=(None, 20_000, 1))
    made = built(model({**inner, "name": "y", "inbound_nodes": calls}, shape=(None, 20_000, 1)))
    with pytest.raises(UnsupportedModel, match="20,000"):
        made.layers[1].layers[1].call(keras.KerasTensor((None, 20_000, 1)))
    release(made)
    assert "call" not in vars(made.layers[1].layers[1])


def test_layers_are_known_by_the_names_of_their_classes_too() -> None:
    """HDF5 files hold these."""
    import keras

    for name in CLASSES["keras.layers"]:
        of_class = getattr(keras.layers, name).__name__
        check({"class_name": of_class, "config": {}, "inbound_nodes": []}, "x", {}, {})


def test_a_feature_space_is_recognised() -> None:
    with pytest.raises(NotAModel, match="holds a FeatureSpace"):
        built({"module": "keras.utils", "class_name": "FeatureSpace", "config": {}, "registered_name": None})


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "MobileNetV2": {"alpha": 0.35, "input_shape": (32, 32, 3)},
    "ResNet50": {"input_shape": (32, 32, 3)},
    "EfficientNetB0": {"input_shape": (32, 32, 3)},
    "DenseNet121": {"input_shape": (32, 32, 3)},
    "VGG16": {"input_shape": (32, 32, 3), "include_top": False},
    "InceptionV3": {"input_shape": (75, 75, 3), "include_top": False},
    "Xception": {"input_shape": (71, 71, 3), "include_top": False},
    "NASNetMobile": {"input_shape": (32, 32, 3), "include_top": False},
    "EfficientNetV2B0": {"input_shape": (32, 32, 3)},
    "ConvNeXtTiny": {"input_shape": (32, 32, 3)},
    "InceptionResNetV2": {"input_shape": (75, 75, 3), "include_top": False},
    "MobileNetV3Small": {"input_shape": (32, 32, 3), "include_top": False},
    "ResNet50V2": {"input_shape": (32, 32, 3)},
}


@pytest.mark.parametrize("name", ARCHITECTURES if WHOLE else ["MobileNetV2", "ConvNeXtTiny"])
def test_common_architectures_are_built(name: str) -> None:
    """From their configuration, to the same shapes of weights."""
    import keras
    from keras.src.saving import serialization_lib

    native = getattr(keras.applications, name)(weights=None, **ARCHITECTURES[name])
    config = json.loads(json.dumps(serialization_lib.serialize_keras_object(native)))
    assert [v.shape for v in built(config).weights] == [v.shape for v in native.weights]
