"""KerasHub presets: the task, from every store, to the bit what KerasHub's own loader makes of the folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace
from headrace.transforms.errors import CorruptModel, SignatureNotFound, UnsupportedModel
from headrace.transforms.models.keras_model import files as keras_files
from headrace.transforms.models.load import describe_model, load_model
from headrace.transforms.models.pin import pin_model
from tests.support import jobs

pytest.importorskip("keras_hub")

from tests.support import hub_presets
from tests.support.hub_presets import TEXTS, pictures, preset
from tests.transforms.models.saved_model.test_models_over_http import put_folder
from tests.transforms.storage.test_http import WebServer, server

__all__ = ["server"]


def same_bits(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("make", "where"), [(hub_presets.word_pieces, "streamed"), (hub_presets.sentence_pieces, "resident")]
)
def test_a_text_classifier(make: Callable[[], Any], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "streamed":
        monkeypatch.setattr(keras_files, "WHOLE_BYTES", 0)
    folder = preset(make)
    model = load_model(str(folder))
    assert model.format == "keras_hub"
    assert [(one.name, one.dtype, one.shape) for one in model.inputs.values()] == [("text", "string", (None,))]
    found = model.predict({"text": TEXTS})["output_0"]
    assert same_bits(found, hub_presets.native(folder, TEXTS))
    assert len(np.unique(found, axis=0)) > 1
    assert model.nbytes == 4 * model.parameters


def test_byte_pairs() -> None:
    folder = preset(hub_presets.byte_pairs)
    found = load_model(str(folder)).predict({"text": TEXTS})["output_0"]
    assert same_bits(found, hub_presets.native(folder, TEXTS))


@pytest.mark.parametrize("make", [hub_presets.images, hub_presets.images_as_given])
def test_an_image_classifier(make: Callable[[], Any]) -> None:
    folder = preset(make)
    model = load_model(str(folder))
    assert [(one.name, one.dtype, one.shape) for one in model.inputs.values()] == [
        ("images", "float32", (None, None, None, 3))
    ]
    assert same_bits(model.predict({"images": pictures()})["output_0"], hub_presets.native(folder, pictures()))


def test_a_backbone_in_half_precision_is_loaded_as_from_preset_loads_it() -> None:
    folder = preset(hub_presets.half_precision)
    model = load_model(str(folder))
    batch = {"token_ids": [[2, 5, 6, 3]], "padding_mask": [[1, 1, 1, 1]], "segment_ids": [[0, 0, 0, 0]]}
    given = {name: np.array(values, np.int32) for name, values in batch.items()}
    assert model.inputs.keys() == given.keys()
    found = model.predict(given)["output_0"]
    assert same_bits(found, hub_presets.native(folder, given))
    assert found.dtype == np.float32


def test_a_keras_file_of_a_task_takes_what_its_model_takes(tmp_path: Path) -> None:
    """Its constructor would make an optimizer, whose variables cannot be made while the model is built without values."""
    folder = preset(hub_presets.half_precision)
    hub_presets.half_precision().save(tmp_path / "task.keras")
    model = load_model(str(tmp_path / "task.keras"), custom_objects=["keras_hub"])
    assert model.format == "keras"
    assert model.inputs.keys() == load_model(str(folder)).inputs.keys()


def test_what_a_preset_is_made_of_is_told_without_its_weights() -> None:
    texts = describe_model(str(preset(hub_presets.word_pieces)))
    assert texts.parts == {
        "task": "BertTextClassifier",
        "backbone": "BertBackbone",
        "preprocessor": "BertTextClassifierPreprocessor",
        "tokenizer": "BertTokenizer, 8 tokens",
        "sequence length": "8",
    }
    loaded = load_model(str(preset(hub_presets.word_pieces)))
    assert (texts.parameters, texts.nbytes) == (loaded.parameters, loaded.nbytes)
    assert texts.signatures["serving_default"].outputs == loaded.outputs
    assert texts.signatures["serving_default"].inputs == loaded.inputs
    shown = describe_model(str(preset(hub_presets.images))).parts
    assert shown["image converter"] == "ResNetImageConverter, to 16x16"
    assert describe_model(str(preset(hub_presets.images_as_given))).parts["preprocessor"] == "none"


@pytest.mark.parametrize("make", [hub_presets.word_pieces, hub_presets.sentence_pieces, hub_presets.images_as_given])
def test_a_web_server_which_lists_no_folder(server: WebServer, make: Callable[[], Any]) -> None:
    folder = preset(make)
    uri = put_folder(server, folder, "/p")
    here, there = pin_model(str(folder)), pin_model(uri)
    assert [ref.uri.removeprefix(uri) for ref in there.objects] == [
        ref.uri.removeprefix(str(folder)) for ref in here.objects
    ]
    assert there.format == "keras_hub"


def test_jobs_from_a_bucket(bucket: str, tmp_path: Path) -> None:
    """One of texts and one of images, from what is on the bucket to Parquet."""
    pixels = pictures(5)
    nested: pa.Array[Any] = pa.array(pixels.ravel())
    for size in (3, 24, 20):
        nested = pa.FixedSizeListArray.from_arrays(nested, size)
    columns = {"text": pa.array(TEXTS), "images": nested}
    for make, name, batch in (
        (hub_presets.word_pieces, "text", TEXTS),
        (hub_presets.images, "images", pixels),
    ):
        folder = preset(make)
        for path in folder.rglob("*"):
            if path.is_file():
                jobs.put(f"{bucket}/{name}/{path.relative_to(folder)}", path.read_bytes())
        pq.write_table(pa.table({"id": range(5), "column": columns[name]}), tmp_path / f"{name}.parquet")
        output = str(tmp_path / f"out-{name}")
        headrace.run(
            model=f"{bucket}/{name}",
            input=str(tmp_path / f"{name}.parquet"),
            output=output,
            feature={name: "column"},
            keep=["id"],
        )
        assert same_bits(jobs.scores(jobs.read_output(output)), hub_presets.native(folder, batch))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (hub_presets.generating, "GPT2CausalLM, which generates: headrace does not run generate"),
        (
            hub_presets.filling_in,
            "a kind that headrace does not feed.*Found: BertMaskedLMPreprocessor.*preprocessor = None",
        ),
    ],
)
def test_a_task_that_is_not_one_call_for_each_row(make: Callable[[], Any], match: str) -> None:
    for act in (describe_model, load_model):
        with pytest.raises(UnsupportedModel, match=match):
            act(str(preset(make)))


def test_no_other_signature() -> None:
    with pytest.raises(SignatureNotFound, match="'generate'"):
        load_model(str(preset(hub_presets.word_pieces)), "generate")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = preset(hub_presets.word_pieces)
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(
        UnsupportedModel, match=r"KerasHub, which cannot be imported.*pip install 'headrace\[keras_hub\]'"
    ):
        describe_model(str(folder))


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(preset(hub_presets.word_pieces), tmp_path / "p"))

    def test_a_vocabulary_that_is_missing(self, folder: Path) -> None:
        (folder / "assets/tokenizer/vocabulary.txt").unlink()
        with pytest.raises(
            CorruptModel, match=r"lacks assets/tokenizer/vocabulary\.txt, which its BertTokenizer reads"
        ):
            describe_model(str(folder))

    def test_a_vocabulary_of_another_tokenizer(self, folder: Path) -> None:
        (folder / "assets/tokenizer/vocabulary.txt").write_text("good\nbad\n")
        with pytest.raises(CorruptModel, match=r"vocabulary of .* is not one of its BertTokenizer.*UNK"):
            describe_model(str(folder))

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"config": {"backbone": "hf://x/y"}}', '{"config": {"backbone": {}}}']
    )
    def test_a_task_that_is_none(self, folder: Path, text: str) -> None:
        (folder / "task.json").write_text(text)
        with pytest.raises(CorruptModel, match=r"task\.json of"):
            describe_model(str(folder))

    def test_weights_of_another_task(self, folder: Path) -> None:
        shutil.copy(preset(hub_presets.sentence_pieces) / "model.weights.h5", folder / "model.weights.h5")
        with pytest.raises(CorruptModel):
            load_model(str(folder))

    def test_without_the_weights_of_its_own_layers(self, folder: Path) -> None:
        (folder / "task.weights.h5").unlink()
        with pytest.raises(CorruptModel, match="no value for variable 'logits/"):
            load_model(str(folder))

    def test_a_class_of_nobody(self, folder: Path) -> None:
        described = json.loads((folder / "task.json").read_text())
        described["registered_name"] = "keras_hub>Nobody"
        (folder / "task.json").write_text(json.dumps(described))
        with pytest.raises(UnsupportedModel, match="which is not known here"):
            describe_model(str(folder))
