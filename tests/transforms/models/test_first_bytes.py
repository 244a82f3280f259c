"""What is often found where a model should be is named, whatever it was called."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from headrace.transforms.errors import NotAModel
from headrace.transforms.models.load import load_model
from headrace.transforms.models.pin import pin_model
from tests.support.jobs import model_folder

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"
PAGES = [
    b"<!DOCTYPE html>\n<html><head>",
    b"\n\n  <html lang='en'>",
    b"\xef\xbb\xbf<!doctype HTML>",
    b"<?xml version='1.0'?><Error>",
]


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.tflite", "m.pb", "model"])
@pytest.mark.parametrize(("data", "what"), [(LFS, "pointer of Git LFS"), *((page, "web page") for page in PAGES)])
def test_a_pointer_and_a_page_are_named(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(NotAModel, match=what):
        pin_model(str(tmp_path / name))


def test_a_pointer_within_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/saved_model.pb").write_bytes(LFS)
    with pytest.raises(NotAModel, match=r"saved_model\.pb is a pointer of Git LFS.*git lfs pull"):
        load_model(str(tmp_path / "saved"))
    with zipfile.ZipFile(model_folder() / "model.keras") as archive:
        archive.extractall(tmp_path / "unzipped")
    (tmp_path / "unzipped/config.json").write_bytes(LFS)
    with pytest.raises(NotAModel, match=r"configuration of .*unzipped is a pointer of Git LFS"):
        load_model(str(tmp_path / "unzipped"))
    (tmp_path / "config.json").write_text("{}")
    for name in ("model.weights.h5", "other.weights.h5"):
        (tmp_path / name).write_bytes(LFS)
    with pytest.raises(NotAModel, match=r"other\.weights\.h5 is a pointer of Git LFS"):
        pin_model(str(tmp_path / "config.json"), weights=str(tmp_path / "other.weights.h5"))
    (tmp_path / "config.json").write_bytes(LFS)
    with pytest.raises(NotAModel, match=r"config\.json is a pointer of Git LFS"):
        pin_model(str(tmp_path / "config.json"), weights=str(tmp_path / "other.weights.h5"))


@pytest.mark.parametrize("part", ["variables.index", "variables.data-00000-of-00001"])
def test_a_pointer_in_place_of_weights_is_named(tmp_path: Path, part: str) -> None:
    shutil.copytree(model_folder() / "saved_model", tmp_path / "m")
    (tmp_path / "m/variables" / part).write_bytes(LFS)
    with pytest.raises(NotAModel, match=rf"variables/{part} is a pointer of Git LFS.*git lfs pull"):
        load_model(str(tmp_path / "m"))


def test_a_frozen_graph_and_a_graph_without_its_folder_are_named(tmp_path: Path) -> None:
    from tensorflow.core.framework import graph_pb2
    from tensorflow.core.protobuf import saved_model_pb2

    graph = graph_pb2.GraphDef()
    graph.node.add(name="import/x", op="Placeholder")
    graph.node.add(name="y" * 300, op="Identity", input=["import/x"])
    (tmp_path / "frozen.pb").write_bytes(graph.SerializeToString())
    with pytest.raises(NotAModel, match=r"frozen TensorFlow graph.*tf\.saved_model\.save"):
        pin_model(str(tmp_path / "frozen.pb"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/saved_model.pb").write_bytes(graph.SerializeToString())
    with pytest.raises(NotAModel, match=r"saved/saved_model\.pb is a frozen TensorFlow graph"):
        load_model(str(tmp_path / "saved"))
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    saved.meta_graphs.add().graph_def.CopyFrom(graph)
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    with pytest.raises(NotAModel, match="Name the folder that holds this file"):
        pin_model(str(tmp_path / "saved_model.pb"))


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (["1", "2", "10"], "10"),
        (["9", "0010"], "0010"),
        (["v1.9", "v1.10", "v1.2"], "v1.10"),
        (["20240101", "20231231"], "20240101"),
        (["a", "b/2", "b/11"], "b/11"),
        (["1", "2", "latest"], "2"),
        (["1", "3", "3.tmp", "temp-5"], "3"),
    ],
)
def test_the_newest_version_is_the_example(tmp_path: Path, names: list[str], newest: str) -> None:
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(NotAModel, match=rf"folder above models.*e\.g\. {tmp_path}/{newest}\.$"):
        pin_model(str(tmp_path))


def test_the_newest_archive_is_the_example(tmp_path: Path) -> None:
    for form in ("keras", "tflite"):
        (tmp_path / form).mkdir()
        for name in ("m-9", "m-10", "m-2"):
            (tmp_path / form / f"{name}.{form}").write_bytes(b"PK")
        with pytest.raises(NotAModel, match=rf"e\.g\. .*m-10\.{form}"):
            pin_model(str(tmp_path / form))
