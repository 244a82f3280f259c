"""Names of columns and tensors in flags, with one quoting rule.

A name is written as it is, blanks included; `\\,` is a comma in it. A name in double quotes is a JSON string
(https://www.rfc-editor.org/rfc/rfc8259#section-7): `" id"`, `"a,b"`, `"line\\nbreak"`, `""` for the empty name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_PLAIN = {",": re.compile(r"(?:\\,|[^,])*", re.DOTALL), "=": re.compile(r"[^=]*", re.DOTALL)}
_decode = json.JSONDecoder(strict=False).raw_decode


@dataclass(frozen=True, slots=True)
class Name:
    text: str
    quoted: bool

    @property
    def trimmed(self) -> str:
        """The text without blanks at its ends, unless they are quoted."""
        return self.text if self.quoted else self.text.strip()

    def __bool__(self) -> bool:
        """A name of blanks is none, unless it is quoted."""
        return self.quoted or bool(self.text.strip())


def split_names(text: str) -> list[Name]:
    """Names with commas between; at least one, which may be false."""
    names, at = [], 0
    while True:
        name, at = _name_at(text, at, ",")
        names.append(name)
        if at >= len(text):
            return names
        at += 1


def split_pair(text: str) -> tuple[Name, str | None]:
    """The name before the first unquoted `=`, and the text after it, None where there is no `=`."""
    name, at = _name_at(text, 0, "=")
    return name, text[at + 1 :] if at < len(text) else None


def quote_name(name: str) -> str:
    """The name in the form that a flag reads back unchanged; not quoted where that is not necessary."""
    plain = name.strip() == name and name and not re.search(r'[,="\\\x00-\x1f\x7f-\x9f]', name)
    return name if plain else json.dumps(name, ensure_ascii=False)


def _name_at(text: str, at: int, end: str) -> tuple[Name, int]:
    """The name that begins there, and where it ends: at the text's end, or at `end`."""
    if text.startswith('"', at):
        try:
            decoded, after = _decode(text, at)
        except ValueError:
            pass  # a name that begins with a quote, written as it is
        else:
            if after == len(text) or text[after] == end:
                return Name(decoded, True), after
    match = _PLAIN[end].match(text, at)
    assert match is not None
    return Name(match[0].replace("\\,", ",") if end == "," else match[0], False), match.end()
