"""Errors for people who write Python: they name arguments (`fill={"age": 0}`) where the command line has flags
(`--fill age=0`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import HeadraceError

# Flags that name something for each tensor or output, by the argument that takes them as a dict.
_DICTS = {name: name for name in ("constant", "decode_image", "fill", "pad", "tf_example", "top_k")}
_DICTS |= {"feature": "features", "prediction": "predictions"}
_LISTS = ("cast", "custom_objects", "input", "keep", "outputs")
_NUMBERS = re.compile(r"-?\d+(\.\d+)?")
_PAIR = rf"(?P<pair>{'|'.join(_DICTS)})[= ](?P<key>[^\s=,;()'\"]+)=(?P<for_key>[^\s,;()]*[^\s,;().?])"
# After a blank only where nothing but the sentence's end follows: "--keep names a column" names no column.
_LIST = rf"(?P<list>{'|'.join(_LISTS)})(?:=(?P<items>[^\s;()]*[^\s,;().?])| (?P<item>\w+)(?=[.,;)]|$))"
_VALUE = r"(?P<flag>[a-z][a-z0-9_]*)(?:=(?P<value>[^\s,;()]*[^\s,;().?])?)?"
_FLAG = re.compile(rf"(?<![\w-])--(?:{_PAIR}|{_LIST}|{_VALUE})")
# An argument of the same name, which the text gives beside the flag.
_TWICE = re.compile(r"\b(\w+)(=\S+)? \(\1(=[^()]*)?\)")


def with_argument_names(error: HeadraceError) -> HeadraceError:
    """The same error, its flags written as arguments.

    >>> with_argument_names(HeadraceError("No", cure="Add --fill=age=0 or --on_error=dead_letter")).cure
    'Add fill={"age": 0} or on_error="dead_letter"'
    >>> with_argument_names(HeadraceError("No", cure="Leave --weights (weights) out")).cure
    'Leave weights out'
    """
    texts = [
        _TWICE.sub(_said_once, _FLAG.sub(_as_argument, text))
        for text in (error.what, error.expected, error.found, error.cure)
    ]
    what, expected, found, cure = texts
    again = type(error)(what, expected=expected, found=found, cure=cure)
    vars(again).update({name: value for name, value in vars(error).items() if name not in vars(again)})
    return again


def _as_argument(match: re.Match[str]) -> str:
    if match["pair"]:
        return f'{_DICTS[match["pair"]]}={{"{match["key"]}": {_literal(match["for_key"])}}}'
    if match["list"]:
        return f"{match['list']}=[{', '.join(map(_quoted, (match['items'] or match['item']).split(',')))}]"
    flag, value = match["flag"], match["value"]
    name = _DICTS.get(flag, flag)
    if flag in _LISTS and match[0].endswith("="):
        return f"{name}=[]"
    if not value:
        return name
    return f"{name}={_literal(value)}"


def _said_once(match: re.Match[str]) -> str:
    name, of_the_flag, of_the_argument = match.groups(default="")
    return name + (of_the_flag if not of_the_argument or "…" in of_the_argument else of_the_argument)


def _literal(text: str) -> str:
    return text if _NUMBERS.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    return f'"{text.strip(chr(39))}"'


@contextmanager
def argument_names() -> Iterator[None]:
    """Errors raised within the context, or within a function that this decorates, name arguments; the cause is kept."""
    try:
        yield
    except HeadraceError as error:
        raise with_argument_names(error) from error.__cause__
