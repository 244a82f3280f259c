"""Safe mode for KerasHub's classes: the classes that a configuration may name, and the arguments that it may give them.

Once imported, KerasHub registers everything with Keras, including functions that read files and upload presets. So its names
count as known only through `hub_allow_list`, whichever code imported it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from .hub_allow_list import CLASSES
from .refusals import refused, too_much

# KerasHub was called KerasNLP, and older presets have that name.
_PACKAGES = ("keras_hub>", "keras_nlp>")
FUNCTIONS = {"keras_hub>gelu_approximate", "keras_nlp>gelu_approximate"}
# Arguments in which a tokenizer takes either a path or the file's content.
_FILES = ("vocabulary", "merges", "proto")
# How often a constructor repeats a part of the model.
_REPEATS = re.compile(
    r"(^|_)(num_(\w+_)?(layers|blocks|repeats|perms)|num_layers\w*|depths?|layer_num|depth_single_blocks)$"
)
_MOST_REPEATS = 10_000
# Arguments that determine the size of a row in memory.
_SIZES = {
    "sequence_length": 1 << 20,
    "max_label_length": 1 << 12,
    "image_size": 1 << 14,
    "height": 1 << 14,
    "width": 1 << 14,
}


def is_of_hub(registered: Any) -> bool:
    return isinstance(registered, str) and registered.startswith(_PACKAGES) and registered not in FUNCTIONS


def allows(registered: str, name: str) -> bool:
    """Whether a configuration may name this class; only while KerasHub is imported, since Keras finds it only then."""
    return (
        "keras_hub" in sys.modules and name in CLASSES and registered in {f"{package}{name}" for package in _PACKAGES}
    )


def without_training(described: Any) -> Any:
    """A task's configuration with the argument that keeps it from making an optimizer, as its constructor does by default."""
    config = described.get("config") if isinstance(described, dict) else None
    if not isinstance(config, dict) or "backbone" not in config or not is_of_hub(described.get("registered_name")):
        return described
    return {**described, "config": {**config, "compile": False}}


def check_arguments(uri: str, config: Any, place: str) -> int:
    """How often these arguments of a KerasHub class repeat parts of a model.

    Raises `UnsupportedModel` for a path to a file, and for sizes that no row needs.
    """
    repeats = 0
    for key, value in _arguments(config):
        if key in _FILES and isinstance(value, str):
            raise refused(uri, f"the file {value[:100]!r}", f"{place}.{key}", "none, since the preset's assets hold it")
        if isinstance(value, int) and not isinstance(value, bool):
            if value > (most := _SIZES.get(key, value)):
                raise too_much(uri, f"has a size at {place}.{key}", f"at most {most:,}", f"{value:,}")
            repeats += value if _REPEATS.search(key) else 0
    return repeats


def check_repeats(uri: str, repeats: int) -> None:
    if repeats > _MOST_REPEATS:
        raise too_much(
            uri, "repeats its layers too often", f"at most {_MOST_REPEATS:,} layers and blocks", f"{repeats:,}"[:60]
        )


def _arguments(config: Any) -> Iterator[tuple[str, Any]]:
    """Each plain value with its argument's name, except those of objects, which are checked separately."""
    waiting = [("", config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" not in value:
                waiting.extend((str(name), inner) for name, inner in value.items())
        elif isinstance(value, list):
            waiting.extend((key, inner) for inner in value)
        else:
            yield key, value
