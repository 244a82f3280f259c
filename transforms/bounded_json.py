"""JSON of anybody's making, read within bounds.

Python's own reader ends deep nesting in a RecursionError, takes the last of two keys of one name, and takes NaN, infinities
and numbers of any length. What is read here is plain data whose depth, size and numbers are bounded, or a `NotJson`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

# A record of headrace, or of Keras next to its weights.
RECORD_BYTES = 64 << 20
# Sound records nest to about 10, configurations of nested models to some dozens.
_MAX_DEPTH = 200
# 64 bits have 20 digits; Python takes seconds to minutes for millions of them.
_MAX_DIGITS = 40
_SHOWN = 100
# Without a match, no number in a text is too long for Python's own reading of whole numbers, some five times faster.
_LONG_INTEGER = re.compile(rf"[-\d]\d{{{_MAX_DIGITS}}}", re.ASCII)


class NotJson(ValueError):
    """What the text is instead of JSON; callers that try a text already expect `ValueError`."""


def parse_json(data: bytes | bytearray | str, *, most_bytes: int = RECORD_BYTES, not_finite: bool = False) -> Any:
    """The value of a JSON text in UTF-8. With `not_finite`, NaN and infinities are numbers, as Keras writes them.

    Raises `NotJson` for anything else: cut short, nested deeper than 200, two keys of one name, numbers of more than 40
    digits.
    """
    if len(data) > most_bytes:
        raise NotJson(f"{len(data)} bytes, more than {most_bytes}")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer if _LONG_INTEGER.search(text) else None,
            parse_float=_number if not_finite else _finite,
            parse_constant=None if not_finite else _constant,
        )
    except NotJson:
        raise
    except RecursionError:
        raise NotJson(f"lists or objects within each other, deeper than {_MAX_DEPTH}") from None
    except ValueError as error:
        raise NotJson(str(error)[:200]) from error
    _check_depth(value)
    return value


def parse_json_object(data: bytes | bytearray | str, *, most_bytes: int = RECORD_BYTES) -> dict[str, Any]:
    """The same of an object. Raises `NotJson`."""
    value = parse_json(data, most_bytes=most_bytes)
    if not isinstance(value, dict):
        raise NotJson(f"a {type(value).__name__} instead of an object")
    return value


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value, at any depth."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 1000 else names[0]
        raise NotJson(f"two keys of one name in an object, such as {twice[:_SHOWN]!r}")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise NotJson(f"a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    if len(digits) > 20 * _MAX_DIGITS:
        raise NotJson(f"a number of {len(digits)} digits")
    return float(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(number := _number(digits)):
        raise NotJson(f"the number {digits[:_SHOWN]}, which is beyond what a number of 64 bits holds")
    return number


def _constant(name: str) -> NoReturn:
    raise NotJson(f"{name}, which is no number")


_NESTED = {dict, list}


def _check_depth(value: Any) -> None:
    """Level by level, since recursion is what deep nesting breaks."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            if isinstance(container, dict):
                below += (member for member in container.values() if isinstance(member, (dict, list)))
            elif not _NESTED.isdisjoint(map(type, container)):
                below += (member for member in container if isinstance(member, (dict, list)))
        if not below:
            return
        level = below
    raise NotJson(f"lists or objects within each other, deeper than {_MAX_DEPTH}")
