"""What a graph does beside computing is known before any of it runs: files, state, chance, Python, unknown operations."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import InvalidRequest, UnsupportedModel
from headrace.transforms.models import operation_names as names
from headrace.transforms.models.load import describe_for_job, describe_model, load_model
from headrace.transforms.models.pin import pin_model
from headrace.transforms.models.spec import Operations
from tests.support.refused_operations import REFUSED

Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """A SavedModel of a function of its module and of x, whose shape is [None]."""

    def saved(call: Callable[[Any, Any], Any], name: str = "model", **state: Any) -> Path:
        import tensorflow as tf

        module = tf.Module()
        for key, value in state.items():
            setattr(module, key, value)
        spec = tf.TensorSpec([None], tf.float32, "x")
        concrete = tf.function(lambda x: {"y": call(module, x)}).get_concrete_function(spec)
        tf.saved_model.save(module, str(tmp_path / name), signatures={"serving_default": concrete})
        return tmp_path / name

    return saved


def found(folder: Path) -> Operations:
    return describe_model(str(folder)).operations["serving_default"]


def test_every_operation_of_tensorflow_has_been_looked_at() -> None:
    """A release that brings another one needs somebody to say what it can do."""
    import tensorflow as tf
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    every = op_def_pb2.OpList()
    every.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    public = {op.name for op in every.op if hasattr(tf.raw_ops, op.name)}
    lists = (names.HARMLESS, names.WRITES, names.RANDOM, REFUSED)
    assert public - frozenset().union(*lists) == set()
    assert len(frozenset().union(*lists)) == sum(map(len, lists)), "an operation is in one list alone"
    assert names.PYTHON | frozenset(names.READS_FILES) <= REFUSED


def _in_a_branch(use: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    import tensorflow as tf

    return lambda _, x: tf.cond(tf.reduce_sum(x) > 1e9, lambda: use(x), lambda: x)


def _in_a_map(use: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    import tensorflow as tf

    return lambda _, x: tf.map_fn(lambda one: use(one[None])[0], x)


def _in_a_dataset(use: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    import tensorflow as tf

    return lambda _, x: tf.data.Dataset.from_tensors(x).map(use).reduce(tf.zeros_like(x), lambda a, b: a + b)


def _writes(path: str) -> Callable[[Any], Any]:
    import tensorflow as tf

    def use(x: Any) -> Any:
        tf.io.write_file(path, "found")
        return x

    return use


@pytest.mark.parametrize("inside", [_in_a_branch, _in_a_map, _in_a_dataset])
def test_a_graph_that_writes_a_file_is_refused_wherever_it_does(
    export: Export, tmp_path: Path, inside: Callable[..., Any]
) -> None:
    folder = export(inside(_writes(str(tmp_path / "written"))))
    assert found(folder).outside == ("WriteFile",)
    for use in (load_model, lambda uri: describe_model(uri, "serving_default")):
        with pytest.raises(UnsupportedModel, match=r"WriteFile.*--unsafe_model"):
            use(str(folder))
    assert not (tmp_path / "written").exists()
    assert describe_for_job(pin_model(str(folder), unsafe=True), "serving_default").parameters == 0


def test_other_ways_to_files_are_refused(export: Export, tmp_path: Path) -> None:
    import tensorflow as tf

    raw = tf.raw_ops
    path = str(tmp_path / "secret")
    ways = {
        "ReadFile": lambda _, x: x + tf.cast(tf.strings.length(tf.io.read_file(path)), tf.float32),
        "MatchingFiles": lambda _, x: x + tf.cast(tf.size(tf.io.matching_files(path)), tf.float32),
        "RestoreV2": lambda _, x: (
            x + raw.RestoreV2(prefix=path, tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32])[0]
        ),
        "TextLineDatasetV2|TextLineDataset": lambda _, x: (
            x + tf.data.TextLineDataset(path).reduce(0.0, lambda total, _: total + 1.0)
        ),
        "CacheDatasetV2": lambda _, x: tf.data.Dataset.from_tensors(x).cache(path).reduce(x, lambda a, b: a + b),
    }
    for at, (operation, call) in enumerate(ways.items()):
        folder = export(call, f"model{at}")
        assert [one for one in found(folder).outside if re.fullmatch(operation, one)], operation
        with pytest.raises(UnsupportedModel, match="reach files"):
            load_model(str(folder))


def test_what_the_loader_runs_is_looked_at_too(tmp_path: Path) -> None:
    """A resource's own initialiser runs while the model is loaded, before any signature."""
    import tensorflow as tf

    written = tmp_path / "written"

    class Hostile(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self) -> Any:
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64, shared_name="hostile")

        def _initialize(self) -> None:
            tf.io.write_file(str(written), "found")

    module = tf.Module()
    module.hostile = Hostile()
    handle = module.hostile.resource_handle
    size = tf.function(lambda x: {"y": x + tf.cast(tf.raw_ops.LookupTableSizeV2(table_handle=handle), tf.float32)})
    concrete = size.get_concrete_function(tf.TensorSpec([None], tf.float32, "x"))
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": concrete})
    written.unlink(missing_ok=True)
    assert found(tmp_path / "model").outside == ("WriteFile",)
    with pytest.raises(UnsupportedModel, match="WriteFile"):
        load_model(str(tmp_path / "model"))
    assert not written.exists()


def test_a_python_function_can_never_run(export: Export) -> None:
    import tensorflow as tf

    folder = export(lambda _, x: tf.ensure_shape(tf.numpy_function(lambda a: a, [x], tf.float32), [None]))
    for unsafe in (False, True):
        with pytest.raises(UnsupportedModel, match=r"calls a Python function.*--preprocess"):
            describe_model(str(folder), "serving_default", unsafe=unsafe)


def test_a_model_that_changes_its_state_is_for_jobs_only_if_that_is_allowed(export: Export) -> None:
    import tensorflow as tf

    def insert(module: Any, x: Any) -> Any:
        module.table.insert(tf.as_string(x), x)
        return x

    ways = {
        "AssignAddVariableOp": (lambda m, x: x + m.v.assign_add(1.0), {"v": tf.Variable(0.0)}),
        "ResourceScatterUpdate": (
            lambda m, x: x + tf.gather(m.w.scatter_update(tf.IndexedSlices([1.0], [0])), 0),
            {"w": tf.Variable([0.0, 0.0])},
        ),
        "LookupTableInsertV2": (insert, {"table": tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, -1)}),
    }
    for at, (operation, (call, state)) in enumerate(ways.items()):
        folder = export(call, f"model{at}", **state)
        assert operation in found(folder).writes
        with pytest.raises(UnsupportedModel, match=f"{operation}.*--allow_stateful_model"):
            describe_for_job(pin_model(str(folder)), "serving_default")
        allowed = pin_model(str(folder), allow_stateful=True)
        assert describe_for_job(allowed, "serving_default").operations["serving_default"].writes
        assert allowed.digest != pin_model(str(folder)).digest


def test_chance_is_told_and_fixed_seeds_are_none(export: Export) -> None:
    import tensorflow as tf

    assert found(export(lambda _, x: tf.nn.dropout(x, 0.5), "dropout")).random == ("RandomUniform",)
    fixed = export(lambda _, x: x + tf.random.stateless_uniform([], [1, 2]), "fixed")
    assert found(fixed) == Operations()
    assert load_model(str(fixed)).operations == Operations()


def test_a_dropout_behind_a_constant_condition_is_never_drawn(tmp_path: Path) -> None:
    """As Keras and slim left it in graphs of TensorFlow 1."""
    import tensorflow as tf

    v1 = tf.compat.v1
    for learning, random in ((False, ()), (True, ("RandomUniform",))):
        with tf.Graph().as_default(), v1.Session() as session:
            v1.disable_control_flow_v2()
            x = v1.placeholder(tf.float32, [None], "x")
            phase = v1.placeholder_with_default(learning, [], "learning_phase")
            y = v1.cond(phase, lambda x=x: x + tf.random.uniform([1]), lambda x=x: x * 2)
            v1.saved_model.simple_save(session, str(tmp_path / str(learning)), {"x": x}, {"y": y})
        assert found(tmp_path / str(learning)).random == random


def test_operations_that_nothing_registers_are_named_with_their_package(export: Export) -> None:
    import tensorflow as tf

    folder = export(lambda _, x: tf.math.softsign(x))
    graph = (folder / "saved_model.pb").read_bytes()
    named = (("SimpleML", "tensorflow_decision_forests"), ("ScannTop", "scann"), ("TfqState", "tensorflow_quantum"))
    for name, wanted in (("Softsigm", r"--import_module=MODULE"), *named):
        (folder / "saved_model.pb").write_bytes(graph.replace(b"Softsign", name.encode()))
        with pytest.raises(UnsupportedModel, match=f"does not know: {name}.*{wanted}"):
            describe_model(str(folder))
    with pytest.raises(InvalidRequest, match="Repeat --import_module for each"):
        load_model(str(folder), import_modules=["os,json"])
    with pytest.raises(InvalidRequest, match="'no_such_module' cannot be imported"):
        load_model(str(folder), import_modules=["no_such_module"])


def test_functions_without_a_signature(tmp_path: Path) -> None:
    import tensorflow as tf

    class Hub(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(np.arange(6, dtype=np.float32).reshape(3, 2))

        @tf.function
        def __call__(self, x: Any, training: bool = False) -> Any:
            return x @ self.w * (100.0 if training else 1.0)

        @tf.function
        def parts(self, x: Any) -> Any:
            return {"low": x - 1.0, "high": x + self.w[0, 1]}

    hub = Hub()
    spec = tf.TensorSpec([None, 3], tf.float32)
    for training in (True, False):
        hub.__call__.get_concrete_function(spec, training=training)
    hub.parts.get_concrete_function(tf.TensorSpec([None], tf.float32, "values"))
    tf.saved_model.save(hub, str(tmp_path))
    told = describe_model(str(tmp_path))
    assert (told.functions, list(told.signatures)) == (("__call__", "parts"), ["__call__", "parts"])
    x = np.ones((4, 3), np.float32)
    model = load_model(str(tmp_path), "__call__")
    native = tf.function(tf.saved_model.load(str(tmp_path)))(x).numpy()
    assert model.predict({"x": x})["output_0"].tobytes() == native.tobytes()
    assert model.parameters == 6
    found = load_model(str(tmp_path), "parts").predict({"values": np.zeros(2, np.float32)})
    assert {name: array.tolist() for name, array in found.items()} == {"high": [1.0, 1.0], "low": [-1.0, -1.0]}
    with pytest.raises(Exception, match=r"no signature 'serving_default'.*--signature=__call__"):
        load_model(str(tmp_path))
