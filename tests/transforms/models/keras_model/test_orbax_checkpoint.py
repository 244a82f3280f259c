"""Orbax checkpoints of Keras models: to the bit what the model gives that was trained, from every store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace
from headrace.transforms.errors import CorruptModel, NotAModel, UnsupportedModel
from headrace.transforms.models.formats import format_of
from headrace.transforms.models.keras_model.variable_paths import matched
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.pin import pin_model
from headrace.transforms.models.streaming.tensor_stream import StreamOptions
from headrace.transforms.storage import open_store
from tests.support import jobs, orbax_checkpoints
from tests.support.orbax_checkpoints import Form
from tests.transforms.models.saved_model.test_models_over_http import put_folder
from tests.transforms.storage.test_http import WebServer, server

__all__ = ["server"]

ROWS = np.random.default_rng(5).random((7, 6), np.float32)
TEXTS = np.array(["good film", "bad", "", "a film unknown"], object)


def native(model: Any, rows: Any) -> Any:
    """What the model gives, traced: the kernels of eager calls differ in the last bits."""
    import tensorflow as tf

    return tf.function(lambda x: model(x, training=False))(tf.constant(rows)).numpy()


def saved(name: str) -> Any:
    """The model that was trained, from the `.keras` file which was saved with its last checkpoint."""
    import keras

    return keras.models.load_model(orbax_checkpoints.real(name).with_suffix(".keras"))


def output(model: Any, rows: Any) -> Any:
    (found,) = model.predict({next(iter(model.inputs)): rows}).values()
    return found


def same_bits(found: Any, expected: Any) -> bool:
    return bool(
        found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()
    )


def test_what_the_callback_wrote() -> None:
    model = load_model(str(orbax_checkpoints.real("table")))
    assert model.format == "keras_orbax"
    assert same_bits(output(model, ROWS), native(saved("table"), ROWS))
    texts = load_model(str(orbax_checkpoints.real("texts")))
    assert same_bits(output(texts, TEXTS[:, None]), native(saved("texts"), TEXTS.astype(str)[:, None]))


def test_the_newest_step_or_the_one_that_is_named() -> None:
    folder = orbax_checkpoints.real("table")
    newest, older = describe_model(str(folder)), describe_model(f"{folder}/9/")
    assert (newest.parts, older.parts) == ({"step": "10"}, {"step": "9"})
    one = load_model(f"{folder}/9")
    assert not np.array_equal(output(one, ROWS), output(load_model(str(folder)), ROWS))
    assert (newest.parameters, newest.nbytes) == (one.parameters, one.nbytes)
    assert newest.signatures["serving_default"].outputs == one.outputs
    assert pin_model(str(folder)).digest != pin_model(f"{folder}/9").digest


def test_a_job_from_a_bucket(bucket: str, tmp_path: Path) -> None:
    folder = orbax_checkpoints.real("table")
    for path in folder.rglob("*"):
        if path.is_file():
            jobs.put(f"{bucket}/table/{path.relative_to(folder)}", path.read_bytes())
    pq.write_table(pa.table({"id": range(7), "x": list(ROWS)}), tmp_path / "in.parquet")
    headrace.run(model=f"{bucket}/table", input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"), keep=["id"])
    assert same_bits(jobs.scores(jobs.read_output(str(tmp_path / "out"))), native(saved("table"), ROWS))


def test_a_web_server_which_lists_no_folder(server: WebServer) -> None:
    for name, rows in (("table", ROWS), ("texts", TEXTS[:, None])):
        folder = orbax_checkpoints.real(name)
        uri = put_folder(server, folder, f"/{name}")
        found = load_model(f"{uri}/10")
        assert same_bits(output(found, rows), output(load_model(str(folder)), rows))
        with pytest.raises(NotAModel, match="There is no model at"):
            pin_model(uri)


def test_nothing_of_the_optimizer_is_read(tmp_path: Path) -> None:
    """Its state is in the same database; here in arrays too large for the pieces that are joined."""
    model = _model(units=200)
    orbax_checkpoints.save(model, tmp_path / "m/3")
    ref = pin_model(str(tmp_path / "m"))
    assert sum(one.size for one in ref.objects) > 3 * 4 * model.count_params() * 0.9
    store = open_store(ref.uri)
    format_of(ref).reader.load(store, ref, "serving_default", StreamOptions())
    assert store.counters.bytes_read < 1.1 * 4 * model.count_params() + 100_000


@pytest.mark.parametrize(
    "form", [Form(zarr3=False, parts=2), Form(ocdbt=False), Form(ocdbt=False, zarr3=False, packed=False), Form(parts=3)]
)
def test_other_forms(tmp_path: Path, form: Form) -> None:
    model = _model()
    orbax_checkpoints.save(model, tmp_path / "m/0", form)
    assert same_bits(output(load_model(str(tmp_path / "m")), ROWS), native(model, ROWS))


def test_what_layers_learn_besides_weights(tmp_path: Path) -> None:
    """`keras.models.load_model` leaves the mean and the variance of a Normalization at 0 and 1."""
    import keras

    learned = keras.layers.Normalization()
    learned.adapt(3 * ROWS + 1)
    model = keras.Sequential([keras.Input((6,)), learned, keras.layers.Dense(2, dtype="bfloat16")])
    orbax_checkpoints.save(model, tmp_path / "m")
    assert same_bits(output(load_model(str(tmp_path / "m")), ROWS), native(model, ROWS))
    counted = keras.layers.TextVectorization(output_mode="tf_idf", name="counted")
    counted.adapt(["good film", "bad film"])
    orbax_checkpoints.save(keras.Sequential([keras.Input((1,), dtype="string"), counted]), tmp_path / "t")
    with pytest.raises(UnsupportedModel, match="no weights of the words for its"):
        load_model(str(tmp_path / "t"))


class TestPaths:
    """Of a variable in the checkpoint, which has fewer scopes than lead to it, or others' numbers."""

    @pytest.mark.parametrize(
        ("full", "saved"),
        [
            (["m/dense/kernel", "m/dense/bias"], ["dense/kernel", "dense/bias"]),
            (["m/a/dense/kernel", "m/b/dense/kernel"], ["a/dense/kernel", "m/b/dense/kernel"]),
            (["m/dense/kernel", "m/a/dense/kernel"], ["dense/kernel", "a/dense/kernel"]),
            (["m/own/dense_3/kernel", "m/dense/kernel"], ["own/dense/kernel", "dense/kernel"]),
            (["m/own/gru_7/kernel", "m/own/gru_7/bias"], ["m/own/gru_2/kernel", "m/own/gru_2/bias"]),
            (["m/scale"], ["scale"]),
        ],
    )
    def test_found(self, full: list[str], saved: list[str]) -> None:
        found = matched({i: tuple(one.split("/")) for i, one in enumerate(full)}, self._split(saved), "the folder")
        assert [found[i] for i in range(len(full))] == self._split(saved)

    def test_not_there(self) -> None:
        assert matched({1: ("m", "other", "kernel")}, self._split(["dense/kernel", "other/bias"]), "x") == {}

    @pytest.mark.parametrize("saved", [["dense/kernel", "m/dense/kernel"], ["own/d_1/kernel", "own/d_2/kernel"]])
    def test_not_certain(self, saved: list[str]) -> None:
        full = {1: ("m", "a", "dense", "kernel"), 2: ("m", "own", "d_5", "kernel"), 3: ("m", "own", "d_6", "kernel")}
        with pytest.raises(UnsupportedModel, match="do not show which array belongs to which variable"):
            matched(full, self._split(saved), "the folder")

    @staticmethod
    def _split(paths: list[str]) -> list[tuple[str, ...]]:
        return [tuple(path.split("/")) for path in paths]

    def test_models_in_models(self, tmp_path: Path) -> None:
        """Each with a layer of the same name, and parts that layers make for themselves."""
        import keras

        def part(name: str) -> Any:
            return keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, name="dense")], name=name)

        x = keras.Input((6,))
        y = keras.layers.Dense(6, name="dense")(part("b")(part("a")(x)))
        y = keras.layers.Reshape((3, 2))(y)
        y = keras.layers.MultiHeadAttention(2, 3, name="mha")(y, y)
        y = keras.layers.Bidirectional(keras.layers.LSTM(3))(y)
        model = keras.Model(x, y)
        orbax_checkpoints.save(model, tmp_path / "m")
        assert same_bits(output(load_model(str(tmp_path / "m")), ROWS), native(model, ROWS))


class TestRefused:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(orbax_checkpoints.real("table"), tmp_path / "m"))

    def test_weights_alone(self) -> None:
        with pytest.raises(UnsupportedModel, match=r"holds weights alone(.|\n)*load_weights"):
            describe_model(str(orbax_checkpoints.real("weights_only")))

    def test_a_step_that_was_not_finished(self, folder: Path) -> None:
        self._begun(folder / "10")
        assert describe_model(str(folder)).parts == {"step": "9"}
        with pytest.raises(CorruptModel, match=r"/10 was not finished"):
            pin_model(f"{folder}/10")
        self._begun(folder / "9")
        with pytest.raises(NotAModel, match=r"no checkpoint that was finished(.|\n)*10, 9"):
            pin_model(str(folder))

    def _begun(self, step: Path) -> None:
        described = json.loads((step / "_CHECKPOINT_METADATA").read_text())
        (step / "_CHECKPOINT_METADATA").write_text(json.dumps({**described, "commit_timestamp_nsecs": None}))

    def test_code_in_the_configuration(self, tmp_path: Path) -> None:
        import keras

        model = keras.Sequential([keras.Input((6,)), keras.layers.Lambda(lambda x: x + 1), keras.layers.Dense(1)])
        orbax_checkpoints.save(model, tmp_path / "m")
        with pytest.raises(UnsupportedModel, match="unsafe_model"):
            describe_model(str(tmp_path / "m"))
        found = load_model(str(tmp_path / "m"), unsafe=True)
        assert same_bits(output(found, ROWS), native(model, ROWS))

    def test_a_configuration_of_another_model(self, tmp_path: Path) -> None:
        orbax_checkpoints.save(_model(), tmp_path / "m")
        for model, match in (
            (_model(units=41), "do not fit its variable"),
            (_model(name="one"), "no value for variable"),
        ):
            folder = tmp_path / match.replace(" ", "-")
            orbax_checkpoints.save(model, folder)
            shutil.copytree(folder / "model_config", tmp_path / "m/model_config", dirs_exist_ok=True)
            for act in (describe_model, load_model):
                with pytest.raises(CorruptModel, match=match):
                    act(str(tmp_path / "m"))

    def test_a_configuration_that_is_none(self, folder: Path) -> None:
        file = folder / "10/model_config/_strings.json"
        for text, match in (("{", "is not JSON"), ('{"config": {}}', "no configuration of a Keras model")):
            file.write_text(text)
            with pytest.raises(CorruptModel, match=match):
                describe_model(str(folder))

    def test_a_file_that_is_missing(self, folder: Path) -> None:
        for path in (folder / "10").rglob("d/*"):
            path.unlink()
        with pytest.raises(CorruptModel, match=r"no file .*which its index names(.|\n)*Copy the whole folder"):
            describe_model(str(folder))


def test_folders_of_numbers_that_are_no_checkpoints(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(NotAModel, match="is a folder, but no SavedModel"):
        pin_model(str(tmp_path))


def _model(units: int = 40, name: str = "first") -> Any:
    """Trained for a while, as far as the optimizer's state can show it."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((6,), name="x"),
            keras.layers.Dense(units, activation="relu", name=name),
            keras.layers.Dense(units, activation="relu", name="second"),
            keras.layers.Dense(3, name="third"),
        ],
        name="table",
    )
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:
        if variable.shape:
            variable.assign(np.random.default_rng(0).random(variable.shape, np.float32))
    return model
