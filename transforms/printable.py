"""Foreign text made safe to print: characters that would move a cursor, hide letters or reorder them become escapes.

Names of files, columns, tensors and models, and messages of servers and libraries, come from strangers. Every place that shows
text to a person calls one of these functions: no message has to remember it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt, Unicode 16) without the variation selectors U+FE00 to
# U+FE0F and the joiners U+200C and U+200D, which belong to letters and pictures; controls (C0, DEL, C1); line and paragraph
# separators; interlinear annotations; and surrogates, which represent bytes that are not UTF-8.
_ALWAYS = (
    "\\x00-\\x1f\\x7f-\\x9f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b\\u200e\\u200f"
    "\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff0-\\ufffb\\ud800-\\udfff"
    "\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a\\U000e0000-\\U000e0fff"
)
# A joiner or a variation selector means something between letters of scripts that join, and after pictures. Next to Latin
# letters, digits or signs it shows nothing, and only makes two names look alike.
_BESIDE_LATIN = "(?:(?<![\\u0300-\\U0010ffff])[\\u200c\\u200d]|[\\u200c\\u200d](?![\\u0300-\\U0010ffff]))"
_SELECTOR = "(?<![\\u00a9\\u00ae\\u0300-\\U0010ffff])[\\ufe00-\\ufe0f](?!\\u20e3)"
_UNPRINTABLE = f"[{_ALWAYS}]|{_BESIDE_LATIN}|{_SELECTOR}"
_UNPRINTABLE_BUT_LINES = f"(?![\\n\\t])(?:{_UNPRINTABLE})"
# What our own texts hold besides ASCII: a report without foreign names is shown without compiling the patterns.
_SIGNS = str.maketrans("", "", "\u00a0\u2026\u2190\u2192\u2212")
_SIGNS_AND_LINES = _SIGNS | str.maketrans("", "", "\n\t")


def printable(text: str) -> str:
    r"""One line of text with every unprintable character as Python writes it: `\x1b`, `\u202e`, `\n`.

    A backslash stays as it is, so that what is printable already does not change: `printable(printable(x)) == printable(x)`.

    >>> printable("part\x1b[2J.parquet")
    'part\\x1b[2J.parquet'
    """
    return text if _is_plain(text, _SIGNS) else _compiled(_UNPRINTABLE).sub(_escaped, text)


def printable_lines(text: str) -> str:
    """The same for text of several lines, as a traceback: ends of lines and tabs stay."""
    plain = _is_plain(text, _SIGNS_AND_LINES)
    return text if plain else _compiled(_UNPRINTABLE_BUT_LINES).sub(_escaped, text)


def printable_json(document: Any, **how: Any) -> str:
    """`json.dumps` that a terminal can show: a program that reads it gets every name as it is."""
    text = json.dumps(document, ensure_ascii=False, **how)
    plain = _is_plain(text, _SIGNS_AND_LINES)
    return text if plain else _compiled(_UNPRINTABLE_BUT_LINES).sub(_json_escaped, text)


def _is_plain(text: str, besides: dict[int, int | None]) -> bool:
    return (text.isascii() and text.isprintable()) or (
        (rest := text.translate(besides)).isascii() and rest.isprintable()
    )


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """At first need: most texts are plain, and the command starts sooner."""
    return re.compile(pattern)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _json_escaped(found: re.Match[str]) -> str:
    # JSON names what is beyond U+FFFF by two surrogates (RFC 8259, section 7).
    return json.dumps(found[0])[1:-1]
