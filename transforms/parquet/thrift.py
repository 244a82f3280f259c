"""Thrift's compact protocol, as far as Parquet's footers and page headers need it.

Work and memory grow with the bytes that are read, whatever these claim: nothing recurses, only the requested fields are kept,
and nesting is bounded. Ordinary bytes are matched by regular expressions, which run a part of the same grammar in C; the code
below reads the others (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from typing import Any

MOST_NESTED = 128
BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13
BOOLS, INTEGERS = (1, 2), (I16, I32, I64)
_BITS = {I16: 16, I32: 32, I64: 64}
_FIXED_BYTES = {1: 1, 2: 1, BYTE: 1, DOUBLE: 8, UUID: 16}
Field = tuple[int, int]
"""A field's id and type: Thrift passes over a field of another type."""


class Malformed(Exception):
    """The bytes are not Thrift, or end too early."""


def varint(data: Any, at: int) -> tuple[int, int]:
    """The number, not cut to any width, and where it ends."""
    value = data[at]
    at += 1
    if value > 127:
        value, shift = value & 127, 7
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 63:
                raise Malformed
    return value, at


def integer(value: int, kind: int) -> int:
    """Cut to the type's width, as Thrift's own reader does."""
    value &= (1 << _BITS[kind]) - 1
    return (value >> 1) ^ -(value & 1)


def number(text: bytes, kind: int) -> int:
    """An integer of that type; the text is exactly its bytes."""
    size = len(text)
    if size == 1:
        value = text[0]
    elif size == 2:
        value = text[0] & 127 | text[1] << 7
    elif size == 3:
        value = text[0] & 127 | (text[1] & 127) << 7 | text[2] << 14
    else:
        return integer(varint(text, 0)[0], kind)
    return (value >> 1) ^ -(value & 1)


def field_header(data: Any, at: int, last: int) -> tuple[int, int, int]:
    """The id of the field after the one called `last`, its type, which is 0 at the struct's end, and where its value begins.
    Raises `IndexError` or `Malformed`.
    """
    head = data[at]
    if head > 15:
        return last + (head >> 4), head & 15, at + 1
    if not head:
        return last, 0, at + 1
    value, at = varint(data, at + 1)
    return (integer(value, I32) + 0x8000 & 0xFFFF) - 0x8000, head & 15, at


def fields(data: Any, at: int, asked: Container[Field]) -> tuple[dict[Field, int], int]:
    """The `asked` fields of a struct, and where the struct ends.

    An integer field gives its value; a list or struct gives where it begins. Raises `Malformed`, also for a repeated field.
    """
    found: dict[Field, int] = {}
    last = 0
    try:
        while True:
            last, kind, at = field_header(data, at, last)
            if not kind:
                return found, at
            if (name := (last, kind)) in asked:
                if name in found:
                    raise Malformed
                if kind in _BITS:
                    value, at = varint(data, at)
                    found[name] = integer(value, kind)
                    continue
                found[name] = at
            at = _skip(data, at, kind)
    except (IndexError, KeyError) as error:
        raise Malformed from error


def list_of(data: Any, at: int) -> tuple[int, int, int]:
    """How many members a list has, of what type, and where the first begins. Raises `Malformed`."""
    try:
        head = data[at]
        at += 1
        count = head >> 4
        if count == 15:
            count, at = varint(data, at)
        return count, head & 15, at
    except IndexError as error:
        raise Malformed from error


def _skip(data: Any, at: int, kind: int) -> int:
    """Past a field's value, by a stack of what is open: how many values are left of a list, -1 for a struct, and their type."""
    if kind in BOOLS:  # the field's type says which
        return at
    open_: list[list[int]] = []
    size = len(data)
    while True:
        if kind in _BITS:
            while data[at] > 127:
                at += 1
            at += 1
        elif kind == BINARY:
            count, at = varint(data, at)
            at += count
        elif kind == STRUCT:
            open_.append([-1, 0])
        elif kind in (LIST, SET):
            count, member, at = list_of(data, at)
            if member in _FIXED_BYTES:
                at += count * _FIXED_BYTES[member]
            else:
                open_.append([count, member])
        elif kind == MAP:
            count, at = varint(data, at)
            if count:
                kinds = data[at]
                at += 1
                open_.append([2 * count, (kinds >> 4) << 4 | kinds & 15])
        else:
            at += _FIXED_BYTES[kind]
        if at > size or len(open_) > MOST_NESTED:
            raise Malformed
        # The next value: of the innermost that is not at its end.
        while open_:
            top = open_[-1]
            left, member = top
            if left < 0:
                head = data[at]
                at += 1
                kind = head & 15
                if kind in BOOLS:
                    if head <= 15:
                        _, at = varint(data, at)
                    continue
                if kind:
                    if head <= 15:
                        _, at = varint(data, at)
                    break
            elif left:
                top[0] = left - 1
                # A map's keys and values take turns.
                kind = member if member < 16 else (member >> 4 if left % 2 == 0 else member & 15)
                if kind == STRUCT and data[at] == 0:  # an empty struct: a hostile list has millions
                    run = len(_ZEROS.match(data, at, min(size, at + left)).group()) if member < 16 else 1  # type: ignore[union-attr]
                    at, top[0] = at + run, left - run
                    continue
                break
            open_.pop()
        else:
            return at


_ZEROS = re.compile(rb"\0*+")


def skip(data: Any, at: int, kind: int) -> int:
    """Where the value of a field of that type ends. Raises `Malformed`."""
    try:
        return _skip(data, at, kind)
    except (IndexError, KeyError) as error:
        raise Malformed from error


# Parts of regular expressions, which match ordinary input in C: numbers, short texts, ids that are in their field's header.
# Compiling takes time in proportion to their length: texts are bounded.
VARINT = rb"[\x80-\xff]{0,9}+[\x00-\x7f]"
INTEGER = rb"[" + b"".join(re.escape(bytes([n << 4 | kind])) for kind in _BITS for n in range(1, 16)) + rb"]" + VARINT
BOOL = rb"[" + b"".join(re.escape(bytes([n << 4 | kind])) for kind in (1, 2) for n in range(1, 16)) + rb"]"


def header(kind: int) -> bytes:
    """The header of a field of that type, or of a list of 1 to 14 such members."""
    return rb"[" + b"".join(re.escape(bytes([n << 4 | kind])) for n in range(1, 15)) + rb"]"


def text(most: int) -> bytes:
    """A length of at most so many bytes, and the bytes."""
    return rb"(?:" + rb"|".join(rb"\x%02x[\x00-\xff]{%d}" % (n, n) for n in range(most + 1)) + rb")"


def members(kind: int, member: bytes, most: int) -> bytes:
    """A list of that type: its header and at most so many members."""
    return rb"(?:" + rb"|".join(rb"\x%02x(?:%b){%d}" % (n << 4 | kind, member, n) for n in range(most + 1)) + rb")"


def matcher(pattern: bytes) -> Callable[..., re.Match[bytes] | None]:
    return re.compile(pattern).match
