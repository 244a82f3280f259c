"""Small SavedModels, exported into a folder; each function gives inputs for every signature."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Inputs = Mapping[str, Mapping[str, Any]]


def _tensor(shape: list[int | None], dtype: str, name: str) -> Any:
    import tensorflow as tf

    return tf.TensorSpec(shape, dtype, name=name)


def keras_export(folder: Path, width: int = 16, layers: int = 2) -> Inputs:
    """Keras 3's export() stores every weight twice."""
    import keras

    keras.utils.set_random_seed(0)
    stack = [keras.Input((width,), name="pixels")]
    for _ in range(layers):
        stack += [keras.layers.Dense(width, activation="relu"), keras.layers.BatchNormalization()]
    model = keras.Sequential([*stack, keras.layers.Dense(3, activation="softmax", name="digit")])
    model.export(str(folder), verbose=False)
    return {"serving_default": {"pixels": np.random.default_rng(0).normal(size=(7, width)).astype(np.float32)}}


def text(folder: Path) -> Inputs:
    """A vocabulary learned by `adapt`, and an LSTM's loop."""
    import keras

    keras.utils.set_random_seed(1)
    words = keras.layers.TextVectorization(output_mode="int", output_sequence_length=4)
    words.adapt(["red green", "blue grün"])
    layers = [words, keras.layers.Embedding(10, 4), keras.layers.LSTM(5), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((1,), dtype="string", name="text"), *layers])
    model.export(str(folder), verbose=False)
    return {"serving_default": {"text": np.array([["red"], ["grün, blue"], ["nothing"], [""]], object)}}


def counting(folder: Path) -> Inputs:
    """A signature that writes to the variable that it reads."""
    import tensorflow as tf

    module = tf.Module()
    module.calls = tf.Variable([0.0, 10.0])
    concrete = tf.function(lambda x: {"y": x + module.calls.assign_add([1.0, 1.0])}).get_concrete_function(
        _tensor([2], "float32", "x")
    )
    tf.saved_model.save(module, str(folder), signatures=concrete)
    return {"serving_default": {"x": np.zeros(2, np.float32)}}


def several_signatures(folder: Path) -> Inputs:
    """Three signatures over overlapping variables, names that are not identifiers, an unset rank, a scalar output."""
    import tensorflow as tf

    module = tf.Module()
    module.a = tf.Variable(np.arange(6, dtype=np.float32).reshape(2, 3))
    module.b = tf.Variable(2.5)
    module.c = tf.Variable(np.arange(4, dtype=np.int64))
    module.unused = tf.Variable(np.zeros(100_000, np.float32))
    module.nested = {"list": [tf.Variable([1.0, 2.0, 3.0])]}

    def both(left: Any, right: Any) -> Any:
        product = tf.matmul(left, module.a) * module.b
        return {"product": product + module.nested["list"][0], "any/rank": right * 2.0, "sum": tf.reduce_sum(product)}

    signatures = {
        "serving_default": tf.function(both).get_concrete_function(
            _tensor([None, 2], "float32", "left"), tf.TensorSpec(None, tf.float32, name="right")
        ),
        "counts": tf.function(lambda i: {"count": tf.gather(module.c, i)}).get_concrete_function(
            _tensor([None], "int32", "i")
        ),
        "constant": tf.function(lambda x: {"y": x + 1.0}).get_concrete_function(_tensor([None], "float32", "x")),
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return {
        "serving_default": {"left": np.ones((5, 2), np.float32), "right": np.ones((2, 1, 3), np.float32)},
        "counts": {"i": np.array([3, 1], np.int32)},
        "constant": {"x": np.array([1.0], np.float32)},
    }


def vocabulary(folder: Path) -> Inputs:
    """A static table filled from an asset, and a variable next to it."""
    import tensorflow as tf

    source = folder.parent / "words.txt"
    source.write_text("alpha\nbeta\ngröße\n")
    rows = tf.lookup.TextFileIndex
    initializer = tf.lookup.TextFileInitializer(str(source), tf.string, rows.WHOLE_LINE, tf.int64, rows.LINE_NUMBER)
    module = tf.Module()
    module.table = tf.lookup.StaticVocabularyTable(initializer, 2)
    module.fixed = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["alpha"], [7]), -1)
    module.embedding = tf.Variable(np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32))

    def embed(words: Any) -> Any:
        return {"row": tf.gather(module.embedding, module.table.lookup(words)), "fixed": module.fixed.lookup(words)}

    concrete = tf.function(embed).get_concrete_function(_tensor([None], "string", "words"))
    tf.saved_model.save(module, str(folder), signatures=concrete)
    source.unlink()
    return {"serving_default": {"words": np.array(["beta", "größe", "nowhere"], object)}}


def asset_read_when_called(folder: Path) -> Inputs:
    """The graph reads a file of its assets for each call."""
    import tensorflow as tf

    source = folder.parent / "greeting.txt"
    source.write_text("hello")
    module = tf.Module()
    module.asset = tf.saved_model.Asset(str(source))
    concrete = tf.function(lambda x: {"y": tf.strings.join([tf.io.read_file(module.asset.asset_path), x])})
    tf.saved_model.save(module, str(folder), signatures=concrete.get_concrete_function(_tensor([None], "string", "x")))
    source.unlink()
    return {"serving_default": {"x": np.array(["!"], object)}}


def many_dtypes(folder: Path) -> Inputs:
    """Variables of ten dtypes, strings and float8 among them."""
    import tensorflow as tf

    module = tf.Module()
    values = {
        "bfloat16": tf.constant([1.5, -2.0, 3.25], tf.bfloat16),
        "half": tf.constant([0.5, 2.0], tf.float16),
        "float64": tf.constant([[1 / 3]], tf.float64),
        "int8": tf.constant([-128, 127], tf.int8),
        "uint16": tf.constant(65535, tf.uint16),
        "bool": tf.constant([True, False, True]),
        "complex64": tf.constant([1 + 2j], tf.complex64),
        "string": tf.constant([["a", "ü"], ["", "x" * 300]]),
        "nothing": tf.zeros((0, 3)),
        "float8": tf.cast(tf.constant([1.0, -0.5]), tf.dtypes.experimental.float8_e4m3fn),
    }
    module.all = {name: tf.Variable(value) for name, value in values.items()}

    def read(x: Any) -> Any:
        out = {name: tf.identity(variable) for name, variable in module.all.items() if name != "float8"}
        return {**out, "float8": tf.cast(module.all["float8"], tf.float32), "x": x}

    concrete = tf.function(read).get_concrete_function(_tensor([None], "float32", "x"))
    tf.saved_model.save(module, str(folder), signatures=concrete)
    return {"serving_default": {"x": np.zeros(2, np.float32)}}


def several_shards(folder: Path) -> Inputs:
    """Its checkpoint is in several data files."""
    import tensorflow as tf

    module = tf.Module()
    module.v = [tf.Variable(np.full((300, i + 1), i, np.float32)) for i in range(6)]
    concrete = tf.function(lambda x: {"y": x + tf.concat(module.v, 1)}).get_concrete_function(
        _tensor([300, 21], "float32", "x")
    )
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=4000)
    options = tf.saved_model.SaveOptions(experimental_sharding_callback=policy)
    tf.saved_model.save(module, str(folder), signatures=concrete, options=options)
    assert len(list((folder / "variables").glob("variables.data-*"))) > 2
    return {"serving_default": {"x": np.ones((300, 21), np.float32)}}


def partitioned(folder: Path) -> Inputs:
    """Its two matrices are cut, one along both axes, the way TensorFlow 1's partitioners and TPU embeddings do."""
    import tensorflow as tf

    module = tf.Module()
    rng = np.random.default_rng(2)
    module.rows = tf.Variable(rng.normal(size=(300, 4)).astype(np.float32))
    module.grid = tf.Variable(rng.normal(size=(4, 100)).astype(np.float32))
    concrete = tf.function(lambda x: {"y": x @ module.rows @ module.grid}).get_concrete_function(
        _tensor([None, 300], "float32", "x")
    )
    tf.saved_model.save(module, str(folder), signatures=concrete)
    cuts = {
        "rows": ["300 4 0,130:-", "300 4 130,170:-"],
        "grid": ["4 100 0,3:0,70", "4 100 0,3:70,30", "4 100 3,1:0,70", "4 100 3,1:70,30"],
    }
    rewrite_checkpoint(folder, {f"{name}/.ATTRIBUTES/VARIABLE_VALUE": cut for name, cut in cuts.items()})
    return {"serving_default": {"x": rng.normal(size=(5, 300)).astype(np.float32)}}


def rewrite_checkpoint(folder: Path, cuts: Mapping[str, list[str]]) -> None:
    """Saves the same tensors anew, those in `cuts` in slices ("full shape start,length:…")."""
    import tensorflow as tf

    prefix = folder / "variables" / "variables"
    reader = tf.train.load_checkpoint(str(prefix))
    names, specs, tensors = [], [], []
    for name in reader.get_variable_to_shape_map():
        value = reader.get_tensor(name)
        for cut in cuts.get(name, [""]):
            names.append(name)
            specs.append(cut)
            dims = cut.split()[-1].split(":") if cut else []
            spans = [tuple(map(int, d.split(","))) if d != "-" else (0, None) for d in dims]
            tensors.append(tf.constant(value[tuple(slice(s, n and s + n) for s, n in spans)] if cut else value))
    shutil.rmtree(folder / "variables")
    (folder / "variables").mkdir()
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=specs, tensors=tensors)


def partitioned_strings(folder: Path) -> Inputs:
    """TensorFlow 2.21 itself cannot put them together ("Dtype string not supported")."""
    import tensorflow as tf

    module = tf.Module()
    module.words = tf.Variable([[f"{i}-{j}" * i for j in range(5)] for i in range(4)])
    concrete = tf.function(lambda i: {"row": tf.gather(module.words, i)}).get_concrete_function(
        _tensor([None], "int32", "i")
    )
    tf.saved_model.save(module, str(folder), signatures=concrete)
    rewrite_checkpoint(folder, {"words/.ATTRIBUTES/VARIABLE_VALUE": ["4 5 0,3:-", "4 5 3,1:0,2", "4 5 3,1:2,3"]})
    return {"serving_default": {"i": np.array([3, 0, 2, 1], np.int32)}}


def tables_of_a_checkpoint(folder: Path) -> Inputs:
    """Mutable and dense tables, whose content is neither in the graph nor in an asset."""
    import tensorflow as tf

    module = tf.Module()
    module.weight = tf.Variable(3.0)
    module.memory = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    module.memory.insert(["known", "größe"], [5, 6])
    module.empty = tf.lookup.experimental.MutableHashTable(tf.int64, tf.string, "none")
    module.nested = {"rows": tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, [0.0, 0.0], -1, -2, 8)}
    module.nested["rows"].insert([7, 1 << 40], [[1.5, 2.5], [3.5, 4.5]])
    word, key = _tensor([None], "string", "word"), _tensor([None], "int64", "key")

    def both(word: Any, key: Any) -> Any:
        return {"id": module.memory.lookup(word), "row": module.nested["rows"].lookup(key), "n": module.memory.size()}

    signatures = {
        "serving_default": tf.function(both).get_concrete_function(word, key),
        "empty": tf.function(lambda key: {"word": module.empty.lookup(key)}).get_concrete_function(key),
        "plain": tf.function(lambda x: {"y": x * module.weight}).get_concrete_function(_tensor([None], "float32", "x")),
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    keys = np.array([7, 8, 1 << 40], np.int64)
    return {
        "serving_default": {"word": np.array(["known", "größe", "new"], object), "key": keys},
        "empty": {"key": keys},
        "plain": {"x": np.array([2.0], np.float32)},
    }


def other_state(folder: Path) -> Inputs:
    """Signature "serving_default" needs state of a resource of its own kind; "plain" does not."""
    import tensorflow as tf

    class Kept(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self) -> Any:
            shared = "kept" if tf.executing_eagerly() else "kept_in_graph"
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64, shared_name=shared)

        def _serialize_to_tensors(self) -> Any:
            return {
                "content": tf.raw_ops.LookupTableExportV2(
                    table_handle=self.resource_handle, Tkeys=tf.string, Tvalues=tf.int64
                ).keys
            }

        def _restore_from_tensors(self, restored: Any) -> Any:
            return tf.no_op()

    module = tf.Module()
    module.weight = tf.Variable(3.0)
    module.inner = {"kept": (kept := Kept())}
    assert kept.resource_handle is not None, "it is created outside of any function"

    def size(x: Any) -> Any:
        return {
            "y": x + tf.cast(tf.raw_ops.LookupTableSizeV2(table_handle=module.inner["kept"].resource_handle), x.dtype)
        }

    spec = _tensor([None], "float32", "x")
    signatures = {
        "serving_default": tf.function(size).get_concrete_function(spec),
        "plain": tf.function(lambda x: {"y": x * module.weight}).get_concrete_function(spec),
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return {"plain": {"x": np.array([2.0], np.float32)}}


def wide(folder: Path, mebibytes: int, layers: int = 8) -> Inputs:
    """A Keras export of about so many MiB of weights."""
    return keras_export(folder, int((mebibytes * 2**18 / layers) ** 0.5), layers)


ZOO: Mapping[str, Callable[[Path], Inputs]] = {
    function.__name__: function
    for function in (
        keras_export,
        text,
        counting,
        several_signatures,
        vocabulary,
        asset_read_when_called,
        many_dtypes,
        several_shards,
        partitioned,
        tables_of_a_checkpoint,
    )
}


def data_files(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "variables").iterdir() if re.search(r"\.data-\d+-of-\d+$", p.name))
