from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.models.load import load_model
from headrace.transforms.models.saved_model.one_signature import keep_only

X = np.asarray([[1.0, -2.0]], np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two signatures, each with a function of its own, a branch in one of them, a table, and a function that both call."""
    import tensorflow as tf

    table = tf.lookup.KeyValueTensorInitializer([1, 2], [10.0, 20.0], key_dtype=tf.int64, value_dtype=tf.float32)
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(table, default_value=0.0)
    module.weight = tf.Variable([[1.0], [2.0]])
    spec = [tf.TensorSpec([None, 2], tf.float32, "x")]

    @tf.function(input_signature=spec)
    def shared(x: Any) -> Any:
        return tf.matmul(x, module.weight) + module.table.lookup(tf.constant(2, tf.int64))

    @tf.function(input_signature=spec)
    def branches(x: Any) -> Any:
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: shared(x) + 1, lambda: shared(x) * 2)}

    @tf.function(input_signature=spec)
    def other(x: Any) -> Any:
        return {"y": shared(x) - 3}

    module.shared, module.branches, module.other = shared, branches, other
    folder = tmp_path_factory.mktemp("model")
    tf.saved_model.save(module, str(folder), signatures={"branches": branches, "other": other})
    return folder


def meta_graph(folder: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]


def named(meta: Any, part: str) -> list[str]:
    return [f.signature.name for f in meta.graph_def.library.function if part in f.signature.name]


def test_only_the_functions_of_the_signature_stay(exported: Path) -> None:
    whole, meta = meta_graph(exported), meta_graph(exported)
    nodes = meta.object_graph_def.nodes
    wanted = next(
        node.bare_concrete_function.concrete_function_name
        for node in nodes
        if node.bare_concrete_function.concrete_function_name.startswith("__inference_signature_wrapper_branches")
    )
    keep_only(meta, [wanted])
    assert wanted in named(meta, "")
    assert named(whole, "other")
    assert not named(meta, "other")
    assert named(meta, "cond_true")
    assert named(meta, "cond_false")
    assert named(meta, "shared")
    assert set(meta.object_graph_def.concrete_functions) < set(whole.object_graph_def.concrete_functions)
    assert len(nodes) == len(whole.object_graph_def.nodes)


@pytest.mark.parametrize(("signature", "expected"), [("branches", 34.0), ("other", 14.0)])
def test_a_signature_predicts_without_the_other(exported: Path, signature: str, expected: float) -> None:
    model = load_model(str(exported), signature)
    assert model.predict({"x": X})["y"].tolist() == [[expected]]
    loaded = model._keep[0]  # type: ignore[index]
    assert list(loaded.signatures) == [signature]
