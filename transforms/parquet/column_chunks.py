"""What a footer says of each column chunk, as bytes: no object is made of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from .layouts import Path, Row, StructsInLists
from .thrift import (
    BINARY,
    BOOL,
    I32,
    I64,
    INTEGER,
    LIST,
    STRUCT,
    VARINT,
    Malformed,
    fields,
    header,
    list_of,
    matcher,
    members,
    number,
    text,
)

ENCRYPTED = -(1 << 63)
# Numbers kept of a chunk: of values, bytes unpacked and packed, and where its data and its dictionary begin.
NUMBERS = (5, 6, 7, 9, 11)
_WITH_DICTIONARY: dict[Path, int] = {(3, field): i for i, field in enumerate(NUMBERS)}
_WITHOUT: dict[Path, int] = {(3, field): i for i, field in enumerate(NUMBERS[:-1])}


def column_chunks(raw: bytes) -> StructsInLists:
    """Reads chunks of rows of `NUMBERS`."""

    def one(at: int) -> tuple[int, Row, bool]:
        match = ordinary_column()(raw, at)
        if match is not None:
            # Without a dictionary, the last is where the data begin.
            return match.end(), [number(each, I64) for each in match.group(1, 2, 3, 4, match.lastindex or 0)], True
        about, end = column(raw, at)
        if about is None:
            return end, [ENCRYPTED, 0, 0, 0, 0], False
        return end, [about.get((field, I64), 0) for field in NUMBERS], True

    return StructsInLists(raw, one, (_WITH_DICTIONARY, _WITHOUT), I64)


@cache
def ordinary_column() -> Callable[..., re.Match[bytes] | None]:
    """A ColumnChunk as programs write it, with its number of values, lengths unpacked and packed, and where its data
    and its dictionary begin. In Python alone a footer of 4,000 of them takes a tenth of a second.
    """
    value = rb"\x15" + VARINT
    # Field 12, after a dictionary's offset or without one.
    statistics = rb"[\x1c\x3c](?:" + INTEGER + rb"|" + BOOL + rb"|" + header(BINARY) + text(32) + rb")*+\x00"
    encodings = header(LIST) + members(STRUCT, value * 3 + rb"\x00", 6)
    sizes = header(STRUCT) + rb"(?:" + INTEGER + rb"|" + header(LIST) + members(I64, VARINT, 4) + rb")*+\x00"
    number = rb"(" + VARINT + rb")"
    about = value + rb"\x19" + members(I32, VARINT, 8) + rb"\x19" + members(BINARY, text(40), 3) + value
    about += rb"\x16" + number + rb"\x16" + number + rb"\x16" + number + rb"\x26" + number
    # An index's offset and a dictionary's; each may be missing. What follows has a larger id than these.
    index = rb"\x16" + VARINT
    about += rb"(?:\x26" + number + rb"|" + index + rb"\x16" + number
    about += rb"|" + index + rb"(?=[\x00\x20-\xff])|(?=[\x00\x30-\xff]))"
    rest = rb"(?:" + INTEGER + rb"|" + encodings + rb"|" + statistics + rb"|" + sizes + rb")*+\x00"
    return matcher(rb"\x26" + VARINT + rb"\x1c" + about + rest + rb"(?:" + INTEGER + rb")*+\x00")


def column(raw: Any, at: int) -> tuple[dict[tuple[int, int], int] | None, int]:
    """What a ColumnChunk records about itself, and where it ends; None where it is encrypted."""
    found, end = fields(raw, at, {(3, STRUCT), (8, STRUCT)})
    if (8, STRUCT) in found:
        return None, end
    if (3, STRUCT) not in found:
        raise Malformed
    about, _ = fields(raw, found[3, STRUCT], _ASKED)
    for name, kind in ((2, I32), (3, BINARY), (8, STRUCT), (13, STRUCT)):
        if (name, LIST) in about:
            members_are(raw, about[name, LIST], kind)
    for name, kind in ((16, I64), (17, I32)):  # statistics of sizes, and of places on the earth
        if (name, STRUCT) in about:
            lists, _ = fields(raw, about[name, STRUCT], _LISTS)
            for at_list in lists.values():
                members_are(raw, at_list, kind)
    return about, end


def members_are(raw: Any, at: int, kind: int) -> None:
    """Thrift's own readers of a known list do not ask what its members claim to be."""
    count, claimed, _ = list_of(raw, at)
    if count and claimed != kind:
        raise Malformed


_LISTS = frozenset({(2, LIST), (3, LIST)})


_ASKED = frozenset(
    {(of, I64) for of in (5, 6, 7, 9, 11)} | {(of, LIST) for of in (2, 3, 8, 13)} | {(16, STRUCT), (17, STRUCT)}
)
