"""Loads under random faults on a real HTTP path: each ends in the right model, to the bit, or in an error of our own.

Small models lie in a bucket (the emulator), in front of which stands a server that, drawn from a seeded generator, refuses
(503, 429), resets or ends in mid-body, stands still, flips a bit, or lets the whole model be replaced by another of
the same shapes in the midst of a load. Forty loads in the normal run; `make faults` runs a thousand.

Bits are flipped in the bytes of objects alone, not in listings and metadata, which only TLS covers.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import CorruptModel, HeadraceError, ObjectChanged, StorageError
from headrace.transforms.models.formats import format_of
from headrace.transforms.models.pin import pin_model
from headrace.transforms.models.streaming.tensor_stream import StreamOptions
from headrace.transforms.storage.gcs import GcsStore
from headrace.transforms.storage.retries import RetryPolicy
from tests.support.fault_table import tell
from tests.support.front import Front, Gate, served
from tests.transforms.models.saved_model.test_saved_model import assert_same_bits, in_ram

LOADS = int(os.environ.get("HEADRACE_FAULT_LOADS", "40"))
SEED = int(os.environ.get("HEADRACE_FAULT_SEED", "20261123"))
# A load takes well under a second, and its retries are bounded to about five.
HUNG_S = 60.0
POLICY = RetryPolicy(attempts=4, first_wait_s=0.01, longest_wait_s=0.05, longest_retry_after_s=0.1, read_timeout_s=0.3)
STREAM = StreamOptions(connections=6, piece_bytes=16 << 10)
KINDS = ("503", "429", "reset", "truncated", "stall", "flip", "changed")
TOLD = "503, 429, reset, truncated body, stalled body, flipped bit, model replaced meanwhile"


def saved(folder: Path, seed: int) -> None:
    """Variables, strings, and tables from the graph, from an asset and from the checkpoint."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    words = folder.parent / "words.txt"
    words.write_text("".join(f"{word}\n" for word in rng.permutation(["red", "green", "blau", "größe"])))
    module = tf.Module()
    module.matrices = [tf.Variable(rng.normal(size=(4, 90, 90)).astype(np.float32)) for _ in range(3)]
    module.names = tf.Variable([f"{seed}-{i}" for i in range(90)])
    rows = tf.lookup.TextFileIndex
    lines = tf.lookup.TextFileInitializer(str(words), tf.string, rows.WHOLE_LINE, tf.int64, rows.LINE_NUMBER)
    module.asset = tf.lookup.StaticHashTable(lines, -1)
    pairs = tf.lookup.KeyValueTensorInitializer(["red", "blau"], tf.constant([seed, 7], tf.int64))
    module.fixed = tf.lookup.StaticHashTable(pairs, -1)
    module.memory = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, -1.0)
    module.memory.insert(["red", "green"], rng.normal(size=2).astype(np.float32))

    def call(x: Any, word: Any) -> Any:
        y = x
        for matrix in module.matrices:
            y = tf.reduce_mean(tf.einsum("bi,kij->bkj", y, matrix), 1)
        best = tf.gather(module.names, tf.argmax(y, 1))
        tables = (module.asset.lookup(word), module.fixed.lookup(word))
        return {"y": y, "best": best, "ids": tf.stack(tables), "score": module.memory.lookup(word)}

    concrete = tf.function(call).get_concrete_function(
        tf.TensorSpec([None, 90], tf.float32, "x"), tf.TensorSpec([None], tf.string, "word")
    )
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=150_000)
    options = tf.saved_model.SaveOptions(experimental_sharding_callback=policy)
    tf.saved_model.save(module, str(folder), signatures=concrete, options=options)


def saved_v1(folder: Path, seed: int) -> None:
    import tensorflow as tf

    from tests.support import zoo_v1

    v1 = tf.compat.v1
    rng = np.random.default_rng(seed)
    with tf.Graph().as_default():
        y = x = v1.placeholder(tf.float32, [None, 90], name="x")
        for i in range(4):
            value = rng.normal(size=(90, 90)).astype(np.float32)
            y = y @ v1.get_variable(f"w{i}", initializer=value, use_resource=i % 2 == 0)
        zoo_v1.save(folder, {"serving_default": ({"x": x}, {"y": y})})


def _keras(width: int, path: Path, seed: int) -> None:
    import keras

    keras.utils.set_random_seed(seed)
    layers = [keras.Input((width,), name="x"), *(keras.layers.Dense(width, activation="tanh") for _ in range(2))]
    keras.Sequential([*layers, keras.layers.Dense(3)]).save(path)


def keras_small(path: Path, seed: int) -> None:
    _keras(90, path, seed)


def keras_large(path: Path, seed: int) -> None:
    """2 MiB of weights, more than are read whole."""
    _keras(512, path, seed)


MODELS: dict[str, tuple[Callable[[Path, int], None], str]] = {
    "saved": (saved, ""),
    "saved_v1": (saved_v1, ""),
    "keras_small": (keras_small, ".keras"),
    "keras_large": (keras_large, ".keras"),
}


@dataclass
class Variant:
    """One export of a model, by the object names below the bucket, and what it predicts."""

    files: dict[str, bytes]
    expected: dict[str, Any]


def inputs_of(model: str) -> dict[str, Any]:
    width = 512 if model == "keras_large" else 90
    inputs: dict[str, Any] = {"x": np.random.default_rng(5).normal(size=(3, width)).astype(np.float32)}
    if model == "saved":
        inputs["word"] = np.array(["red", "größe", "new"], object)
    return inputs


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Variant]]:
    """Two of each model, of the same names and shapes; what they predict is asked of the native loaders."""
    import keras
    import tensorflow as tf

    made: dict[str, list[Variant]] = {}
    for name, (export, ending) in MODELS.items():
        made[name] = []
        for seed in (1, 2):
            root = tmp_path_factory.mktemp(f"{name}{seed}")
            path = root / f"model{ending}"
            export(path, seed)
            inputs = {k: tf.constant(v) for k, v in inputs_of(name).items()}
            if ending:
                model = keras.saving.load_model(path)
                expected = {"output_0": tf.function(lambda x, model=model: model(x, training=False))(inputs["x"])}
            else:
                expected = tf.saved_model.load(str(path)).signatures["serving_default"](**inputs)
            files = [path] if ending else [p for p in path.rglob("*") if p.is_file()]
            made[name].append(
                Variant(
                    {f"{name}/{p.relative_to(root)}": p.read_bytes() for p in files},
                    {k: v.numpy() for k, v in expected.items()},
                )
            )
    return made


@dataclass
class Chaos:
    """A fault for a `Front`: each request, while `on`, fails with probability `rate` in a way drawn from `rng`."""

    rng: random.Random
    replace: Callable[[], None] = lambda: None
    rate: float = 0.0
    kinds: tuple[str, ...] = KINDS
    on: bool = False
    met: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    def __call__(self, gate: Gate) -> bool:
        media = "alt=media" in gate.path or "/download/" in gate.path
        with self.lock:
            if not self.on or self.rng.random() >= (self.rate if media else self.rate / 4):
                return False
            kind, part = self.rng.choice(self.kinds), self.rng.random()
            if not media and kind in ("stall", "flip"):
                kind = "503"
            self.met[kind] += 1
            if kind == "changed":
                if self.met["changed in this load"] == 0:
                    self.replace()
                self.met["changed in this load"] = 1
                return False
        if kind in ("503", "429"):
            gate.answer(int(kind), {"Retry-After": "0"}, b"not now")
            return True
        status, headers, body = gate.ask()
        if kind == "flip" and status in (200, 206) and body:
            at = int(part * len(body))
            gate.answer(status, headers, body[:at] + bytes([body[at] ^ 1 << int(part * 1000) % 8]) + body[at + 1 :])
            return True
        gate.answer(status, headers, body, only=int(part * len(body)))
        if kind == "stall":
            time.sleep(2 * POLICY.read_timeout_s)
        if kind == "reset":
            gate.reset()
        gate.close_connection = True
        return True


@pytest.fixture
def chaos(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chaos]:
    for front in served(Front(emulator)):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        fault = Chaos(random.Random(SEED))
        front.faults.append(fault)
        yield fault


class Bucket:
    """Puts objects there past the faults."""

    def __init__(self, uri: str, emulator: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        self.uri = uri
        client = storage.Client(
            project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": emulator}
        )
        self._bucket = client.bucket(uri.removeprefix("gs://"))

    def put(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            self._bucket.blob(name).upload_from_string(data)


def test_each_load_ends_in_the_right_model_or_a_clear_error(
    bucket: str, emulator: str, chaos: Chaos, variants: dict[str, list[Variant]]
) -> None:
    place = Bucket(bucket, emulator)
    ended: Counter[str] = Counter()

    def load(name: str, ending: str, without: set[str]) -> Any:
        # Faults fall upon the pinning too, but for those that its own store would wait for by the minute.
        ref = pin_model(f"{bucket}/{name}/model{ending}")
        chaos.kinds = tuple(kind for kind in KINDS if kind not in without)
        model = format_of(ref).reader.load(GcsStore(policy=POLICY), ref, "serving_default", STREAM)
        return model.predict(inputs_of(name))

    with ThreadPoolExecutor(1) as runner:
        for i in range(LOADS):
            name = list(MODELS)[i % len(MODELS)]
            first, second = chaos.rng.sample(variants[name], 2)
            place.put(first.files)
            chaos.replace = lambda files=second.files: place.put(files)  # type: ignore[misc]
            chaos.kinds, chaos.rate = ("503", "429", "reset", "truncated"), chaos.rng.choice((0.02, 0.1, 0.3))
            chaos.met["changed in this load"] = 0
            chaos.on = True
            # Of many requests one would nearly always meet a change.
            without = {"changed"} if i // len(MODELS) % 2 else set()
            waiting = runner.submit(load, name, MODELS[name][1], without)
            try:
                found = waiting.result(HUNG_S)
            except HeadraceError as error:
                ended[f"{name}: {type(error).__name__}"] += 1
            except TimeoutError:
                pytest.fail(f"load {i} of {name} hangs, with seed {SEED}")
            else:
                # A load that had read all before the change is the first; none is a mixture, and none the second.
                assert_same_bits(found, first.expected)
                ended[f"{name}: right"] += 1
            finally:
                chaos.on = False
    right = sum(count for how, count in ended.items() if how.endswith(": right"))
    tell(
        f"a load of a model; 2, 10 or 30 % of the requests drew one of: {TOLD}",
        LOADS,
        LOADS,
        sum(chaos.met[kind] for kind in KINDS),
        f"{right:,} right to the bit, {LOADS - right:,} an error that names the object; none wrong, none hung",
    )
    print(f"\n{LOADS} loads: {dict(sorted(ended.items()))}; faults: {dict(sorted(chaos.met.items()))}")
    assert sum(ended.values()) == LOADS
    assert all(ended[f"{name}: right"] for name in MODELS)
    assert chaos.met.total() > LOADS
    assert in_ram() == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-stream")]


@pytest.mark.parametrize("name", MODELS)
def test_each_kind_of_fault_alone(
    bucket: str, emulator: str, chaos: Chaos, variants: dict[str, list[Variant]], name: str
) -> None:
    """What passes is passed over; what does not is named."""
    _, ending = MODELS[name]
    place = Bucket(bucket, emulator)
    first, second = variants[name]
    for kind in KINDS:
        place.put(first.files)
        ref = pin_model(f"{bucket}/{name}/model{ending}")
        chaos.replace = lambda: place.put(second.files)
        permanent = kind in ("flip", "changed")
        chaos.kinds, chaos.rate, chaos.on = (kind,), 1.0 if permanent else 0.3, True
        chaos.met["changed in this load"] = 0
        try:
            if permanent:
                with pytest.raises((CorruptModel, ObjectChanged) if kind == "flip" else StorageError):
                    format_of(ref).reader.load(GcsStore(policy=POLICY), ref, "serving_default", STREAM)
            else:
                store = GcsStore(policy=RetryPolicy(30, 0.01, 0.05, 0.1, read_timeout_s=0.3))
                model = format_of(ref).reader.load(store, ref, "serving_default", STREAM)
                assert_same_bits(model.predict(inputs_of(name)), first.expected)
        finally:
            chaos.on = False
