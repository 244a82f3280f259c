"""A SavedModel is one export: its fingerprint names the index of its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from headrace.transforms.errors import CorruptModel
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.saved_model.files import checkpoint_hash


def _export(folder: Path, value: float, size: int = 2) -> Path:
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(tf.fill([size], value))
    module.call = tf.function(lambda x: {"y": x * tf.reduce_sum(module.w)}, input_signature=[tf.TensorSpec([None])])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.call})
    return folder


def _predicted(folder: Path) -> float:
    model = load_model(str(folder))
    return float(model.predict({next(iter(model.inputs)): np.ones(1, np.float32)})["y"][0])


def test_the_weights_of_another_export_are_refused(tmp_path: Path) -> None:
    old, new = _export(tmp_path / "old", 1.0), _export(tmp_path / "new", 7.0)
    assert (_predicted(old), _predicted(new)) == (2.0, 14.0)
    shutil.rmtree(new / "variables")
    shutil.copytree(old / "variables", new / "variables")
    for use in (load_model, describe_model):
        with pytest.raises(CorruptModel, match=r"belong to different exports.*fingerprint\.pb records"):
            use(str(new))
    # TensorFlow before 2.12 wrote no fingerprint.
    (new / "fingerprint.pb").unlink()
    assert _predicted(new) == 2.0


def test_the_index_alone_of_another_export_is_refused(tmp_path: Path) -> None:
    old, new = _export(tmp_path / "old", 1.0), _export(tmp_path / "new", 7.0)
    shutil.copy(old / "variables/variables.index", new / "variables/variables.index")
    with pytest.raises(CorruptModel, match="belong to different exports"):
        load_model(str(new))


def test_a_fingerprint_that_cannot_be_parsed(tmp_path: Path) -> None:
    folder = _export(tmp_path / "model", 1.0)
    (folder / "fingerprint.pb").write_bytes(b"\xff\xff")
    with pytest.raises(CorruptModel, match=r"fingerprint\.pb cannot be parsed"):
        load_model(str(folder))


def test_the_fingerprint_is_tensorflows() -> None:
    import tensorflow as tf

    data = np.random.default_rng(0).bytes(1000)
    some = [data[:n] for n in (*range(1, 130), 191, 192, 193, 1000)]
    digests = tf.raw_ops.Fingerprint(data=tf.constant(some), method="farmhash64").numpy().view("<u8").ravel()
    assert [checkpoint_hash(one) for one in some] == digests.tolist()
