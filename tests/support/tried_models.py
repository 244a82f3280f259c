"""The kinds of models that the tests load, and what becomes of each: `make tried` writes them into docs/models.md.

Each list of models comes from the tests that load all of it. tests/docs/test_tried_models.py fails where the page differs from
the lists, and loads what is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support import keras2_zoo, keras_zoo, model_zoo, zoo_v1
from tests.support.refused_models import REFUSED
from tests.transforms.models.keras_model.test_keras_legacy import KEPT_BY_H5
from tests.transforms.models.test_tflite import ZOO as TFLITE_ZOO

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- made by `make tried` -->\n", "<!-- end -->\n"

_TO_THE_BIT = "equal to the bit"
MODELS = "tests/transforms/models"
GROUPS: tuple[tuple[str, list[Callable[..., Any]], str, str], ...] = (
    ("SavedModel", list(model_zoo.ZOO.values()), _TO_THE_BIT, f"{MODELS}/saved_model/test_saved_model.py"),
    (
        "SavedModel, TensorFlow 1",
        list(zoo_v1.ZOO.values()),
        _TO_THE_BIT,
        f"{MODELS}/saved_model/test_saved_model_v1.py",
    ),
    ("`.keras`, Keras 3", list(keras_zoo.ZOO), _TO_THE_BIT, f"{MODELS}/keras_model/test_keras_zoo.py"),
    (
        "`.h5`, Keras 3",
        [make for make in keras_zoo.ZOO if make.__name__ in KEPT_BY_H5],
        _TO_THE_BIT,
        f"{MODELS}/keras_model/test_keras_legacy.py",
    ),
    (
        "`.h5`, Keras 2",
        list(keras2_zoo.MODELS),
        "within 1e-5 of Keras 2",
        f"{MODELS}/keras_model/test_keras_legacy.py",
    ),
    ("TFLite", list(TFLITE_ZOO.values()), _TO_THE_BIT, f"{MODELS}/test_tflite.py"),
)
"""Format, models, what becomes of all of them, and the tests that load them all."""
ALONE = (
    (
        "serialized `tf.train.Example`",
        "SavedModel",
        _TO_THE_BIT,
        "tests/jobs/test_tf_example.py",
        "test_a_job_from_a_bucket",
    ),
    (
        "serialized `tf.train.SequenceExample`",
        "SavedModel",
        _TO_THE_BIT,
        "tests/jobs/test_tf_example.py",
        "test_sequences",
    ),
    (
        "functions without a signature",
        "SavedModel",
        _TO_THE_BIT,
        f"{MODELS}/test_operations.py",
        "test_functions_without",
    ),
    (
        "a text classifier",
        "KerasHub preset",
        _TO_THE_BIT,
        f"{MODELS}/keras_model/test_hub_preset.py",
        "test_a_text_classifier",
    ),
    (
        "an image classifier",
        "KerasHub preset",
        _TO_THE_BIT,
        f"{MODELS}/keras_model/test_hub_preset.py",
        "test_an_image_class",
    ),
    (
        "a task that generates, or detects objects",
        "KerasHub preset",
        "refused: `UnsupportedModel`",
        f"{MODELS}/keras_model/test_hub_preset.py",
        "test_a_task_that_is_not_one_call",
    ),
    (
        "a trained model",
        "Orbax checkpoint",
        _TO_THE_BIT,
        f"{MODELS}/keras_model/test_orbax_checkpoint.py",
        "test_what_the_call",
    ),
    (
        "a custom operation that nothing resolves",
        "TFLite",
        "refused: `UnsupportedModel`",
        f"{MODELS}/test_tflite_state.py",
        "test_a_custom_operation",
    ),
)
"""Kind, format, what becomes of it, and the test that loads it."""


def table() -> str:
    lines = ["| format | kind | result |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in _rows())]) + "\n"


def _rows() -> Iterator[tuple[str, str, str]]:
    for form, makers, result, _ in GROUPS:
        for make in makers:
            yield form, _said(make), result
    for kind, form, result, *_ in ALONE:
        yield form, kind, result
    for one in REFUSED:
        yield one.format, _said(one.make), f'refused: `{one.error.__name__}`, "{one.says}"'


def _said(make: Callable[..., Any]) -> str:
    """The function's name in words, and what it says of the model."""
    told = (inspect.getdoc(make) or "").partition("\n")[0].rstrip(".")
    return make.__name__.replace("_", " ") + (f": {told}" if told else "")


def with_table(page: str) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    page = with_table(PAGE.read_text("utf-8"))
    if "--write" in sys.argv:
        PAGE.write_text(page, "utf-8")
    else:
        print(table(), end="")
