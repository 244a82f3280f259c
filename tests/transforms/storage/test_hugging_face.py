"""`hf://`: files and folders of a repository, read through `huggingface_hub` over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace.transforms.errors import NotAModel, ObjectNotFound
from headrace.transforms.models.load import load_model
from headrace.transforms.models.pin import pin_model
from headrace.transforms.storage import StoreOptions
from headrace.transforms.storage.fsspec_store import FsspecStore
from tests.support.front import Front, served
from tests.support.hub_service import REPOSITORY, HubService
from tests.support.jobs import FEATURES, model_folder, plain_model

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("huggingface_hub")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "repository").mkdir()
    front = Front()
    front.faults.append(HubService(tmp_path / "repository"))
    for _ in served(front):
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": front.url, "token": False})
        yield tmp_path / "repository"


def test_files_are_listed_pinned_and_read_by_ranges(repository: Path) -> None:
    (repository / "a").mkdir()
    (repository / "a/x.bin").write_bytes(bytes(range(200)))
    (repository / "y.bin").write_bytes(b"y")
    store = FsspecStore(StoreOptions(), "hf")
    root = f"hf://{REPOSITORY}"
    refs = list(store.list(root))
    assert [ref.uri for ref in refs] == [f"{root}/a/x.bin", f"{root}/y.bin"]
    assert store.read(refs[0], 7, 5) == bytes(range(7, 12))
    assert store.stat(f"{root}@main/y.bin").version == refs[1].version
    for missing in (f"{root}/z.bin", f"{root}/nothing/z.bin", "hf://org/other/z.bin"):
        with pytest.raises(ObjectNotFound):
            store.stat(missing)


@pytest.mark.parametrize("name", ["saved_model", "model.keras"])
def test_a_model_of_a_repository_predicts_as_from_a_disk(repository: Path, name: str) -> None:
    shutil.copytree(model_folder(), repository, dirs_exist_ok=True)
    x = np.random.default_rng(0).normal(size=(3, FEATURES)).astype(np.float32)
    found = load_model(f"hf://{REPOSITORY}/{name}").predict({"x": x})["output_0"]
    assert found.tobytes() == np.asarray(plain_model(name)(x)).tobytes()


def test_a_repository_of_models_names_one_of_them(repository: Path) -> None:
    (repository / "2").mkdir()
    (repository / "2/saved_model.pb").write_bytes(b"x")
    with pytest.raises(NotAModel, match=rf"e\.g\. hf://{REPOSITORY}/2\."):
        pin_model(f"hf://{REPOSITORY}")
