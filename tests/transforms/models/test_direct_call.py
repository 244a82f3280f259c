"""The short way into TensorFlow's runtime: the same function, and the private names that lead there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from headrace import load_model
from headrace.transforms.models.direct_call import by_keywords, direct

A, B = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((3, 2), np.float32)


class _Module(tf.Module):
    """Outputs and inputs in another order than that of their names; variables and a constant are captured."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.random.stateless_normal([2, 2], [1, 2]))
        self.constant = tf.constant(3.0)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 2], tf.float32, "zeta"), tf.TensorSpec([None, 2], tf.float32, "alpha")]
    )
    def serve(self, zeta: Any, alpha: Any) -> dict[str, Any]:
        return {"z": zeta @ self.weight, "a": alpha - zeta * self.constant, "m": tf.strings.as_string(alpha)}


def _never(_: Mapping[str, Any]) -> dict[str, Any]:
    raise AssertionError("the usual call was taken")


def test_it_is_the_functions_own_call_to_the_bit(tmp_path: Path) -> None:
    module = _Module()
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    loaded = tf.saved_model.load(str(tmp_path))
    function = loaded.signatures["serving_default"]
    given = {"alpha": tf.constant(A), "zeta": tf.constant(B)}
    wanted = function(**given)
    got = direct(function, function._arg_keywords, _never)(given)
    assert got.keys() == wanted.keys() == {"z", "a", "m"}
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(got[name].numpy(), tensor.numpy())


def test_a_variable_that_changes_is_seen(tmp_path: Path) -> None:
    module = _Module()
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    loaded = tf.saved_model.load(str(tmp_path))
    call = direct(loaded.signatures["serving_default"], ["zeta", "alpha"], _never)
    loaded.weight.assign(tf.zeros([2, 2]))
    np.testing.assert_array_equal(
        call({"zeta": tf.constant(A), "alpha": tf.constant(B)})["z"].numpy(), np.zeros((3, 2))
    )


def test_loaded_models_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual call would end in `ConcreteFunction.__call__`."""
    import keras
    from tensorflow.python.eager.polymorphic_function import concrete_function

    module, x = _Module(), keras.Input((2,), name="x")
    tf.saved_model.save(module, str(tmp_path / "two"), signatures=module.serve)
    keras.Model(x, keras.layers.Dense(3)(x)).save(tmp_path / "net.keras")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        p = tf.compat.v1.placeholder(tf.float32, [None, 2], name="p")
        variable = tf.compat.v1.get_variable("v", [2], use_resource=True)
        session.run(variable.initializer)
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "one"), {"p": p}, {"y": p * variable})
    models = [load_model(str(tmp_path / name)) for name in ("two", "one", "net.keras")]
    before = [model.predict(dict.fromkeys(model.inputs, A)) for model in models]

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("ConcreteFunction's own call was taken")

    monkeypatch.setattr(concrete_function.ConcreteFunction, "_call_impl", called)
    for model, results in zip(models, before, strict=True):
        for name, array in model.predict(dict.fromkeys(model.inputs, A)).items():
            np.testing.assert_array_equal(array, results[name])


def test_an_error_is_tensorflows_own() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "x")])
    def divide(x: Any) -> dict[str, Any]:
        return {"y": 1 // x}

    function = divide.get_concrete_function()
    with pytest.raises(tf.errors.InvalidArgumentError, match="division by zero"):
        direct(function, ["x"], _never)({"x": tf.constant([0])})


class TestTheUsualCallServes:
    def test_within_a_graph(self) -> None:
        module = _Module()
        function = module.serve.get_concrete_function()
        call = direct(function, ["zeta", "alpha"], lambda tensors: function(tensors["zeta"], tensors["alpha"]))
        compiled = tf.function(lambda zeta, alpha: call({"zeta": zeta, "alpha": alpha})["a"])
        np.testing.assert_array_equal(compiled(tf.constant(B), tf.constant(A)).numpy(), A - B * 3)

    def test_ragged_outputs(self) -> None:
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "x")])
        def split(x: Any) -> dict[str, Any]:
            return {"y": tf.strings.split(x)}

        function = split.get_concrete_function()
        assert direct(function, ["x"], _never) is _never

    def test_captures_made_anew(self) -> None:
        state = [1.0]

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def add(x: Any) -> dict[str, Any]:
            late = tf.compat.v1.get_default_graph().capture_call_time_value(
                lambda: tf.constant(state[0]), tf.TensorSpec([], tf.float32)
            )
            return {"y": x + late}

        function = add.get_concrete_function()
        assert direct(function, ["x"], _never) is _never
        call, given = by_keywords(function), {"x": tf.constant([1.0])}
        first = call(given)["y"].numpy()
        state[0] = 5.0
        assert (first.tolist(), call(given)["y"].numpy().tolist()) == ([2.0], [6.0])

    def test_other_names(self) -> None:
        module = _Module()
        call = by_keywords(module.serve.get_concrete_function())
        with pytest.raises(TypeError):
            call({"zeta": tf.constant(A)})
