"""Safe mode over KerasHub: which of its classes a preset may name, and what may stand in their arguments."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from headrace.transforms.errors import UnsupportedModel
from headrace.transforms.models.keras_model import hub_safe_mode
from headrace.transforms.models.keras_model.files import asset_names
from headrace.transforms.models.load import describe_model
from tests.transforms.models.keras_model.test_keras_safe_mode import applied, built, call, function, layer, model

pytest.importorskip("keras_hub")

from tests.support import hub_presets, keras_hub_allow_list
from tests.support.hub_presets import preset


def test_the_list_is_what_the_rules_give() -> None:
    assert keras_hub_allow_list.GENERATED.read_text() == keras_hub_allow_list.generated()


def test_what_opens_files_is_looked_at() -> None:
    """Without the look at their arguments, the rules would refuse these classes."""
    for name, thing in keras_hub_allow_list.universe().items():
        if name in keras_hub_allow_list.GUARDED:
            assert {"vocabulary", "merges", "proto"} & set(inspect.signature(thing).parameters)
            assert "open(" in keras_hub_allow_list._code(thing)


def changed(folder: Path, tmp_path: Path, change: Any) -> str:
    copy = Path(shutil.copytree(folder, tmp_path / "changed"))
    described = json.loads((copy / "task.json").read_text())
    change(described)
    (copy / "task.json").write_text(json.dumps(described))
    return str(copy)


def tokenizer_of(described: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = described["config"]["preprocessor"]["config"]["tokenizer"]
    return found


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (hub_presets.word_pieces, "vocabulary"),
        (hub_presets.byte_pairs, "merges"),
        (hub_presets.sentence_pieces, "proto"),
    ],
)
def test_a_path_for_a_vocabulary(make: Any, argument: str, tmp_path: Path) -> None:
    def change(described: dict[str, Any]) -> None:
        tokenizer_of(described)["config"][argument] = "/etc/passwd"

    with pytest.raises(UnsupportedModel, match=f"the file '/etc/passwd' at .*{argument}"):
        describe_model(changed(preset(make), tmp_path, change))


@pytest.mark.parametrize(
    "name",
    [
        "keras_hub>upload_preset",
        "keras_hub>RandomSwap",
        "keras_hub>GreedySampler",
        "keras_nlp>compute_word_piece_vocabulary",
    ],
)
def test_what_is_registered_but_no_part_of_a_model(name: str, tmp_path: Path) -> None:
    def tokenizer(described: dict[str, Any]) -> None:
        tokenizer_of(described).update(class_name=name.partition(">")[2], registered_name=name)

    def activation(described: dict[str, Any]) -> None:
        described["config"]["activation"] = name

    for i, change in enumerate((tokenizer, activation)):
        with pytest.raises(UnsupportedModel, match="which is not known here"):
            describe_model(changed(preset(hub_presets.word_pieces), tmp_path / str(i), change))


def test_a_model_of_keras_alone_does_not_reach_them_either() -> None:
    """KerasHub is imported here, and all its functions are registered with Keras."""
    with pytest.raises(UnsupportedModel, match="upload_preset"):
        built(applied(function("keras_hub>upload_preset", "builtins")))
    with pytest.raises(UnsupportedModel, match="upload_preset"):
        built(applied(function("upload_preset", "builtins")))
    with pytest.raises(UnsupportedModel, match="upload_preset"):
        built(model(layer("Dense", {"units": 2, "activation": "keras_hub>upload_preset"}, call("x"))))


def test_a_class_under_the_name_of_another(tmp_path: Path) -> None:
    def change(described: dict[str, Any]) -> None:
        described["config"]["backbone"]["class_name"] = "TFSMLayer"

    with pytest.raises(UnsupportedModel, match="TFSMLayer"):
        describe_model(changed(preset(hub_presets.word_pieces), tmp_path, change))


@pytest.mark.parametrize(
    ("place", "argument", "value", "match"),
    [
        ("backbone", "num_layers", 10**9, "repeats its layers too often"),
        ("backbone", "stackwise_num_blocks", [200] * 100, "repeats its layers too often"),
        ("preprocessor", "sequence_length", 10**9, "has a size at .*sequence_length"),
    ],
)
def test_numbers_out_of_all_proportion(place: str, argument: str, value: Any, match: str, tmp_path: Path) -> None:
    def change(described: dict[str, Any]) -> None:
        described["config"][place]["config"][argument] = value

    with pytest.raises(UnsupportedModel, match=match):
        describe_model(changed(preset(hub_presets.word_pieces), tmp_path, change))


def test_only_while_keras_hub_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_safe_mode.allows("keras_hub>BertBackbone", "BertBackbone")
    assert not hub_safe_mode.allows("keras_hub>BertBackbone", "TFSMLayer")
    assert not hub_safe_mode.allows("mine>BertBackbone", "BertBackbone")
    monkeypatch.delitem(__import__("sys").modules, "keras_hub")
    assert not hub_safe_mode.allows("keras_hub>BertBackbone", "BertBackbone")


@pytest.mark.parametrize("folder", ["../../etc", "a/b", "", ".", "https://x", 7, None, ["tokenizer"]])
def test_names_of_assets_stay_in_the_preset(folder: Any) -> None:
    described = {"config": {"config_file": folder}}
    for name in asset_names(json.dumps(described).encode()):
        assert name.count("/") == 2
        assert ".." not in name
        assert name.startswith("assets/")
