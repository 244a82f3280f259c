"""One for each private name that the keras_* files tell of: it is there, and means what it is used for."""

from __future__ import annotations

from typing import Any

import numpy as np


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
