"""A footer's bytes, walked without making an object of each: its schema, its row groups, and what its column chunks say.

The fields are those of https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Container
from functools import cache
from typing import Any

import numpy as np

from ..errors import NotParquet
from .thrift import (
    BINARY,
    BOOL,
    I32,
    I64,
    INTEGER,
    LIST,
    MOST_NESTED,
    STRUCT,
    VARINT,
    Malformed,
    field_header,
    fields,
    header,
    integers,
    list_of,
    matcher,
    members,
    skip,
    text,
)

# For a list other than row groups. Arrow takes 300 bytes for an element of a schema, which may be 3 bytes of the footer.
_MOST_MEMBERS = 200_000
# Numbers that are kept of each column chunk.
SAID = 4
_FIVE_ZEROS = (b"\0",) * 5
ENCRYPTED = -(1 << 63)
CURE = "Leave this file out of --input, or write it again"


def refused(uri: str, part: str, expected: str, found: str) -> NotParquet:
    return NotParquet(f"{uri} has a {part} that no honest file has", expected=expected, found=found, cure=CURE)


def nested_too_deep(uri: str) -> NotParquet:
    return refused(uri, "schema", f"{MOST_NESTED} levels at most", "more")


def schema_of(raw: Any) -> tuple[int, int]:
    """A footer's schema, a list in depth-first order: how many elements, and where they begin. Raises `Malformed`."""
    found, _ = fields(raw, 0, {(2, LIST)})
    if (2, LIST) not in found:
        raise Malformed
    return _structs(raw, found[2, LIST])


def _structs(raw: Any, at: int) -> tuple[int, int]:
    """How many there are in a list that has to be one of structs, and where the first is."""
    _members_are(raw, at, STRUCT)
    count, _, at = list_of(raw, at)
    return count, at


def check_nesting(uri: str, raw: Any) -> None:
    """Raises `NotParquet` where the schema is nested too deep: each element has its children's count."""
    left: list[int] = []
    try:
        count, at = schema_of(raw)
        for _ in range(count):
            element, at = fields(raw, at, {(5, I32)})
            if left:
                left[-1] -= 1
            left.append(element.get((5, I32), 0))
            while left and left[-1] <= 0:
                left.pop()
            if len(left) > MOST_NESTED:
                raise nested_too_deep(uri)
    except Malformed as error:
        raise malformed(uri) from error


def malformed(uri: str) -> NotParquet:
    return refused(uri, "footer", "Thrift", "what is none")


def index_row_groups(uri: str, raw: Any) -> array[int]:
    """Where the list of columns of each row group begins. Raises `NotParquet` where the footer is malformed, or has more
    members than an honest one.
    """
    groups, last, at = array("Q"), 0, 0
    try:
        while True:
            last, kind, at = field_header(raw, at, last)
            if not kind:
                return groups
            if kind == LIST and last in (2, 4, 5, 7):
                count, first = _structs(raw, at)
                if last != 4:
                    if count > _MOST_MEMBERS:
                        raise refused(uri, "footer", f"lists of {_MOST_MEMBERS:,} members at most", f"{count:,}")
                elif groups:
                    raise Malformed
                else:
                    at = first
                    for _ in range(count):
                        at = _row_group(raw, at, groups)
                    continue
            at = skip(raw, at, kind)
    except (Malformed, IndexError) as error:
        raise malformed(uri) from error


def _row_group(raw: Any, at: int, groups: array[int]) -> int:
    """Its end."""
    last, columns = 0, False
    while True:
        last, kind, at = field_header(raw, at, last)
        if not kind:
            if not columns:
                raise Malformed
            return at
        if (last, kind) == (1, LIST):
            if columns:
                raise Malformed
            columns = True
            groups.append(at)
            count, at = _structs(raw, at)
            ordinary = _ordinary_column()
            for _ in range(count):
                match = ordinary(raw, at)
                at = match.end() if match else _column(raw, at)[1]
        else:
            if (last, kind) == (4, LIST):
                _structs(raw, at)
            at = skip(raw, at, kind)


@cache
def _ordinary_column() -> Callable[..., re.Match[bytes] | None]:
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


def column_chunks(uri: str, raw: bytes, at: int) -> array[int]:
    """For each column in the row group whose columns begin at `at`: the chunk's first byte, its length, its values, its
    bytes unpacked.
    """
    texts, unusual, ordinary = list[bytes](), dict[int, list[int]](), _ordinary_column()
    try:
        count, at = _structs(raw, at)
        for column in range(count):
            match = ordinary(raw, at)
            if match is not None:
                at = match.end()
                texts += match.group(1, 2, 3, 4, match.lastindex or 0)
            else:
                about, at = _column(raw, at)
                if about is None:
                    about = {(5, I64): ENCRYPTED}
                unusual[column] = [about.get((of, I64), 0) for of in (5, 6, 7, 9, 11)]
                texts += _FIVE_ZEROS
    except Malformed as error:
        raise malformed(uri) from error
    said = integers(b"".join(texts)).reshape(-1, 5)
    for column, numbers in unusual.items():
        said[column] = numbers
    values, unpacked, length, start, dictionary = said.T
    # As Arrow does, since some writers of old set it to 0 or to the end.
    first = np.where((dictionary > 0) & (dictionary < start), dictionary, start)
    return array("q", np.stack([first, length, values, unpacked], axis=1).tobytes())


def codecs_and_nulls(uri: str, raw: bytes, at: int, wanted: Container[int]) -> dict[int, tuple[int, int | None]]:
    """The codec's number and the nulls of each of the `wanted` columns, by its number, in the row group whose columns begin at
    `at`; None for nulls that are not recorded. Columns that are encrypted are left out.
    """
    found, ordinary = dict[int, tuple[int, int | None]](), _ordinary_column()
    try:
        count, at = _structs(raw, at)
        for column in range(count):
            if column not in wanted:
                match = ordinary(raw, at)
                at = match.end() if match else _column(raw, at)[1]
                continue
            chunk, at = fields(raw, at, {(3, STRUCT), (8, STRUCT)})
            if (3, STRUCT) not in chunk or (8, STRUCT) in chunk:
                continue
            about, _ = fields(raw, chunk[3, STRUCT], {(4, I32), (12, STRUCT)})
            nulls = -1
            if (12, STRUCT) in about:
                nulls = fields(raw, about[12, STRUCT], {(3, I64)})[0].get((3, I64), -1)
            found[column] = about.get((4, I32), -1), nulls if nulls >= 0 else None
    except Malformed as error:
        raise malformed(uri) from error
    return found


def _column(raw: Any, at: int) -> tuple[dict[tuple[int, int], int] | None, int]:
    """What a ColumnChunk records about itself, and where it ends; None where it is encrypted."""
    found, end = fields(raw, at, {(3, STRUCT), (8, STRUCT)})
    if (8, STRUCT) in found:
        return None, end
    if (3, STRUCT) not in found:
        raise Malformed
    about, _ = fields(raw, found[3, STRUCT], _ASKED)
    for name, kind in ((2, I32), (3, BINARY), (8, STRUCT), (13, STRUCT)):
        if (name, LIST) in about:
            _members_are(raw, about[name, LIST], kind)
    for name, kind in ((16, I64), (17, I32)):  # statistics of sizes, and of places on the earth
        if (name, STRUCT) in about:
            lists, _ = fields(raw, about[name, STRUCT], _LISTS)
            for at_list in lists.values():
                _members_are(raw, at_list, kind)
    return about, end


def _members_are(raw: Any, at: int, kind: int) -> None:
    """Thrift's own readers of a known list do not ask what its members claim to be."""
    count, claimed, _ = list_of(raw, at)
    if count and claimed != kind:
        raise Malformed


_LISTS = frozenset({(2, LIST), (3, LIST)})


_ASKED = frozenset(
    {(of, I64) for of in (5, 6, 7, 9, 11)} | {(of, LIST) for of in (2, 3, 8, 13)} | {(16, STRUCT), (17, STRUCT)}
)
