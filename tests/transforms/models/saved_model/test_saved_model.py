from __future__ import annotations

import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import (
    CorruptModel,
    DataError,
    NotAModel,
    ObjectChanged,
    SignatureNotFound,
    UnsupportedModel,
)
from headrace.transforms.models import process_cache as sharing
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.pin import pin_model
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.models.saved_model import tf2 as saved_model
from headrace.transforms.models.spec import TensorSpec
from headrace.transforms.models.streaming.tensor_stream import StreamOptions, TensorStream
from headrace.transforms.storage.local import LocalStore
from headrace.transforms.storage.store import ObjectRef, StoreOptions
from tests.support import model_zoo
from tests.transforms.models.saved_model.test_tensor_bundle import read_index, write_table

Export = Callable[[str], tuple[Path, model_zoo.Inputs]]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A model of the zoo, exported once per session; nobody may write to it."""
    made: dict[str, tuple[Path, model_zoo.Inputs]] = {}

    def export(name: str) -> tuple[Path, model_zoo.Inputs]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "model"
            made[name] = folder, getattr(model_zoo, name)(folder)
        return made[name]

    return export


@pytest.fixture
def copied(exported: Export, tmp_path: Path) -> Callable[[str], Path]:
    """A copy that a test may damage. Without a fingerprint, so that the damage itself is what is found."""
    unmarked = shutil.ignore_patterns("fingerprint.pb")
    return lambda name: Path(shutil.copytree(exported(name)[0], tmp_path / name, ignore=unmarked))


@pytest.fixture(autouse=True)
def _nothing_left_in_memory_file_system(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "tensorflow" in sys.modules and "asset_read_when_called" not in request.node.name:
        assert in_ram() == []


def in_ram() -> list[str]:
    import tensorflow as tf

    try:
        return [name for name in tf.io.gfile.listdir("ram://") if name.startswith("headrace-")]
    except tf.errors.NotFoundError:
        return []


def native(folder: Path, signature: str, inputs: Any) -> dict[str, Any]:
    import tensorflow as tf

    function = tf.saved_model.load(str(folder)).signatures[signature]
    return {k: v.numpy() for k, v in function(**{k: tf.constant(v) for k, v in inputs.items()}).items()}


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        if array.dtype == object:
            assert found[name].tolist() == array.tolist()
        else:
            assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", model_zoo.ZOO)
def test_outputs_equal_the_natively_loaded_models_to_the_bit(exported: Export, name: str) -> None:
    folder, inputs = exported(name)
    for signature, arrays in inputs.items():
        model = load_model(str(folder), signature)
        assert (model.signature, model.format) == (signature, "saved_model")
        assert_same_bits(model.predict(arrays), native(folder, signature, arrays))
        assert model.inputs.keys() == arrays.keys()


def test_what_is_told_is_what_is_loaded(exported: Export) -> None:
    folder, inputs = exported("several_signatures")
    spec = describe_model(str(folder))
    assert spec.signatures["serving_default"].inputs == {
        "left": TensorSpec("left", "float32", (None, 2)),
        "right": TensorSpec("right", "float32", None),
    }
    assert spec.signatures["serving_default"].outputs["sum"] == TensorSpec("sum", "float32", ())
    assert list(spec.signatures) == ["constant", "counts", "serving_default"]
    assert (spec.parameters, spec.nbytes) == (10, 40)
    assert pickle.loads(pickle.dumps(spec)) == spec
    for signature in inputs:
        told, model = describe_model(str(folder), signature), load_model(str(folder), signature)
        assert (told.parameters, told.nbytes) == (model.parameters, model.nbytes)
        assert told.signatures[signature].outputs == model.outputs


def test_only_what_the_signature_uses_is_fetched(tmp_path: Path) -> None:
    """Keras 3's export holds each weight twice."""
    model_zoo.wide(tmp_path / "wide", 8)
    ref = pin_model(str(tmp_path / "wide"))
    store = LocalStore()
    model = saved_model.load(store, ref, "serving_default", StreamOptions())
    graph = sum(o.size for o in ref.objects if "/variables/variables.data" not in o.uri)
    data = sum(o.size for o in ref.objects) - graph
    assert model.nbytes == pytest.approx(8 << 20, rel=0.02)
    assert data > 1.99 * model.nbytes
    assert store.counters.bytes_read <= 1.01 * model.nbytes + graph
    told = LocalStore()
    assert saved_model.describe(told, ref).nbytes == model.nbytes
    assert told.counters.bytes_read < graph + 100_000


def test_weights_alias_the_buffers_that_were_read_into(exported: Export) -> None:
    from tests.transforms.models.streaming.test_dlpack import address

    folder, _ = exported("keras_export")
    filled: list[tuple[Any, int]] = []

    class Watched(TensorStream):
        def take(self, name: str) -> Any:
            array = super().take(name)
            filled.append((array, array.ctypes.data))
            return array

    ref = pin_model(str(folder))
    model = saved_model.load(LocalStore(), ref, "serving_default", StreamOptions(place=Watched))
    loaded = model._keep[0]  # type: ignore[index]
    variables = loaded.signatures["serving_default"].variables
    assert {address(v.read_value()) for v in variables} == {where for _, where in filled}
    assert len(filled) == len(variables) > 6


def test_a_compressed_index_and_a_text_graph(copied: Callable[[str], Path], exported: Export) -> None:
    import tensorflow as tf
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    folder = copied("several_signatures")
    index = folder / "variables" / "variables.index"
    index.write_bytes(write_table(read_index(index), compressed=True, per_block=3))
    proto = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (folder / "saved_model.pb").unlink()
    (folder / "saved_model.pbtxt").write_text(text_format.MessageToString(proto))
    original, inputs = exported("several_signatures")
    assert_same_bits(
        load_model(str(folder)).predict(inputs["serving_default"]),
        native(original, "serving_default", inputs["serving_default"]),
    )
    assert tf.train.load_checkpoint(str(folder / "variables" / "variables")).has_tensor("b/.ATTRIBUTES/VARIABLE_VALUE")


def test_a_flipped_byte_names_the_tensor(copied: Callable[[str], Path]) -> None:
    folder = copied("several_signatures")
    data = folder / "variables" / "variables.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    at = bytes(raw).index(np.arange(6, dtype=np.float32).tobytes())
    raw[at + 5] ^= 4
    data.write_bytes(raw)
    with pytest.raises(CorruptModel, match=r"'a/.ATTRIBUTES/VARIABLE_VALUE' in .*data-00000-of-00001 is damaged"):
        load_model(str(folder))
    assert load_model(str(folder), "counts").predict({"i": np.array([2], np.int32)})["count"].tolist() == [2]


def test_a_flipped_byte_in_strings_or_slices_is_found(copied: Callable[[str], Path]) -> None:
    first_row = np.random.default_rng(2).normal(size=4).astype(np.float32).tobytes()
    for name, needle in (("many_dtypes", b"x" * 300), ("partitioned", first_row)):
        folder = copied(name)
        data = model_zoo.data_files(folder)[0]
        raw = bytearray(data.read_bytes())
        raw[raw.index(needle)] ^= 1
        data.write_bytes(raw)
        with pytest.raises(CorruptModel):
            load_model(str(folder))


@pytest.mark.parametrize("missing", [1, 300, "all"])
def test_a_truncated_data_file(copied: Callable[[str], Path], missing: int | str) -> None:
    folder = copied("keras_export")
    data = model_zoo.data_files(folder)[0]
    data.write_bytes(data.read_bytes()[: 0 if missing == "all" else -int(missing)])
    with pytest.raises(CorruptModel, match=r"data-00000-of-00001.*(outside|truncated)"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00002"])
def test_a_missing_file_is_named(copied: Callable[[str], Path], name: str) -> None:
    folder = copied("several_shards")
    for path in (folder / "variables").glob(f"{name}*"):
        path.unlink()
    with pytest.raises(CorruptModel, match=r"missing|no variables/variables.index"):
        load_model(str(folder))


def test_a_model_that_changed_since_it_was_pinned(copied: Callable[[str], Path]) -> None:
    folder = copied("keras_export")
    ref = pin_model(str(folder))
    os.utime(model_zoo.data_files(folder)[0], ns=(0, 0))
    with pytest.raises(ObjectChanged):
        load_model(ref)


def test_a_model_that_changes_while_it_is_loaded(copied: Callable[[str], Path]) -> None:
    folder = copied("several_shards")
    ref = pin_model(str(folder))
    last = model_zoo.data_files(folder)[-1]

    class Rewritten(LocalStore):
        def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
            super().read_into(ref, offset, buffers)
            if ref.uri.endswith("variables.index"):
                last.write_bytes(bytes(last.stat().st_size))

    with pytest.raises(ObjectChanged, match=last.name):
        saved_model.load(Rewritten(), ref, "serving_default", StreamOptions())


def test_a_variable_without_a_value_is_never_silent(copied: Callable[[str], Path]) -> None:
    folder = copied("several_signatures")
    index = folder / "variables" / "variables.index"
    entries = read_index(index)
    del entries[b"b/.ATTRIBUTES/VARIABLE_VALUE"]
    index.write_bytes(write_table(entries))
    with pytest.raises(CorruptModel, match=r"variable .b. has no value"):
        load_model(str(folder))


def test_a_checkpoint_of_another_model(copied: Callable[[str], Path], tmp_path: Path) -> None:
    import tensorflow as tf

    folder = copied("several_signatures")
    module = tf.Module()
    module.a, module.b, module.c = tf.Variable([1.0]), tf.Variable(2.5), tf.Variable([1])
    module.nested = {"list": [tf.Variable([1.0, 2.0, 3.0])]}
    tf.saved_model.save(module, str(tmp_path / "other"))
    shutil.rmtree(folder / "variables")
    shutil.copytree(tmp_path / "other" / "variables", folder / "variables")
    with pytest.raises(CorruptModel, match=r"does not fit its graph.*'a/.*float32 \(2, 3\).*float32 \[1\]"):
        load_model(str(folder))


def test_partitioned_strings(exported: Export) -> None:
    folder, inputs = exported("partitioned_strings")
    expected = [[f"{i}-{j}".encode() * i for j in range(5)] for i in inputs["serving_default"]["i"]]
    assert load_model(str(folder)).predict(inputs["serving_default"])["row"].tolist() == expected


def test_tables_hold_what_the_checkpoint_says(exported: Export, copied: Callable[[str], Path]) -> None:
    """Not only what the native loader gives."""
    folder, inputs = exported("tables_of_a_checkpoint")
    for _ in range(2):
        found = load_model(str(folder)).predict(inputs["serving_default"])
        assert found["id"].tolist() == [5, 6, -1]
        assert found["row"].tolist() == [[1.5, 2.5], [0.0, 0.0], [3.5, 4.5]]
        assert found["n"] == 2
    assert load_model(str(folder), "plain").nbytes == 4
    damaged = copied("tables_of_a_checkpoint")
    index = damaged / "variables" / "variables.index"
    entries = read_index(index)
    for key, message in (("memory", "table 'memory' has no keys"), ("nested/rows", "table 'nested.rows' has no keys")):
        without = {k: v for k, v in entries.items() if k != f"{key}/.ATTRIBUTES/table-values".encode()}
        index.write_bytes(write_table(without))
        with pytest.raises(CorruptModel, match=message):
            load_model(str(damaged))
    swapped = {**entries, b"memory/.ATTRIBUTES/table-keys": entries[b"empty/.ATTRIBUTES/table-keys"]}
    swapped[b"memory/.ATTRIBUTES/table-values"] = entries[b"empty/.ATTRIBUTES/table-values"]
    index.write_bytes(write_table(swapped))
    with pytest.raises(CorruptModel, match="does not fit its graph: table 'memory"):
        load_model(str(damaged))


def test_other_state_is_refused_by_name_where_it_is_needed(exported: Export) -> None:
    folder, inputs = exported("other_state")
    for use in (load_model, describe_model):
        with pytest.raises(UnsupportedModel, match=r"'inner.kept' of .* keeps state.*content in the checkpoint"):
            use(str(folder), "serving_default")
    assert list(describe_model(str(folder)).signatures) == ["plain", "serving_default"]
    assert load_model(str(folder), "plain").predict(inputs["plain"])["y"].tolist() == [6.0]


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"not a graph"])
def test_a_graph_that_cannot_be_parsed(copied: Callable[[str], Path], data: bytes) -> None:
    folder = copied("keras_export")
    (folder / "saved_model.pb").write_bytes(data)
    with pytest.raises((CorruptModel, UnsupportedModel)):
        load_model(str(folder))


def test_a_graph_that_tensorflow_cannot_load(copied: Callable[[str], Path]) -> None:
    folder = copied("several_signatures")
    path = folder / "saved_model.pb"
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"MatBul"))
    with pytest.raises(UnsupportedModel, match="that TensorFlow does not know: MatBul"):
        load_model(str(folder))


def test_a_signature_that_does_not_exist(exported: Export) -> None:
    folder, _ = exported("several_signatures")
    for use in (load_model, describe_model):
        with pytest.raises(SignatureNotFound, match=r"'nope'.*'constant', 'counts', 'serving_default'"):
            use(str(folder), "nope")


def test_predict_says_what_does_not_fit(exported: Export) -> None:
    model = load_model(str(exported("keras_export")[0]))
    with pytest.raises(DataError, match=r"pixels: float32 \[\?, 16\].*missing pixels; unknown image"):
        model.predict({"image": np.zeros((1, 16), np.float32)})
    with pytest.raises(DataError, match=r"Found: float64 \[1, 16\].*astype\('float32'\)"):
        model.predict({"pixels": np.zeros((1, 16))})
    with pytest.raises(DataError, match=r"Found: float32 \[1, 15\].*Reshape"):
        model.predict({"pixels": np.zeros((1, 15), np.float32)})


def test_many_threads_call_one_model(exported: Export) -> None:
    folder, inputs = exported("keras_export")
    model, pixels = load_model(str(folder)), inputs["serving_default"]["pixels"]
    expected = [model.predict({"pixels": pixels * i}) for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            for found, wanted in zip(
                threads.map(lambda i: model.predict({"pixels": pixels * i}), range(8)), expected, strict=True
            ):
                assert_same_bits(found, wanted)


def test_models_load_at_once_in_many_threads(exported: Export) -> None:
    names = ["keras_export", "several_signatures", "vocabulary", "partitioned"] * 2
    cases = [exported(name) for name in names]
    expected = [native(folder, "serving_default", inputs["serving_default"]) for folder, inputs in cases]
    with ThreadPoolExecutor(8) as threads:
        models = list(threads.map(lambda case: load_model(str(case[0])), cases))
    for model, (_, inputs), wanted in zip(models, cases, expected, strict=True):
        assert_same_bits(model.predict(inputs["serving_default"]), wanted)


def test_threads_of_a_process_share_one_model(copied: Callable[[str], Path]) -> None:
    folder = copied("keras_export")
    ref = pin_model(str(folder))
    loads: list[int] = []
    start = threading.Barrier(6)

    def ask(_: int) -> Any:
        start.wait()
        return sharing.shared_model(ref, progress=lambda done, total: loads.append(done == total))

    with ThreadPoolExecutor(6) as threads:
        assert len({id(model) for model in threads.map(ask, range(6))}) == 1
    assert sum(loads) == 1
    assert sharing.shared_model(pickle.loads(pickle.dumps(ref))) is sharing.shared_model(ref, "serving_default")
    assert sharing.shared_model(ref, "serve") is not sharing.shared_model(ref)


def test_a_failed_load_is_not_kept(copied: Callable[[str], Path]) -> None:
    folder = copied("several_signatures")
    graph = folder / "saved_model.pb"
    whole, times = graph.read_bytes(), graph.stat()
    ref = pin_model(str(folder), StoreOptions(change_times=False))
    graph.write_bytes(b"\xff" * len(whole))
    os.utime(graph, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(CorruptModel):
        sharing.shared_model(ref)
    graph.write_bytes(whole)
    os.utime(graph, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert sharing.shared_model(ref).parameters == 10


def test_pinning(exported: Export) -> None:
    folder, _ = exported("vocabulary")
    ref = pin_model(f"{folder}//")
    assert (ref.uri, ref.format) == (str(folder), "saved_model")
    below = [o.uri.removeprefix(f"{folder}/") for o in ref.objects]
    assert below == [
        "assets/words.txt",
        "fingerprint.pb",
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    ]
    assert pickle.loads(pickle.dumps(ref)) == ref
    assert load_model(f"file://{folder}").ref.uri == f"file://{folder}"


def test_what_else_lies_in_the_folder_is_not_the_models(copied: Callable[[str], Path]) -> None:
    folder = copied("keras_export")
    before = pin_model(str(folder))
    (folder / "notes.txt").write_text("x")
    (folder / "2").mkdir()
    (folder / "2" / "saved_model.pb").write_text("x")
    assert pin_model(str(folder)) == before


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models/clasifier", "no model at .*clasifier.*next to it: classifier"),
        ("nowhere/at/all", "no model at .*nowhere/at/all.*nothing in"),
        ("models/classifier", r"folder above models.*Found: 2/, 1/\..*Name one of them, e.g. .*classifier/2"),
        ("models/classifier/1/variables", "no SavedModel.*Found: variables.index"),
        ("models/fake.keras", "not a `.keras` file.*Found: a file of 5 bytes"),
        ("models/classifier/1/saved_model.pb", "not a `.keras` file.*name the folder"),
        ("models/empty.keras", "Found: a file of 0 bytes"),
    ],
)
def test_what_is_no_model_is_told(tmp_path: Path, uri: str, message: str) -> None:
    for version in "12":
        folder = tmp_path / "models" / "classifier" / version
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"")
        (folder / "variables" / "variables.index").write_bytes(b"")
    (tmp_path / "models" / "fake.keras").write_bytes(b"hello")
    (tmp_path / "models" / "empty.keras").write_bytes(b"")
    with pytest.raises(NotAModel, match=message):
        pin_model(f"{tmp_path}/{uri}")


def test_the_digest_is_of_the_content_and_place() -> None:
    def ref(uri: str, crc: int | None, version: str) -> ModelRef:
        return ModelRef(uri, "saved_model", (ObjectRef(f"{uri}/saved_model.pb", 3, version, crc),), StoreOptions())

    assert ref("gs://a/m", 7, "1").digest == ref("gs://b/n", 7, "2").digest
    assert len({ref("gs://a/m", crc, v).digest for crc, v in ((7, "1"), (8, "1"), (None, "1"), (None, "2"))}) == 4
