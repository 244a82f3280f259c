"""A footer's bytes, walked without making an object of each: its schema, its row groups, and what its column chunks say.

The fields are those of https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

from array import array
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NotParquet
from .column_chunks import NUMBERS, column, column_chunks, members_are, ordinary_column
from .layouts import Integers, StructsInLists
from .thrift import I32, I64, LIST, MOST_NESTED, STRUCT, Malformed, field_header, fields, list_of, skip

# For a list other than row groups. Arrow takes 300 bytes for an element of a schema, which may be 3 bytes of the footer.
_MOST_MEMBERS = 200_000
# A shorter list is passed over at once.
_MANY = 64
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
    members_are(raw, at, STRUCT)
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


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Of each row group, where its list of columns begins in the footer; and `NUMBERS` of all chunks, up to `ends`."""

    at: array[int]
    numbers: array[int]
    ends: array[int]

    def count(self, row_group: int) -> int:
        """Of its chunks."""
        start = self.ends[row_group - 1] if row_group else 0
        return (self.ends[row_group] - start) // len(NUMBERS)

    def chunks(self, row_groups: range, count: int) -> tuple[Integers, Integers, Integers, Integers]:
        """The chunks' first bytes, lengths, values, and bytes unpacked, by row group and column; each row group has `count`."""
        end = self.ends[row_groups[-1]] if row_groups else 0
        numbers = self.numbers[end - len(row_groups) * count * len(NUMBERS) : end]
        said = np.array(numbers, np.int64).reshape(len(row_groups), count, len(NUMBERS))
        values, unpacked, length, data, dictionary = np.moveaxis(said, -1, 0)
        # As Arrow does, since some writers of old set it to 0 or to the end.
        return np.where((dictionary > 0) & (dictionary < data), dictionary, data), length, values, unpacked


def index_row_groups(uri: str, raw: bytes) -> RowGroups:
    """Raises `NotParquet` where the footer is malformed, or has more members than an honest one."""
    groups: RowGroups | None = None
    others = StructsInLists(raw, lambda at: (skip(raw, at, STRUCT), (), True), ({},), I64)
    last = at = 0
    try:
        while True:
            last, kind, at = field_header(raw, at, last)
            if not kind:
                return groups or RowGroups(array("Q"), array("q"), array("Q"))
            if kind == LIST and last in (2, 4, 5, 7):
                count, first = _structs(raw, at)
                if last != 4:
                    if count > _MOST_MEMBERS:
                        raise refused(uri, "footer", f"lists of {_MOST_MEMBERS:,} members at most", f"{count:,}")
                    if count >= _MANY:
                        at = others.read(first, count, array("q"))
                        continue
                elif groups:
                    raise Malformed
                else:
                    at, groups = _row_groups(raw, first, count)
                    continue
            at = skip(raw, at, kind)
    except (Malformed, IndexError) as error:
        raise malformed(uri) from error


def _row_groups(raw: bytes, at: int, count: int) -> tuple[int, RowGroups]:
    """Their end, and they."""
    groups, chunks = RowGroups(array("Q"), array("q"), array("Q")), column_chunks(raw)
    for _ in range(count):
        last, columns = 0, False
        while True:
            last, kind, at = field_header(raw, at, last)
            if not kind:
                break
            if (last, kind) == (1, LIST):
                if columns:
                    raise Malformed
                columns = True
                groups.at.append(at)
                of_group, at = _structs(raw, at)
                at = chunks.read(at, of_group, groups.numbers)
                groups.ends.append(len(groups.numbers))
            else:
                if (last, kind) == (4, LIST):
                    _structs(raw, at)
                at = skip(raw, at, kind)
        if not columns:
            raise Malformed
    return at, groups


def codecs_and_nulls(uri: str, raw: bytes, at: int, wanted: Container[int]) -> dict[int, tuple[int, int | None]]:
    """The codec's number and the nulls of each of the `wanted` columns, by its number, in the row group whose columns begin at
    `at`; None for nulls that are not recorded. Columns that are encrypted are left out.
    """
    found, ordinary = dict[int, tuple[int, int | None]](), ordinary_column()
    try:
        count, at = _structs(raw, at)
        for number in range(count):
            if number not in wanted:
                match = ordinary(raw, at)
                at = match.end() if match else column(raw, at)[1]
                continue
            chunk, at = fields(raw, at, {(3, STRUCT), (8, STRUCT)})
            if (3, STRUCT) not in chunk or (8, STRUCT) in chunk:
                continue
            about, _ = fields(raw, chunk[3, STRUCT], {(4, I32), (12, STRUCT)})
            nulls = -1
            if (12, STRUCT) in about:
                nulls = fields(raw, about[12, STRUCT], {(3, I64)})[0].get((3, I64), -1)
            found[number] = about.get((4, I32), -1), nulls if nulls >= 0 else None
    except Malformed as error:
        raise malformed(uri) from error
    return found
