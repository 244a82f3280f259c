from __future__ import annotations

import io
import itertools
import json
import os
import random
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import keras_zoo
from transforms.errors import CorruptModel, ModelError, NotAModel, SignatureNotFound, UnsupportedModel
from transforms.models import keras_archive, keras_private
from transforms.models.keras_archive import describe, load
from transforms.models.model import Model
from transforms.models.ref import ModelRef
from transforms.models.stream import StreamOptions, TensorStream
from transforms.storage import Store, open_store
from transforms.storage.memory import put

_names = itertools.count()


def stored(data: bytes) -> tuple[Store, ModelRef]:
    uri = f"memory://keras/{next(_names)}.keras"
    ref = put(uri, data)
    return open_store(uri), ModelRef(uri, "keras", (ref,))


def loaded(data: bytes) -> Model:
    return load(*stored(data))


def saved(model: Any, folder: Path) -> bytes:
    model.save(path := folder / "model.keras")
    return path.read_bytes()


def repacked(data: bytes, change: Callable[[dict[str, bytes]], object], method: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with its members changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def replacing(name: str, content: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda members: members.update({name: content})


def unchanged(members: dict[str, bytes]) -> None:
    pass


def by_name(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, Mapping):
        return {name: np.asarray(value) for name, value in outputs.items()}
    several = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return {f"output_{i}": np.asarray(value) for i, value in enumerate(several)}


def assert_same_bits(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert found[name].tobytes() == value.tobytes(), name


def feed(model: Model, batch: Any) -> dict[str, Any]:
    import tensorflow as tf

    return dict(zip(model.inputs, tf.nest.flatten(batch), strict=True))


@pytest.fixture(scope="module", params=keras_zoo.ZOO, ids=lambda make: make.__name__)
def exhibit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    shown = request.param()
    path = tmp_path_factory.mktemp("zoo") / "model.keras"
    shown.model.save(path)
    return path, shown.batch


class TestZoo:
    """Each model of the zoo, saved once, against Keras' own loading."""

    @pytest.mark.parametrize("place", ["resident", "streamed", "deflated"])
    def test_predicts_to_the_bit_as_keras_does(
        self, exhibit: tuple[Path, Any], place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import keras

        path, batch = exhibit
        data = path.read_bytes()
        if place == "streamed":
            monkeypatch.setattr(keras_archive, "WHOLE_BYTES", 0)
        if place == "deflated":
            data = repacked(data, unchanged, zipfile.ZIP_DEFLATED)
        model = loaded(data)
        expected = by_name(keras.saving.load_model(path).predict_on_batch(batch))
        assert_same_bits(model.predict(feed(model, batch)), expected)

    def test_is_described_without_its_weights_as_it_is_loaded(
        self, exhibit: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import keras

        monkeypatch.setattr(keras_archive, "WHOLE_BYTES", 0)
        store, ref = stored(exhibit[0].read_bytes())
        spec, model = describe(store, ref), load(store, ref)
        signature = spec.signatures["serving_default"]
        assert spec.format == "keras"
        assert (dict(signature.inputs), dict(signature.outputs)) == (model.inputs, model.outputs)
        assert (spec.parameters, spec.nbytes) == (model.parameters, model.nbytes)
        native = keras.saving.load_model(exhibit[0], compile=False)
        assert spec.parameters == sum(int(np.prod(v.shape)) for v in native.weights)

    def test_keras_asks_for_what_was_planned_and_nothing_else(
        self, exhibit: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, ref = stored(exhibit[0].read_bytes())
        with keras_archive._open(store, ref) as opened:
            planned = {dataset.path for dataset in opened.plan(keras_private.build(opened.config(), ref.uri))}
            guessed = {dataset.path for dataset in opened.guess()}
        asked: set[str] = set()
        get = keras_private.Weights.__getitem__

        def noting(weights: keras_private.Weights, name: str) -> Any:
            asked.add(f"{weights.group}/{name}")
            return get(weights, name)

        monkeypatch.setattr(keras_private.Weights, "__getitem__", noting)
        load(store, ref)
        assert asked == planned
        assert {path for path in guessed - planned if "loss_tracker" not in path} == set()
        assert planned <= guessed

    def test_has_the_names_of_its_export(self, exhibit: tuple[Path, Any], tmp_path: Path) -> None:
        import keras
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

        native = keras.saving.load_model(exhibit[0], compile=False)
        if type(native).__name__ == "Tower":
            native(exhibit[1])  # export asks for a model that was called
        native.export(str(tmp_path), verbose=False)
        definition = SavedModel.FromString((tmp_path / "saved_model.pb").read_bytes())
        signature = definition.meta_graphs[0].signature_def["serving_default"]
        model = loaded(exhibit[0].read_bytes())
        assert set(model.inputs) == set(signature.inputs)
        assert set(model.outputs) == set(signature.outputs)
        for name, spec in model.inputs.items():
            dims = [None if d.size == -1 else d.size for d in signature.inputs[name].tensor_shape.dim]
            assert list(spec.shape or ()) == dims


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return saved(keras_zoo.mlp().model, tmp_path_factory.mktemp("mlp"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MiB of weights, and twice as many bytes of Adam's state."""
    import keras

    model = keras.Sequential([keras.Input((1024,))] + [keras.layers.Dense(1024) for _ in range(6)])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((2, 1024), np.float32), np.ones((2, 1024), np.float32), verbose=0)
    path = tmp_path_factory.mktemp("trained") / "model.keras"
    model.save(path)
    return path


def test_only_what_inference_uses_is_fetched(trained: Path) -> None:
    store, ref = stored(trained.read_bytes())
    model = load(store, ref)
    assert ref.objects[0].size > 2.9 * model.nbytes
    assert model.nbytes == model.parameters * 4 == 6 * (1024 * 1024 + 1024) * 4
    metadata = 192 << 10
    assert model.nbytes < store.counters.bytes_read <= 1.02 * model.nbytes + metadata
    assert store.counters.requests < 60


def test_describing_fetches_no_weight(trained: Path) -> None:
    store, ref = stored(trained.read_bytes())
    assert describe(store, ref).nbytes == 6 * (1024 * 1024 + 1024) * 4
    assert store.counters.bytes_read < 512 << 10


def test_progress_reaches_the_end(trained: Path) -> None:
    seen: list[tuple[int, int]] = []
    store, ref = stored(trained.read_bytes())
    model = load(store, ref, "serving_default", StreamOptions(progress=lambda done, total: seen.append((done, total))))
    assert seen[-1] == (model.nbytes, model.nbytes)


def test_variables_are_the_streamed_buffers_themselves(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[int] = []
    take = TensorStream.take

    def noting(stream: Any, name: str) -> Any:
        addresses.append((array := take(stream, name)).ctypes.data)
        return array

    monkeypatch.setattr(TensorStream, "take", noting)
    built: list[Any] = []
    fill = keras_private.fill

    def keeping(model: keras_private.Built, *arguments: Any) -> None:
        built.append(model)
        fill(model, *arguments)

    monkeypatch.setattr(keras_private, "fill", keeping)
    store, ref = stored(trained.read_bytes())
    model = load(store, ref)
    found = [np.from_dlpack(v.value.read_value()).ctypes.data for v in built[0].model.weights]
    assert sorted(found) == sorted(addresses)
    assert model.parameters == sum(np.prod(v.shape) for v in built[0].model.weights)


def test_the_index_takes_few_round_trips(trained: Path) -> None:
    store, ref = stored(trained.read_bytes())
    with keras_archive._open(store, ref) as saved_model:
        saved_model.guess()
        assert saved_model.round_trips <= 6
        saved_model.plan(keras_private.build(saved_model.config(), ref.uri))
        assert saved_model.round_trips <= 6


def test_no_random_weights_are_computed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a random weight was computed")

    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", called)
    with pytest.raises(AssertionError, match="random weight"):
        keras.layers.Dense(2).build((None, 2))
    assert loaded(trained.read_bytes()).parameters


def test_layers_can_be_made_afterwards(mlp: bytes) -> None:
    import keras

    class Later(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.w = self.add_weight(shape=(shape[-1], 2), initializer="ones")

        def call(self, x: Any) -> Any:
            return keras.ops.matmul(x, self.w)

    for broken in (False, True):
        if broken:
            with pytest.raises(ModelError):
                loaded(repacked(mlp, replacing("config.json", b'{"class_name": "Nope"}')))
        else:
            loaded(mlp)
        with keras.StatelessScope():
            layer = Later()
            layer(np.ones((1, 3), np.float32))
        np.testing.assert_array_equal(layer(np.ones((1, 3), np.float32)), [[3, 3]])
        assert keras.random.uniform((2,)).shape == (2,)


def test_threads_may_load_at_once(mlp: bytes) -> None:
    batch = {"pixels": np.ones((2, 12), np.float32)}
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: loaded(mlp).predict(batch), range(8)))
    for output in outputs:
        assert_same_bits(output, outputs[0])


def test_random_states_are_usable_after_loading(tmp_path: Path) -> None:
    model = loaded(saved(keras_zoo.augmenting().model, tmp_path))
    native = model._keep[0]  # type: ignore[index]
    batch = keras_zoo.augmenting().batch
    assert not np.array_equal(native(batch, training=True), native(batch, training=True))


def test_the_batch_may_have_any_size(mlp: bytes) -> None:
    model = loaded(mlp)
    for rows in (0, 1, 33):
        assert model.predict({"pixels": np.ones((rows, 12), np.float32)})["output_0"].shape == (rows, 3)


def test_only_serving_default(mlp: bytes) -> None:
    with pytest.raises(SignatureNotFound, match="serving_default"):
        load(*stored(mlp), "predict")


class TestRefusals:
    def test_lambda(self, tmp_path: Path) -> None:
        import keras

        model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2, name="twice")])
        data = saved(model, tmp_path)
        for look in (load, describe):
            with pytest.raises(UnsupportedModel, match=r"Lambda layer 'twice'.*model\.export"):
                look(*stored(data))

    def test_unknown_class(self, tmp_path: Path) -> None:
        data = saved(keras_zoo.customized().model, tmp_path)
        code = textwrap.dedent("""
            import sys
            from transforms.errors import UnsupportedModel
            from transforms.models.keras_archive import load
            from transforms.models.ref import pin_model
            from transforms.storage import open_store
            try:
                load(open_store(sys.argv[1]), pin_model(sys.argv[1]))
            except UnsupportedModel as error:
                print(error)
        """)
        done = python(code, str(tmp_path / "model.keras"))
        assert "Scale" in done
        assert "register_keras_serializable" in done
        assert data

    def test_a_model_that_was_never_called(self, tmp_path: Path) -> None:
        import keras

        model = keras.Sequential([keras.layers.Dense(2)])
        with pytest.warns(UserWarning, match="not yet been built"):
            data = saved(model, tmp_path)
        with pytest.raises(UnsupportedModel, match="does not say what its model takes"):
            loaded(data)

    def test_assets_read_otherwise_than_by_joining(self, tmp_path: Path) -> None:
        import keras

        @keras.saving.register_keras_serializable("tests")
        class Lister(keras.layers.Layer):
            def save_assets(self, folder: str) -> None:
                Path(folder, "a.txt").write_text("a")

            def load_assets(self, folder: str) -> None:
                os.listdir(folder)

            def call(self, x: Any) -> Any:
                return x

        data = saved(keras.Sequential([keras.Input((2,)), Lister(name="lister"), keras.layers.Dense(1)]), tmp_path)
        with pytest.raises(UnsupportedModel, match=r"'lister' \(Lister\).*only a disk"):
            loaded(data)

    def test_not_a_zip(self) -> None:
        for data in (b"", b"x", b"\x89HDF\r\n\x1a\n" + bytes(3000)):
            with pytest.raises(NotAModel, match="is not a Keras archive"):
                loaded(data)

    def test_a_zip_of_something_else(self, mlp: bytes) -> None:
        with pytest.raises(NotAModel, match=r"config\.json"):
            loaded(repacked(mlp, lambda members: members.pop("config.json")))

    def test_no_weights(self, mlp: bytes) -> None:
        with pytest.raises(CorruptModel, match="has no weights"):
            loaded(repacked(mlp, lambda members: members.pop("model.weights.h5")))

    def test_config_is_not_json(self, mlp: bytes) -> None:
        for config in (b"", b"{", b"[" * 100_000, b"\xff"):
            with pytest.raises(CorruptModel, match="not JSON"):
                loaded(repacked(mlp, replacing("config.json", config)))

    def test_config_describes_no_model(self, mlp: bytes) -> None:
        for config in (b"{}", b"null", b"[1]", b'"x"', b'{"class_name": "Adam", "config": {}, "module": "keras"}'):
            with pytest.raises(ModelError, match="cannot rebuild"):
                loaded(repacked(mlp, replacing("config.json", config)))


class TestWeightsThatDoNotFit:
    def change(self, data: bytes, edit: Callable[[Any], object]) -> bytes:
        import h5py

        def change(members: dict[str, bytes]) -> None:
            buffer = io.BytesIO(members["model.weights.h5"])
            with h5py.File(buffer, "r+") as file:
                edit(file)
            members["model.weights.h5"] = buffer.getvalue()

        return repacked(data, change)

    def test_a_variable_is_missing(self, mlp: bytes) -> None:
        def drop(file: Any) -> None:
            del file["layers/dense_1/vars/1"]

        with pytest.raises(CorruptModel, match=r"do not fit its Dense"):
            loaded(self.change(mlp, drop))

    def test_a_layer_is_missing(self, mlp: bytes) -> None:
        def drop(file: Any) -> None:
            del file["layers/dense_1"]

        with pytest.raises(CorruptModel, match=r"Dense|has no value for variable"):
            loaded(self.change(mlp, drop))

    def test_a_shape_differs(self, mlp: bytes) -> None:
        def turn(file: Any) -> None:
            value = file["layers/dense_1/vars/0"][()].T.copy()
            del file["layers/dense_1/vars/0"]
            file["layers/dense_1/vars/0"] = value

        with pytest.raises(CorruptModel, match=r"do not fit its Dense"):
            loaded(self.change(mlp, turn))

    def test_a_layer_that_takes_nothing_is_named(self, tmp_path: Path) -> None:
        import keras

        @keras.saving.register_keras_serializable("tests")
        class Forgetful(keras.layers.Dense):
            def load_own_variables(self, store: Any) -> None:
                pass

        data = saved(keras.Sequential([keras.Input((2,)), Forgetful(1, name="forgetful")]), tmp_path)
        with pytest.raises(CorruptModel, match=r"no value for variable '.*forgetful/kernel'"):
            loaded(data)


class TestDamage:
    def test_truncated_at_any_length(self, mlp: bytes) -> None:
        for length in [*range(4, 200, 13), *range(200, len(mlp), 977), *range(len(mlp) - 40, len(mlp))]:
            with pytest.raises(CorruptModel, match="truncated or damaged"):
                loaded(mlp[:length])

    def test_flipped_bits_are_found(self, mlp: bytes) -> None:
        """In a small archive everything is covered by a CRC-32, save what zip itself ignores."""
        batch = {"pixels": np.ones((2, 12), np.float32)}
        expected = loaded(mlp).predict(batch)
        outcomes = {True: 0, False: 0}
        rng = random.Random(11)
        for _ in range(40):
            data = bytearray(mlp)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            try:
                model = loaded(bytes(data))
            except ModelError:
                outcomes[False] += 1
            else:
                assert_same_bits(model.predict(batch), expected)
                outcomes[True] += 1
        assert outcomes[False] > 30, outcomes

    def test_flipped_bits_of_the_streamed_index_never_crash(self, mlp: bytes, tmp_path: Path) -> None:
        (tmp_path / "model.keras").write_bytes(mlp)
        python(
            "import sys; from tests.test_keras_archive import flip; flip(open(sys.argv[1], 'rb').read(), 40)",
            str(tmp_path / "model.keras"),
        )

    def test_a_member_beyond_the_archive(self, mlp: bytes) -> None:
        data = bytearray(mlp)
        local = data.index(b"PK\x03\x04", data.index(b"config.json"))
        data[local + 28 : local + 30] = b"\xff\xff"
        with pytest.raises(CorruptModel, match="reaches beyond it"):
            loaded(bytes(data))

    def test_names_that_leave_the_archive(self, mlp: bytes) -> None:
        for name in ("/etc/passwd", "../up", "a/../../b", "a\\b"):
            with pytest.raises(CorruptModel, match="leaves it"):
                loaded(repacked(mlp, replacing(name, b"x")))

    def test_a_name_twice(self, mlp: bytes) -> None:
        out = io.BytesIO(mlp)
        with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("config.json", b"{}")
        with pytest.raises(CorruptModel, match="two members"):
            loaded(out.getvalue())

    def test_encrypted(self, mlp: bytes) -> None:
        data = bytearray(mlp)
        for at in (i for i in range(len(data) - 4) if data[i : i + 4] == b"PK\x01\x02"):
            data[at + 8] |= 1
        with pytest.raises(UnsupportedModel, match="encrypted"):
            loaded(bytes(data))

    def test_another_compression(self, mlp: bytes) -> None:
        with pytest.raises(UnsupportedModel, match="zip method 12"):
            loaded(repacked(mlp, unchanged, zipfile.ZIP_BZIP2))

    def test_bombs(self, mlp: bytes) -> None:
        for name in ("config.json", "model.weights.h5"):
            bomb = repacked(mlp, replacing(name, bytes(300 << 20)), zipfile.ZIP_DEFLATED)
            with pytest.raises(CorruptModel, match=r"too large|expands beyond measure"):
                loaded(bomb)

    def test_a_lie_about_the_size(self, mlp: bytes) -> None:
        data = bytearray(repacked(mlp, unchanged, zipfile.ZIP_DEFLATED))
        for size in (10, 5000, 1 << 31):
            at = next(
                i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02" and data[i + 46 : i + 52] == b"config"
            )
            data[at + 24 : at + 28] = size.to_bytes(4, "little")
            with pytest.raises(CorruptModel, match=r"damaged member 'config\.json'|too large"):
                loaded(bytes(data))


def flip(data: bytes, times: int) -> None:
    """Loads the archive streamed, with a bit of its index wrong: a `ModelError`, or a model that predicts."""
    keras_archive.WHOLE_BYTES = 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.getinfo("model.weights.h5").header_offset
    rng = random.Random(5)
    for _ in range(times):
        damaged = bytearray(data)
        damaged[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        try:
            loaded(bytes(damaged)).predict({"pixels": np.ones((2, 12), np.float32)})
        except ModelError:
            continue


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.timeout(240)
def test_memory_and_time_stay_near_the_weights(tmp_path: Path) -> None:
    """200 MiB of weights: no second copy of them, and no random ones before them."""
    code = textwrap.dedent("""
        import json, resource, sys, threading, time
        import numpy as np, keras, h5py, tensorflow as tf
        from transforms.models.keras_archive import load
        from transforms.models.ref import pin_model
        from transforms.storage import open_store

        def now():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()

        small, large = sys.argv[1:]
        for _ in range(2):
            load(open_store(small), pin_model(small)).predict({"x": np.ones((1, 8), np.float32)})
        idle, peak, done = now(), 0, threading.Event()

        def watch():
            global peak
            while not done.wait(0.002):
                peak = max(peak, now())

        watcher = threading.Thread(target=watch)
        watcher.start()
        model = load(open_store(large), pin_model(large))
        model.predict({"x": np.ones((1, 2560), np.float32)})
        done.set()
        watcher.join()
        print(json.dumps({"grown": peak - idle, "weights": model.nbytes}))
    """)
    python(
        textwrap.dedent("""
        import sys, keras
        for path, width, depth in ((sys.argv[1], 8, 2), (sys.argv[2], 2560, 8)):
            layers = [keras.layers.Dense(width, kernel_initializer="zeros") for _ in range(depth)]
            keras.Sequential([keras.Input((width,), name="x"), *layers]).save(path)
        """),
        str(tmp_path / "small.keras"),
        str(tmp_path / "large.keras"),
    )
    measured = json.loads(python(code, str(tmp_path / "small.keras"), str(tmp_path / "large.keras")))
    assert measured["weights"] == 8 * (2560 * 2560 + 2560) * 4
    assert measured["grown"] <= 1.15 * measured["weights"] + (64 << 20), measured


class TestPrivateNames:
    """One for each name in keras_private's docstring: it is there, and means what it is used for."""

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
