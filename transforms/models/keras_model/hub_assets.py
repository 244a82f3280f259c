"""The files that may hold a KerasHub preset's vocabularies, for stores that list no folders."""

from __future__ import annotations

import re

from ...bounded_json import NotJson, objects_in, parse_json

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
    folders: set[str] = set()
    for found in objects_in(described):
        folder = str(found.get("config_file")).partition(".")[0]
        # A preprocessor has a config_file too, but no folder.
        if "config_file" in found and folder != "preprocessor" and _FOLDER.fullmatch(folder):
            folders.add(folder)
    return [f"assets/{folder}/{name}" for folder in sorted(folders)[:_MOST_FOLDERS] for name in _NAMES]
