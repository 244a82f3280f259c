"""The files that may hold a KerasHub preset's vocabularies, for stores that list no folders."""

from __future__ import annotations

import re
from typing import Any

from ...bounded_json import NotJson, parse_json

# The files that KerasHub's tokenizers read (VOCAB_FILENAME and MERGES_FILENAME in keras_hub/src/tokenizers and models).
_NAMES = ("vocabulary.txt", "vocabulary.json", "merges.txt", "vocabulary.spm")
_FOLDER = re.compile(r"\w[\w-]{0,99}")
_MOST_FOLDERS = 16


def asset_names(task: bytes | bytearray) -> list[str]:
    """The paths below the preset at which the tokenizers of a task.json may have files; none where it is not JSON."""
    try:
        described = parse_json(task)
    except NotJson:
        return []
    folders: dict[str, None] = {}
    waiting: list[Any] = [described]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
            folder = str(value.get("config_file")).partition(".")[0]
            # A preprocessor has a config_file too, but no folder.
            if "config_file" in value and folder != "preprocessor" and _FOLDER.fullmatch(folder):
                folders[folder] = None
        elif isinstance(value, list):
            waiting.extend(value)
    return [f"assets/{folder}/{name}" for folder in sorted(folders)[:_MOST_FOLDERS] for name in _NAMES]
