"""The fingerprint of a checkpoint's index, by which a SavedModel's fingerprint.pb names it: FarmHash's Fingerprint64.

TensorFlow's code that writes fingerprint.pb computes it from a folder, here one of its file system in memory. An operation
of TensorFlow computes it too, but running any fixes TensorFlow's number of threads, which predicting sets later.
"""

from __future__ import annotations

import itertools
import os

_folders = itertools.count()


def checkpoint_hash(index: bytes) -> int:
    import tensorflow as tf
    from tensorflow.core.protobuf import fingerprint_pb2, saved_model_pb2

    # Private: tests/transforms/models/saved_model/test_mixed_exports.py compares it with the operation.
    from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

    folder = f"ram://headrace-fingerprint-{os.getpid()}-{next(_folders)}"
    # The graph is hashed too, and an empty one will do.
    graph = saved_model_pb2.SavedModel(meta_graphs=[{}]).SerializeToString()
    tf.io.gfile.makedirs(f"{folder}/variables")
    try:
        for name, data in (("saved_model.pb", graph), ("variables/variables.index", index)):
            with tf.io.gfile.GFile(f"{folder}/{name}", "wb") as file:
                file.write(data)
        written = fingerprint_pb2.FingerprintDef.FromString(fingerprinting.CreateFingerprintDef(folder))
    finally:
        tf.io.gfile.rmtree(folder)
    return int(written.checkpoint_hash)
