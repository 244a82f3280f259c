"""Folders `key=value`: what they mean for the rows below them, and how they are written so that every reader agrees.

Readers split such a folder at its first `=` and percent-decode the value; pyarrow decodes the key too, which DuckDB and polars
do not. So a value is quoted as a whole, and a key keeps the spelling that it has in the input. Letters and digits of any script
stay as they are, since quoting makes nine bytes of a letter of three. Where a name is not in Unicode's composed form (NFC),
which some file systems change, they are quoted.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
MOST_FOLDER_BYTES = 255  # where local file systems end a name

_PLAIN = "-_.~+, "
_IN_KEYS = re.compile(r"(%[0-9A-Fa-f]{2})")


def partition_values(uri: str, folder: str) -> tuple[tuple[str, str | None], ...]:
    """Column and value of each `key=value` folder between `folder` and the file, as Hive writes them: always text,
    URL-decoded; `__HIVE_DEFAULT_PARTITION__` is null. If a key is there twice, the deepest counts.
    """
    relative = uri.removeprefix(folder)
    return _partitions_of(relative[: relative.rfind("/") + 1])


@lru_cache(1024)
def _partitions_of(folders: str) -> tuple[tuple[str, str | None], ...]:
    pairs = (segment.partition("=") for segment in folders.split("/"))
    values = {_decoded(key): _value(value) for key, equals, value in pairs if equals}
    return tuple((key, value) for key, value in values.items() if key)


def long_partitions(uri: str, folder: str) -> tuple[str, ...]:
    """The keys of the `key=value` folders between `folder` and the file that are too long to be written as such."""
    segments = uri.removeprefix(folder).split("/")[:-1]
    return tuple(
        _decoded(segment.partition("=")[0])
        for segment in segments
        if "=" in segment and partition_folder(segment) is None
    )


def partition_folder(segment: str) -> str | None:
    """How the input's folder `key=value` is written in the output; None where that is too long for a folder's name."""
    key, _, value = segment.partition("=")
    decoded = _value(value)
    value = HIVE_NULL if decoded is None else decoded
    composed = _is_composed(f"{key}={value}")
    written = "".join(part if i % 2 else _quoted(part, composed) for i, part in enumerate(_IN_KEYS.split(key)))
    written = f"{visible(written)}={_quoted(value, composed)}"
    return written if len(written.encode()) <= MOST_FOLDER_BYTES else None


def quote_name(name: str) -> str:
    """The name with all but letters, digits and a few marks percent-quoted; different names stay different."""
    return _quoted(name, _is_composed(name))


def visible(quoted: str) -> str:
    """The quoted name, its first character quoted too where readers of Parquet would take the name for hidden."""
    return f"%{ord(quoted[0]):02X}{quoted[1:]}" if quoted[:1] in ("_", ".") else quoted


def _is_composed(text: str) -> bool:
    return unicodedata.is_normalized("NFC", text) and unicodedata.combining(text[0] if text else "a") == 0


def _quoted(text: str, composed: bool) -> str:
    if text.isascii():
        return quote(text, safe=_PLAIN)
    return "".join(
        character if composed and _is_letter(character) else quote(character, safe=_PLAIN) for character in text
    )


def _is_letter(character: str) -> bool:
    """A letter of another script than Latin; marks belong to the letters before them."""
    return not character.isascii() and unicodedata.category(character)[0] in "LMN"


def _value(text: str) -> str | None:
    decoded = _decoded(text)
    return None if decoded == HIVE_NULL else decoded


def _decoded(text: str) -> str:
    """Text that is not UTF-8 once decoded was not quoted by a writer of UTF-8, and is taken literally."""
    try:
        return unquote_to_bytes(text).decode() if "%" in text else text
    except UnicodeDecodeError:
        return text
