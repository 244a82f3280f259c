from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import ModelError, SignatureNotFound
from headrace.transforms.models.keras_model import build as keras_build
from headrace.transforms.models.keras_model import fill as keras_fill
from headrace.transforms.models.keras_model import model as keras_model
from headrace.transforms.models.keras_model.model import describe, load
from headrace.transforms.models.streaming.tensor_stream import StreamOptions, TensorStream
from tests.support import keras_zoo
from tests.support.keras_saved import assert_same_bits, by_name, loaded, repacked, replacing, saved, stored
from tests.support.warm import python


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
    fill = keras_fill.fill

    def keeping(model: keras_build.Built, *arguments: Any) -> None:
        built.append(model)
        fill(model, *arguments)

    monkeypatch.setattr(keras_model, "fill", keeping)
    store, ref = stored(trained.read_bytes())
    model = load(store, ref)
    found = [np.from_dlpack(v.value.read_value()).ctypes.data for v in built[0].model.weights]
    assert sorted(found) == sorted(addresses)
    assert model.parameters == sum(np.prod(v.shape) for v in built[0].model.weights)


def test_the_index_takes_few_round_trips(trained: Path) -> None:
    store, ref = stored(trained.read_bytes())
    with keras_model._open(store, ref) as saved_model:
        assert isinstance(saved_model, keras_model._Saved)
        saved_model.weights.guess()
        assert saved_model.weights.round_trips <= 4
        saved_model.plan(keras_build.build(saved_model.recipe))
        assert saved_model.weights.round_trips <= 4


def test_no_random_weights_are_computed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a random weight was computed")

    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", called)
    with pytest.raises(AssertionError, match="random weight"):
        keras.layers.Dense(2).build((None, 2))
    assert loaded(trained.read_bytes()).parameters


def test_the_model_is_traced_while_its_weights_come(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    take, trace = TensorStream.take, keras_model._trace

    def noting(event: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            events.append(event)
            return call(*args)

        return noted

    monkeypatch.setattr(TensorStream, "take", noting("take", take))
    monkeypatch.setattr(keras_model, "_trace", noting("trace", trace))
    model = load(*stored(trained.read_bytes()))
    assert events == ["trace", *["take"] * 12]
    assert model.predict({name: np.ones((2, 1024), np.float32) for name in model.inputs})


def test_a_layer_that_looks_at_its_weights_is_traced_after_them(tmp_path: Path) -> None:
    import keras

    @keras.saving.register_keras_serializable("tests")
    class Peeking(keras.layers.Dense):
        def call(self, x: Any) -> Any:
            import tensorflow as tf

            with tf.init_scope():
                largest = float(np.abs(self.kernel.value.numpy()).max())
            return super().call(x) / largest

    @keras.saving.register_keras_serializable("tests")
    class Remembering(keras.layers.Dense):
        largest = 1.0

        def load_own_variables(self, store: Any) -> None:
            super().load_own_variables(store)
            self.largest = float(np.abs(self.kernel.value.numpy()).max())

        def call(self, x: Any) -> Any:
            return super().call(x) / self.largest

    batch = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    for kind in (Peeking, Remembering):
        model = loaded(saved(keras.Sequential([keras.Input((4,), name="x"), kind(2), keras.layers.Dense(2)]), tmp_path))
        native = keras.saving.load_model(tmp_path / "model.keras")
        assert_same_bits(model.predict({"x": batch}), by_name(native.predict_on_batch(batch)))


def test_a_long_sequential_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    layers = [keras.layers.Dense(2) for _ in range(20)]
    data = saved(keras.Sequential([keras.Input((2,)), *layers]), tmp_path)
    builds: list[Any] = []
    build = keras.Sequential.build

    def counting(*args: Any) -> None:
        builds.append(args)
        build(*args)

    monkeypatch.setattr(keras.Sequential, "build", counting)
    keras.saving.load_model(tmp_path / "model.keras")
    assert len(builds) >= 20
    builds.clear()
    loaded(data)
    assert len(builds) == 1


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


@pytest.mark.timeout(240)
def test_memory_and_time_stay_near_the_weights(tmp_path: Path) -> None:
    """200 MiB of weights: no second copy of them, and no random ones before them."""
    code = textwrap.dedent("""
        import json, resource, sys, threading, time
        import numpy as np, keras, h5py, tensorflow as tf
        from headrace.transforms.models.keras_model.model import load
        from headrace.transforms.models.pin import pin_model
        from headrace.transforms.storage import open_store

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
