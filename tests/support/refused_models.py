"""What is often named as a model and cannot be run: each function makes one in a folder, and gives its address."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.transforms.errors import CorruptModel, ModelError, NotAModel, SignatureNotFound, UnsupportedModel
from tests.support import model_zoo
from tests.support.jobs import model_folder


@dataclass(frozen=True, slots=True)
class Refused:
    """`says` is part of the error's text."""

    make: Callable[[Path], Path]
    format: str
    error: type[ModelError]
    says: str


def _file(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def git_lfs_pointer(folder: Path) -> Path:
    return _file(folder, "m.keras", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def error_page_of_a_web_server(folder: Path) -> Path:
    return _file(folder, "m.h5", b"<!DOCTYPE html>\n<html><head><title>404")


def frozen_graph(folder: Path) -> Path:
    from tensorflow.core.framework import graph_pb2

    graph = graph_pb2.GraphDef()
    graph.node.add(name="x", op="Placeholder")
    return _file(folder, "frozen.pb", graph.SerializeToString())


def folder_of_versions(folder: Path) -> Path:
    for version in ("1", "2", "10"):
        shutil.copytree(model_folder() / "saved_model", folder / version)
    return folder


def _exported(folder: Path, call: Callable[[Any], Any]) -> Path:
    import tensorflow as tf

    concrete = tf.function(lambda x: {"y": call(x)}).get_concrete_function(tf.TensorSpec([None], tf.float32, name="x"))
    tf.saved_model.save(tf.Module(), str(folder / "m"), signatures=concrete)
    return folder / "m"


def python_function(folder: Path) -> Path:
    import tensorflow as tf

    return _exported(folder, lambda x: tf.ensure_shape(tf.numpy_function(lambda a: a, [x], tf.float32), [None]))


def operation_that_nothing_registers(folder: Path) -> Path:
    import tensorflow as tf

    graph = _exported(folder, tf.math.softsign) / "saved_model.pb"
    graph.write_bytes(graph.read_bytes().replace(b"Softsign", b"Softsigm"))
    return folder / "m"


def operation_that_reads_a_file(folder: Path) -> Path:
    import tensorflow as tf

    return _exported(folder, lambda x: tf.strings.length(tf.io.read_file("/etc/hostname")) + tf.cast(x, tf.int32))


def state_of_a_kind_of_its_own(folder: Path) -> Path:
    model_zoo.other_state(folder / "m")
    return folder / "m"


def no_signature_and_no_traced_function(folder: Path) -> Path:
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(folder / "m"))
    return folder / "m"


def graph_and_weights_of_two_exports(folder: Path) -> Path:
    model_zoo.several_signatures(folder / "m")
    shutil.rmtree(folder / "m/variables")
    shutil.copytree(model_folder() / "saved_model/variables", folder / "m/variables")
    return folder / "m"


def half_copied_weights(folder: Path) -> Path:
    shutil.copytree(model_folder() / "saved_model", folder / "m")
    (data,) = model_zoo.data_files(folder / "m")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    return folder / "m"


def _keras(folder: Path, layer: Mapping[str, Any]) -> Path:
    """The small network with a layer of another kind instead of its first Dense layer."""
    with zipfile.ZipFile(model_folder() / "model.keras") as whole, zipfile.ZipFile(folder / "m.keras", "w") as changed:
        for name in whole.namelist():
            data = whole.read(name)
            if name == "config.json":
                described = json.loads(data)
                layers = described["config"]["layers"]
                layers[1] = layers[1] | layer | {"config": {"name": layers[1]["name"]} | layer.get("config", {})}
                data = json.dumps(described).encode()
            changed.writestr(name, data)
    return folder / "m.keras"


def lambda_layer(folder: Path) -> Path:
    code = {"class_name": "__lambda__", "config": {"code": "", "defaults": None, "closure": None}}
    return _keras(folder, {"class_name": "Lambda", "config": {"function": code}})


def layer_of_ones_own(folder: Path) -> Path:
    return _keras(folder, {"class_name": "Scale", "module": None, "registered_name": "mine>Scale"})


def saved_model_as_a_layer(folder: Path) -> Path:
    return _keras(folder, {"class_name": "TFSMLayer", "config": {"filepath": "gs://bucket/inner"}})


def layer_that_only_keras_2_has(folder: Path) -> Path:
    return _keras(folder, {"class_name": "ThresholdedReLU", "config": {"theta": 0.5}})


def feature_space(folder: Path) -> Path:
    described: dict[str, Any] = {
        "module": "keras.utils",
        "class_name": "FeatureSpace",
        "config": {},
        "registered_name": None,
    }
    with zipfile.ZipFile(model_folder() / "model.keras") as whole, zipfile.ZipFile(folder / "m.keras", "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, json.dumps(described) if name == "config.json" else whole.read(name))
    return folder / "m.keras"


def weights_alone(folder: Path) -> Path:
    with zipfile.ZipFile(model_folder() / "model.keras") as whole:
        return _file(folder, "m.weights.h5", whole.read("model.weights.h5"))


REFUSED = (
    Refused(git_lfs_pointer, "any", NotAModel, "is a pointer of Git LFS"),
    Refused(error_page_of_a_web_server, "any", NotAModel, "is a web page"),
    Refused(frozen_graph, "any", NotAModel, "is a frozen TensorFlow graph"),
    Refused(folder_of_versions, "any", NotAModel, "is a folder above models"),
    Refused(python_function, "SavedModel", UnsupportedModel, "calls a Python function"),
    Refused(operation_that_nothing_registers, "SavedModel", UnsupportedModel, "--import_module"),
    Refused(operation_that_reads_a_file, "SavedModel", UnsupportedModel, "--unsafe_model"),
    Refused(state_of_a_kind_of_its_own, "SavedModel", UnsupportedModel, "keeps state that cannot be streamed"),
    Refused(no_signature_and_no_traced_function, "SavedModel", SignatureNotFound, "no signature at all"),
    Refused(graph_and_weights_of_two_exports, "SavedModel", CorruptModel, "belong to different exports"),
    Refused(half_copied_weights, "SavedModel", CorruptModel, "which is truncated or another model's"),
    Refused(lambda_layer, "Keras 3", UnsupportedModel, "holds Python code"),
    Refused(layer_of_ones_own, "Keras 3", UnsupportedModel, "--custom_objects"),
    Refused(saved_model_as_a_layer, "Keras 3", UnsupportedModel, "--unsafe_model"),
    Refused(layer_that_only_keras_2_has, "Keras 2", UnsupportedModel, "Save it as a SavedModel with tf_keras"),
    Refused(feature_space, "Keras 3", NotAModel, "holds a FeatureSpace"),
    Refused(weights_alone, "Keras 3", NotAModel, "holds no whole model"),
)
