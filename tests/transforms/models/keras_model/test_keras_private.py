"""One for each private name that the keras_* files tell of: it is there, and means what it is used for."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.transforms.models.keras_model import build as keras_build


class TestPrivateNames:
    def test_load_state_accepts_our_stores(self) -> None:
        import inspect

        from keras.src.saving import saving_lib

        assert list(inspect.signature(saving_lib._load_state).parameters) == [
            "saveable",
            "weights_store",
            "assets_store",
            "inner_path",
            "skip_mismatch",
            "visited_saveables",
            "failed_saveables",
            "error_msgs",
        ]
        assert "isinstance(\n        weights_store, (H5IOStore" in inspect.getsource(saving_lib._load_state)
        public = {name for name in vars(saving_lib.H5IOStore) if not name.startswith("__")}
        assert {"get", "has_path"} <= public
        assert {"get", "has_path"} <= set(vars(saving_lib.DiskIOStore))

    def test_a_scope_leaves_its_variables_behind(self) -> None:
        import keras
        from keras.src.backend.common import global_state

        before = global_state.get_global_attribute("uninitialized_variables")
        try:
            global_state.set_global_attribute("uninitialized_variables", [])
            with keras.StatelessScope(initialize_variables=False):
                variable = keras.Variable(lambda shape, dtype: 1 / 0, shape=(2,))
            assert global_state.get_global_attribute("uninitialized_variables") == [variable]
            assert variable._value is None
            variable._initialize(np.ones(2, np.float32))
            variable._direct_assign(np.full(2, 3, np.float32))
            np.testing.assert_array_equal(variable, [3, 3])
        finally:
            global_state.set_global_attribute("uninitialized_variables", before or [])

    def test_assign_goes_through_the_scope(self) -> None:
        import keras

        seen: list[Any] = []

        class Scope(keras.StatelessScope):
            def add_update(self, update: Any) -> None:
                seen.append(update)

        variable = keras.Variable(np.zeros(2, np.float32))
        with Scope(initialize_variables=False):
            variable.assign(np.ones(2, np.float32))
        assert seen[0][0] is variable
        np.testing.assert_array_equal(variable, [0, 0])

    def test_a_variable_takes_a_place_without_a_value(self) -> None:
        import keras
        from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

        with keras_build.uninitialized(), keras.StatelessScope(initialize_variables=False):
            variable = keras.Variable(lambda shape, dtype: 1 / 0, shape=(2,))
        variable._initialize(UninitializedVariable(trainable=True, shape=(2,), dtype="float32", name="w"))
        variable._direct_assign(np.full(2, 3, np.float32))
        np.testing.assert_array_equal(variable, [3, 3])

    def test_the_older_layout_is_filled_by_these(self) -> None:
        import keras
        from keras.src.legacy.saving import legacy_h5_format

        layer = keras.layers.Normalization()
        layer.build((None, 2))
        weights = legacy_h5_format._legacy_weights(layer)
        assert [v.name for v in weights] == ["mean", "variance", "count"]
        legacy_h5_format._set_weights(layer, weights[:2], [np.full(2, 5.0), np.ones(2)], name="x")
        np.testing.assert_array_equal(layer(np.full((1, 2), 5.0)), [[0, 0]])

    def test_sequential_can_be_named_as_a_custom_object(self) -> None:
        import keras

        class Stand:
            @classmethod
            def from_config(cls, config: Any) -> Any:
                return keras.Input((2,)), config["name"]

        config = {
            "module": "keras",
            "class_name": "Sequential",
            "config": {"name": "s"},
            "registered_name": "Sequential",
        }
        with keras.saving.CustomObjectScope({"Sequential": Stand}):
            assert keras.saving.deserialize_keras_object(config)[1] == "s"

    def test_a_layer_keeps_the_shapes_that_it_was_built_for(self) -> None:
        import keras

        layer = keras.layers.Bidirectional(keras.layers.LSTM(2))
        layer(keras.Input((7, 3)))
        assert {tuple(s) for s in layer.forward_layer._build_shapes_dict.values()} == {(None, 7, 3)}
        inner = keras.layers.LSTM(2)
        assert set(layer._flatten_layers()) >= {layer, layer.forward_layer, layer.backward_layer}
        assert inner not in set(layer._flatten_layers())

    def test_a_functional_model_keeps_its_calls(self) -> None:
        import keras

        x = keras.Input((3,))
        model = keras.Model(x, keras.layers.Dropout(0.5, name="drop")(x, training=True))
        nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
        assert [n.operation.name for n in nodes if n.arguments.kwargs.get("training") is True] == ["drop"]

    def test_registered_objects_are_in_one_place(self) -> None:
        import keras
        from keras.src.saving import object_registration

        @keras.saving.register_keras_serializable("private")
        class Registered:
            def get_config(self) -> dict[str, Any]:
                return {}

        assert object_registration.GLOBAL_CUSTOM_OBJECTS["private>Registered"] is Registered

    def test_time_distributed_still_needs_to_know_its_steps(self) -> None:
        """When this fails, `needs_static_shapes` can go."""
        import keras
        import tensorflow as tf

        layer = keras.layers.TimeDistributed(keras.layers.Rescaling(2.0))
        layer.build((None, None, 1))
        traced = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 1))], autograph=False)
        assert traced(np.ones((2, 5, 1), np.float32)).shape == (2, 2, 1)
