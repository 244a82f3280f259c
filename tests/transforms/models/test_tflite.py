from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import (
    CorruptModel,
    DataError,
    HeadraceError,
    NotAModel,
    ObjectChanged,
    SignatureNotFound,
)
from headrace.transforms.models import tflite
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.pin import pin_model
from headrace.transforms.models.streaming.tensor_stream import StreamOptions
from headrace.transforms.storage.local import LocalStore
from headrace.transforms.storage.store import ObjectRef
from tests.support.faulty_store import FaultyStore
from tests.support.warm import python
from tests.transforms.models.saved_model.test_saved_model import assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
RNG = np.random.default_rng(0)
Inputs = dict[str, dict[str, Any]]


def _module() -> Any:
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(RNG.normal(size=(4, 3)).astype(np.float32))
    return module


def _convert(folder: Path, module: Any, signatures: dict[str, Any], **options: Any) -> bytes:
    import tensorflow as tf

    tf.saved_model.save(module, str(folder), signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=list(signatures))
    for name, value in options.items():
        setattr(converter, name, value)
    data: bytes = converter.convert()
    return data


def several_signatures(folder: Path) -> tuple[bytes, Inputs]:
    """Two signatures; an input that has no rows."""
    import tensorflow as tf

    module = _module()
    x, s = tf.TensorSpec([None, 4], tf.float32, "x"), tf.TensorSpec([2], tf.int32, "s")
    both = tf.function(lambda x, s: {"y": x @ module.w, "z": s + 1}).get_concrete_function(x, s)
    twice = tf.function(lambda x: {"y": tf.nn.relu(x @ module.w) * 2.0}).get_concrete_function(x)
    data = _convert(folder, module, {"serving_default": both, "twice": twice})
    rows = RNG.normal(size=(5, 4)).astype(np.float32)
    return data, {"serving_default": {"x": rows, "s": np.array([1, 2], np.int32)}, "twice": {"x": rows}}


def fixed_batch(folder: Path) -> tuple[bytes, Inputs]:
    """A batch of one, as most converters leave it."""
    import tensorflow as tf

    module = _module()
    spec = tf.TensorSpec([1, 4], tf.float32, "x")
    one = tf.function(lambda x: {"y": tf.reshape(x @ module.w, [1, 3, 1])}).get_concrete_function(spec)
    data = _convert(folder, module, {"serving_default": one})
    return data, {"serving_default": {"x": RNG.normal(size=(6, 4)).astype(np.float32)}}


def no_signatures(folder: Path) -> tuple[bytes, Inputs]:
    """Converted from a function alone."""
    import tensorflow as tf

    module = _module()
    spec = tf.TensorSpec([None, 4], tf.float32, "pixels")
    concrete = tf.function(lambda pixels: tf.nn.softmax(pixels @ module.w)).get_concrete_function(spec)
    data: bytes = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module).convert()
    return data, {"serving_default": {"pixels": RNG.normal(size=(5, 4)).astype(np.float32)}}


def int8(folder: Path) -> tuple[bytes, Inputs]:
    """Quantised throughout: it takes and gives integers."""
    import tensorflow as tf

    module = _module()
    spec = tf.TensorSpec([None, 4], tf.float32, "x")
    concrete = tf.function(lambda x: {"y": tf.nn.relu(x @ module.w)}).get_concrete_function(spec)
    samples = RNG.normal(size=(20, 1, 4)).astype(np.float32)
    data = _convert(
        folder,
        module,
        {"serving_default": concrete},
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([sample] for sample in samples),
        inference_input_type=tf.int8,
        inference_output_type=tf.int8,
    )
    return data, {"serving_default": {"x": RNG.integers(-128, 128, (5, 4), np.int8)}}


def strings(folder: Path) -> tuple[bytes, Inputs]:
    """It takes and gives strings."""
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec([None], tf.string, "words")
    swap = tf.function(lambda words: {"back": tf.gather(words, [1, 0])}).get_concrete_function(spec)
    data = _convert(folder, module, {"serving_default": swap})
    return data, {"serving_default": {"words": np.array(["a", "größe"], object)}}


ZOO = {f.__name__: f for f in (several_signatures, fixed_batch, no_signatures, int8, strings)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Inputs]]:
    kept: dict[str, tuple[Path, Inputs]] = {}

    def make(name: str) -> tuple[Path, Inputs]:
        if name not in kept:
            folder = tmp_path_factory.mktemp(name)
            data, inputs = ZOO[name](folder / "saved")
            (folder / "model.tflite").write_bytes(data)
            kept[name] = folder / "model.tflite", inputs
        return kept[name]

    return make


def native(path: Path, signature: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """From a file, and row by row where the batch is fixed."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_path=str(path))
    arrays = {
        name: np.char.encode(a.astype(str), "utf-8").astype(object) if a.dtype == object else a
        for name, a in arrays.items()
    }
    if interpreter.get_signature_list():
        run = interpreter.get_signature_runner(signature)
        fixed = all(d["shape_signature"][0] == 1 for d in run.get_input_details().values())
        if not fixed:
            return dict(run(**arrays))
        rows = [run(**{n: a[i : i + 1] for n, a in arrays.items()}) for i in range(len(next(iter(arrays.values()))))]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    details = {d["name"]: d["index"] for d in interpreter.get_input_details()}
    for name, array in arrays.items():
        interpreter.resize_tensor_input(details[name], array.shape)
    interpreter.allocate_tensors()
    for name, array in arrays.items():
        interpreter.set_tensor(details[name], array)
    interpreter.invoke()
    return {d["name"]: interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()}


@pytest.mark.parametrize("name", ZOO)
def test_outputs_equal_the_interpreters_from_a_file(name: str, made: Any) -> None:
    path, inputs = made(name)
    spec = describe_model(str(path))
    assert spec.signatures.keys() == inputs.keys()
    for signature, arrays in inputs.items():
        model = load_model(str(path), signature)
        assert (model.format, model.nbytes) == ("tflite", path.stat().st_size)
        assert (model.inputs, model.outputs) == (spec.signatures[signature].inputs, spec.signatures[signature].outputs)
        for _ in range(2):
            assert_same_bits(model.predict(arrays), native(path, signature, arrays))


def recurrent(folder: Path) -> bytes:
    """An LSTM as Keras 2 has them converted: one operation, which keeps its state; two signatures of it."""
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    steps = tf_keras.Input((5, 3), batch_size=1)
    model = tf_keras.Model(steps, tf_keras.layers.Dense(2)(tf_keras.layers.LSTM(4)(steps)))
    spec = tf.TensorSpec([1, 5, 3], tf.float32, "x")
    once = tf.function(lambda x: {"y": model(x)}).get_concrete_function(spec)
    twice = tf.function(lambda x: {"y": 2 * model(x)}).get_concrete_function(spec)
    return _convert(folder, model, {"serving_default": once, "twice": twice})


def test_a_row_is_predicted_as_if_it_were_the_only_one(tmp_path: Path) -> None:
    import tensorflow as tf

    (tmp_path / "model.tflite").write_bytes(recurrent(tmp_path / "saved"))
    used = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in {one["op_name"] for one in used._get_ops_details()}
    x = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)

    def fresh(signature: str, row: Any) -> Any:
        return tf.lite.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner(signature)(x=row)["y"]

    for signature in ("serving_default", "twice"):
        model = load_model(str(tmp_path / "model.tflite"), signature)
        wanted = np.concatenate([fresh(signature, x[i : i + 1]) for i in range(len(x))])
        for order in (slice(None), slice(None, None, -1)):
            np.testing.assert_array_equal(model.predict({"x": x[order]})["y"], wanted[order])


def test_what_is_told(made: Any) -> None:
    spec = describe_model(str(made("several_signatures")[0]))
    assert spec.signatures["serving_default"].inputs["x"].shape == (None, 4)
    assert spec.signatures["serving_default"].inputs["s"].shape == (2,)
    assert spec.parameters >= 12
    spec = describe_model(str(made("fixed_batch")[0]))
    assert spec.signatures["serving_default"].outputs["y"].shape == (None, 3, 1)
    spec = describe_model(str(made("int8")[0]))
    assert {s.dtype for s in (*spec.signatures["serving_default"].inputs.values(),)} == {"int8"}
    spec = describe_model(str(made("strings")[0]))
    assert spec.signatures["serving_default"].inputs["words"].dtype == "string"
    for use in (load_model, describe_model):
        with pytest.raises(SignatureNotFound, match="'twice'"):
            use(str(made("several_signatures")[0]), "nope")


def test_batches_of_any_size_one_after_another(made: Any) -> None:
    for name in ("several_signatures", "fixed_batch", "no_signatures", "int8"):
        path, inputs = made(name)
        model = load_model(str(path))
        arrays = inputs["serving_default"]
        for rows in (5, 1, 3, 0):
            part = {n: a[:rows] if n != "s" else a for n, a in arrays.items()}
            found = model.predict(part)
            if rows:
                assert_same_bits(found, native(path, "serving_default", part))
            else:
                assert {len(a) for n, a in found.items() if n != "z"} == {0}


def test_many_threads_call_one_model(made: Any) -> None:
    path, inputs = made("several_signatures")
    model = load_model(str(path), "twice")
    cases = [inputs["twice"]["x"][: i % 5 + 1] * i for i in range(64)]
    expected = [native(path, "twice", {"x": x}) for x in cases]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            for found, wanted in zip(threads.map(lambda x: model.predict({"x": x}), cases), expected, strict=True):
                assert_same_bits(found, wanted)
    assert 1 <= len(model.call._idle) <= 8  # type: ignore[attr-defined]


def test_outputs_are_the_callers(made: Any) -> None:
    """Not views of the interpreter's memory, which the next call overwrites."""
    path, inputs = made("int8")
    model = load_model(str(path))
    first = model.predict(inputs["serving_default"])
    kept = {name: array.copy() for name, array in first.items()}
    model.predict({"x": inputs["serving_default"]["x"][::-1].copy()})
    assert_same_bits(first, kept)


def test_wrong_inputs_are_told(made: Any) -> None:
    model = load_model(str(made("int8")[0]))
    with pytest.raises(DataError, match=r"x: int8 \[\?, 4\].*Found: float32"):
        model.predict({"x": np.zeros((1, 4), np.float32)})


_TRUNCATED = """
import sys, warnings
warnings.simplefilter("ignore")
from headrace import load_model
from headrace.transforms.errors import CorruptModel
whole, path = open(sys.argv[1], "rb").read(), sys.argv[2]
for n in range(8, len(whole) - 16, 7):
    open(path, "wb").write(whole[:n])
    try:
        load_model(path)
    except CorruptModel:
        continue
    sys.exit(f"{n} of {len(whole)} bytes are taken for a model")
"""


def test_a_truncated_file(made: Any, tmp_path: Path) -> None:
    """In a process of its own, which TFLite ends where it does not see what is wrong."""
    path = made("no_signatures")[0]
    python(_TRUNCATED, str(path), str(tmp_path / "damaged.tflite"))


def test_a_flipped_byte_is_found_where_the_store_knows_a_checksum(made: Any) -> None:
    import crc32c

    path = made("no_signatures")[0]
    plain = pin_model(str(path))
    file = plain.objects[0]
    known = ObjectRef(file.uri, file.size, file.version, crc32c.crc32c(path.read_bytes()))
    ref = type(plain)(plain.uri, plain.format, (known,))
    assert tflite.load(LocalStore(), ref, "serving_default", StreamOptions()).parameters >= 12
    for at in range(8, file.size, 97):
        with pytest.raises(CorruptModel, match="is damaged"):
            tflite.load(FaultyStore(LocalStore(), flip={file.uri: at}), ref, "serving_default", StreamOptions())


def test_changed_since_it_was_pinned(made: Any, tmp_path: Path) -> None:
    copy = tmp_path / "model.tflite"
    copy.write_bytes(made("int8")[0].read_bytes())
    ref = pin_model(str(copy))
    copy.write_bytes(copy.read_bytes() + b"\0")
    with pytest.raises(ObjectChanged):
        load_model(ref)


def test_what_is_no_flatbuffer(tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_bytes(b"hello, this is not a model")
    with pytest.raises(NotAModel):
        load_model(str(tmp_path / "x.tflite"))
    (tmp_path / "y.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    with pytest.raises(HeadraceError, match=r"y\.tflite is damaged"):
        load_model(str(tmp_path / "y.tflite"))
