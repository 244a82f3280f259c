from __future__ import annotations

import copy
import io
import os
import random
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.transforms.errors import CorruptModel, ModelError, NotAModel, UnsupportedModel
from headrace.transforms.models.keras_model import files as keras_files
from headrace.transforms.models.keras_model.model import describe, load
from tests.support import keras_zoo
from tests.support.keras_saved import assert_same_bits, loaded, repacked, replacing, saved, stored, unchanged
from tests.support.warm import python


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return saved(keras_zoo.mlp().model, tmp_path_factory.mktemp("mlp"))


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
            from headrace.transforms.errors import UnsupportedModel
            from headrace.transforms.models.keras_model.model import load
            from headrace.transforms.models.pin import pin_model
            from headrace.transforms.storage import open_store
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
            with pytest.raises(ModelError, match=r"cannot rebuild|names keras\.Adam at config"):
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
            "import sys; from tests.transforms.models.keras_model.test_keras_damage import flip; "
            "flip(open(sys.argv[1], 'rb').read(), 40)",
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

    def test_members_that_are_one_and_bombs_of_many(self, mlp: bytes) -> None:
        parts = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(mlp)) as sound, zipfile.ZipFile(parts, "w", zipfile.ZIP_DEFLATED) as made:
            for info in sound.infolist():
                made.writestr(info.filename, sound.read(info))
            for i in range(4):
                made.writestr(f"assets/{i}", bytes(100 << 20))
        with pytest.raises(CorruptModel, match=r"members that expand beyond measure.*100:1 in all"):
            loaded(parts.getvalue())
        with zipfile.ZipFile(parts, "a") as made:
            twin = copy.copy(made.getinfo("assets/0"))
            twin.filename = twin.orig_filename = "assets/x"
            made.filelist.append(twin)
            made.NameToInfo["assets/x"] = twin
            made._didModify = True  # type: ignore[attr-defined]
        with pytest.raises(CorruptModel, match=r"members 'assets/0' and 'assets/x' in the same bytes"):
            loaded(parts.getvalue())

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
    keras_files.WHOLE_BYTES = 0
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
