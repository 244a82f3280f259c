"""Models from a web server, which cannot list a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import load_model
from headrace.transforms.errors import CorruptModel, NotAModel
from headrace.transforms.models.pin import pin_model
from tests.support import model_zoo
from tests.transforms.storage.test_http import WebServer, server

__all__ = ["server"]


def put_folder(server: WebServer, folder: Path, at: str) -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            server.objects[f"{at}/{path.relative_to(folder)}"] = path.read_bytes(), 0
    return server.url + at


@pytest.mark.parametrize("make", [model_zoo.keras_export, model_zoo.several_shards, model_zoo.vocabulary])
def test_saved_models(server: WebServer, tmp_path: Path, make: Callable[[Path], Any]) -> None:
    inputs = make(tmp_path / "m")
    uri = put_folder(server, tmp_path / "m", "/models/m")
    here, there = pin_model(str(tmp_path / "m")), pin_model(uri)
    assert [ref.uri.removeprefix(uri) for ref in there.objects] == [
        ref.uri.removeprefix(str(tmp_path / "m")) for ref in here.objects
    ]
    name, batch = next(iter(inputs.items()))
    expected = load_model(str(tmp_path / "m"), name).predict(batch)
    found = load_model(uri + "/", name).predict(batch)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[key], found[key]) for key in expected)


def test_what_the_folder_lacks_is_named(server: WebServer, tmp_path: Path) -> None:
    model_zoo.vocabulary(tmp_path / "m")
    uri = put_folder(server, tmp_path / "m", "/m")
    for part in ("/m/assets/", "/m/variables/variables.data"):
        name = next(path for path in server.objects if path.startswith(part))
        kept = server.objects.pop(name)
        with pytest.raises(CorruptModel, match=f"{uri} lacks {name.removeprefix('/m/')}"):
            pin_model(uri)
        server.objects[name] = kept


def test_signed_files_of_models(server: WebServer, tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    batch = np.random.default_rng(0).random((4, 3), np.float32)
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        server.objects[f"/{name}"] = (tmp_path / name).read_bytes(), 0
        for server.has_ranges in (True, False):
            server.seen.clear()
            loaded = load_model(f"{server.url}/{name}?X-Signature=s3cr3t")
            found = loaded.predict({next(iter(loaded.inputs)): batch})
            assert np.array_equal(next(iter(found.values())), model.predict(batch, verbose=0))
            assert {path for path, _ in server.seen} == {f"/{name}?X-Signature=s3cr3t"}
    with pytest.raises(NotAModel, match=r"no model at http://127\.0\.0\.1:\d+/n\. .*name one file") as caught:
        pin_model(f"{server.url}/n?X-Signature=s3cr3t")
    assert "s3cr3t" not in str(caught.value)
