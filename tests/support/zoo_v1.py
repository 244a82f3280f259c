"""Small SavedModels as TensorFlow 1 wrote them; each function exports into a folder and gives inputs for every signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.model_zoo import Inputs

PREDICT = "tensorflow/serving/predict"


def save(folder: Path, signatures: Mapping[str, tuple[Any, Any]], **options: Any) -> None:
    """One meta graph for serving, of a new session in which everything is initialised."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run([v1.local_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], _definitions(signatures), **options)
        builder.save()


def _definitions(signatures: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    import tensorflow as tf

    build = tf.compat.v1.saved_model.build_signature_def
    info = tf.compat.v1.saved_model.build_tensor_info
    return {
        name: build({k: info(v) for k, v in inputs.items()}, {k: info(v) for k, v in outputs.items()}, PREDICT)
        for name, (inputs, outputs) in signatures.items()
    }


def _matrices(folder: Path, use_resource: bool, scale: float = 1.0, width: int = 4) -> Inputs:
    """A matrix, a partitioned one, one that no signature uses, a scalar and strings."""
    import tensorflow as tf

    v1 = tf.compat.v1
    rng = np.random.default_rng(3)
    with tf.Graph().as_default(), v1.variable_scope("net", use_resource=use_resource):
        x = v1.placeholder(tf.float32, [None, width], name="x")
        w = v1.get_variable("w", initializer=scale * rng.normal(size=(width, 6)).astype(np.float32))
        cut = v1.get_variable(
            "cut",
            shape=[6, 3],
            initializer=v1.random_normal_initializer(seed=1),
            partitioner=v1.fixed_size_partitioner(2, 0),
        )
        v1.get_variable("unused", initializer=np.zeros(50_000, np.float32))
        bias = v1.get_variable("bias", initializer=np.float32(0.5))
        names = v1.get_variable("names", initializer=["a", "ü", ""])
        y = x @ w @ tf.convert_to_tensor(cut) + bias
        named = {"x": x}, {"y": y, "best": tf.gather(names, tf.argmax(y, 1))}
        save(folder, {"serving_default": named, "bias": ({"i": x}, {"any/name": x[0] + bias})})
    x = rng.normal(size=(5, width)).astype(np.float32)
    return {"serving_default": {"x": x}, "bias": {"i": x}}


def resource_variables(folder: Path) -> Inputs:
    """A partitioned matrix, a scalar and strings, in resource variables."""
    return _matrices(folder, True)


def reference_variables(folder: Path) -> Inputs:
    """A partitioned matrix, a scalar and strings, in reference variables."""
    return _matrices(folder, False)


def scaled_reference_variables(folder: Path) -> Inputs:
    """The same names as `reference_variables`, with other values."""
    return _matrices(folder, False, 2.0)


def estimator(folder: Path) -> Inputs:
    """As tf.estimator exports a classifier: serialised examples, a vocabulary in an asset, three signatures."""
    import tensorflow as tf

    v1 = tf.compat.v1
    source = folder.parent / "vocabulary.txt"
    source.write_text("red\ngreen\nblau\n")
    with tf.Graph().as_default():
        examples = v1.placeholder(tf.string, [None], name="input_example_tensor")
        parsed = v1.parse_example(
            examples,
            {"word": v1.FixedLenFeature([1], tf.string), "number": v1.FixedLenFeature([2], tf.float32, [0.0, 1.0])},
        )
        asset = tf.constant(str(source))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        rows = tf.lookup.TextFileIndex
        initializer = tf.lookup.TextFileInitializer(asset, tf.string, rows.WHOLE_LINE, tf.int64, rows.LINE_NUMBER)
        table = v1.lookup.StaticHashTable(initializer, 3)
        embedding = v1.get_variable(
            "embedding", [4, 5], initializer=v1.random_normal_initializer(seed=2), use_resource=False
        )
        kernel = v1.get_variable("kernel", [7, 3], initializer=v1.random_normal_initializer(seed=3), use_resource=True)
        v1.train.get_or_create_global_step()
        found = v1.nn.embedding_lookup(embedding, table.lookup(parsed["word"]))
        logits = tf.concat([found[:, 0], parsed["number"]], 1) @ kernel
        classes = tf.constant(["no", "yes", "perhaps"])
        scores = {"classes": tf.gather(classes, tf.argsort(logits, 1)), "scores": tf.nn.softmax(logits)}
        save(
            folder,
            {
                "serving_default": ({"inputs": examples}, scores),
                "predict": ({"examples": examples}, {"logits": logits, "id": tf.argmax(logits, 1)}),
                "raw": ({"word": parsed["word"], "number": parsed["number"]}, {"logits": logits}),
            },
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
            strip_default_attrs=True,
        )
    source.unlink()

    def example(word: str, *number: float) -> bytes:
        features = {"word": tf.train.Feature(bytes_list=tf.train.BytesList(value=[word.encode()]))}
        if number:
            features["number"] = tf.train.Feature(float_list=tf.train.FloatList(value=number))
        return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())

    serialised = np.array([example("red"), example("blau", 3.0, -2.0), example("nowhere", 0.5, 0.5)], object)
    return {
        "serving_default": {"inputs": serialised},
        "predict": {"examples": serialised},
        "raw": {"word": np.array([["green"]], object), "number": np.ones((1, 2), np.float32)},
    }


def several_graphs(folder: Path) -> Inputs:
    """One graph for training, one for serving, one for serving on a GPU, over one set of variables."""
    import tensorflow as tf

    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(folder))
    for tags, factor in ((["train"], 1.0), (["serve"], 2.0), (["serve", "gpu"], 3.0)):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None], name="x")
            y = factor * x * v1.get_variable("w", initializer=7.0, use_resource=True)
            session.run(v1.global_variables_initializer())
            signatures = _definitions({"serving_default": ({"x": x}, {"y": y})})
            if tags == ["train"]:
                builder.add_meta_graph_and_variables(session, tags, signatures)
            else:
                builder.add_meta_graph(tags, signatures, saver=v1.train.Saver())
    builder.save()
    return {"serving_default": {"x": np.array([1.0, -2.0], np.float32)}}


def no_variables(folder: Path) -> Inputs:
    """A graph of constants alone."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": x + tf.constant(1.5)})
    return {"serving_default": {"x": np.array([1.0], np.float32)}}


def _initialised(folder: Path, key: str) -> Inputs:
    """A local variable and a table that the initialiser fills from a variable, which must be restored before."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        x = v1.placeholder(tf.int64, [None], name="x")
        w = v1.get_variable("w", initializer=np.array([3, 4, 5]), use_resource=True)
        local = v1.get_variable(
            "local", initializer=np.zeros(3, np.int64), collections=[v1.GraphKeys.LOCAL_VARIABLES], use_resource=False
        )
        table = v1.lookup.StaticHashTable(v1.lookup.KeyValueTensorInitializer(w, w * 10), -1)
        with tf.control_dependencies([v1.assign(local, w * 2)]):
            init = v1.tables_initializer()
        save(
            folder, {"serving_default": ({"x": x}, {"y": table.lookup(x), "local": tf.gather(local, x)})}, **{key: init}
        )
    return {"serving_default": {"x": np.array([0, 1, 2], np.int64)}}


def main_op(folder: Path) -> Inputs:
    """A table that an initialiser fills from a variable."""
    return _initialised(folder, "main_op")


def legacy_init_op(folder: Path) -> Inputs:
    """A table that an initialiser fills from a variable, under the older name of the initialiser."""
    return _initialised(folder, "legacy_init_op")


def mutable_tables(folder: Path) -> Inputs:
    """Their content is in the checkpoint."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        word = v1.placeholder(tf.string, [None], name="word")
        key = v1.placeholder(tf.int64, [None], name="key")
        memory = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        dense = tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, [0.0, 0.0], -1, -2, initial_num_buckets=8)
        session.run([memory.insert(["known", "größe"], [5, 6]), dense.insert([7], [[1.5, 2.5]])])
        signatures = {
            "serving_default": ({"word": word, "key": key}, {"id": memory.lookup(word), "row": dense.lookup(key)}),
            "words": ({"word": word}, {"id": memory.lookup(word)}),
        }
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], _definitions(signatures), main_op=tf.no_op("nothing"))
        builder.save()
    words = {"word": np.array(["known", "unknown", "größe"], object)}
    return {"serving_default": {**words, "key": np.array([7, 8], np.int64)}, "words": words}


def one_after_another(folder: Path) -> Inputs:
    """A saver that restores sequentially and reshapes: each step waits for the one before."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 2], name="x")
        a, b = (v1.get_variable(n, initializer=np.full((2, 2), i, np.float32)) for i, n in enumerate("ab", 1))
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        signatures = _definitions({"serving_default": ({"x": x}, {"y": x @ a - b})})
        saver = v1.train.Saver(restore_sequentially=True, reshape=True)
        builder.add_meta_graph_and_variables(session, ["serve"], signatures, saver=saver)
        builder.save()
    return {"serving_default": {"x": np.ones((1, 2), np.float32)}}


def functional_control_flow(folder: Path) -> Inputs:
    """A map over strings, a loop and a function: operations that call functions of the graph's library."""
    import tensorflow as tf

    v1 = tf.compat.v1
    v1.enable_control_flow_v2()
    try:
        with tf.Graph().as_default():
            text = v1.placeholder(tf.string, [None], name="text")
            scale = v1.get_variable("scale", initializer=np.array([1.5, -2.25], np.float32), use_resource=False)
            shift = v1.get_variable("shift", initializer=np.array([0.5, 1.0], np.float32), use_resource=True)
            length = tf.map_fn(
                lambda one: tf.cast(tf.strings.length(one), tf.float32), text, fn_output_signature=tf.float32
            )
            doubled = tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x * 2.0), (0, length))[1]
            shifted = tf.function(lambda x: x + shift)(doubled[:, None] * scale)
            save(folder, {"serving_default": ({"text": text}, {"score": shifted})})
    finally:
        v1.disable_control_flow_v2()
    return {"serving_default": {"text": np.array([b"a", b"bbb", b"", b"cc dd"], object)}}


def without_saver(folder: Path) -> Inputs:
    """As TF-Hub's modules were exported: variables are restored by their names."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        kept = v1.get_variable("kept", initializer=np.array([1.0, 2.0, 3.0], np.float32), use_resource=False)
        handle = v1.get_variable(
            "scope/handle", initializer=np.array([[0.5], [1.0], [2.0]], np.float32), use_resource=True
        )
        part = v1.fixed_size_partitioner(3)
        rows = v1.get_variable("rows", [3], initializer=v1.ones_initializer(), partitioner=part, use_resource=False)
        save(folder, {"serving_default": ({"x": x}, {"y": (x * kept) @ handle, "rows": x + tf.concat(list(rows), 0)})})
    path = folder / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    proto.meta_graphs[0].ClearField("saver_def")
    path.write_bytes(proto.SerializeToString())
    return {"serving_default": {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}}


def wide(folder: Path, mebibytes: int, use_resource: bool) -> None:
    """Of so many MiB, a multiple of 16, in matrices of 16."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        y = x = v1.placeholder(tf.float32, [None, 2048], name="x")
        for i in range(mebibytes // 16):
            y = y @ v1.get_variable(f"w{i}", initializer=tf.random.uniform([2048, 2048]), use_resource=use_resource)
        save(folder, {"serving_default": ({"x": x}, {"y": y})})


ZOO: Mapping[str, Callable[[Path], Inputs]] = {
    function.__name__: function
    for function in (
        resource_variables,
        reference_variables,
        scaled_reference_variables,
        estimator,
        several_graphs,
        no_variables,
        main_op,
        legacy_init_op,
        mutable_tables,
        one_after_another,
        functional_control_flow,
        without_saver,
    )
}
