"""Where the column chunks of a file are: what is read of it, and how far that was checked."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, fields

import numpy as np

from .layouts import Bools, Integers


@dataclass(slots=True)
class Chunk:
    """Bytes `start` to `end` (exclusive) of a column chunk. `repeated` is whether each row gets a copy of its value in the
    dictionary. The other fields are for the reader: up to `next_read` the chunk is read, and up to `next_header` its headers
    are checked, which leaves so many values; sizes, unpacked and packed, of its dictionary and its last page.
    """

    start: int
    end: int
    values: int
    repeated: bool
    next_read: int = 0
    next_header: int = 0
    values_left: int = 0
    dictionary: tuple[int, int] = (0, 0)
    page: tuple[int, int] = (0, 0)

    def begin(self) -> None:
        self.next_read = self.next_header = self.start
        self.values_left = self.values
        self.dictionary = self.page = (0, 0)


@dataclass(frozen=True, slots=True)
class GroupChunks:
    """The chunks with values of one row group, in the order of their bytes; each attribute has one entry for each of them.
    `columns` are the numbers of their leaves.
    """

    starts: Integers
    ends: Integers
    values: Integers
    repeated: Bools
    columns: Integers

    def each(self) -> list[Chunk]:
        of_each = (each.tolist() for each in (self.starts, self.ends, self.values, self.repeated))
        return [Chunk(*chunk) for chunk in zip(*of_each, strict=True)]

    def of(self, some: Integers | Bools) -> GroupChunks:
        return GroupChunks(*(getattr(self, each.name)[some] for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of some columns in some row groups of a file: `groups` are those with values, by row group; `empty` has the
    start and length of those without.
    """

    groups: list[GroupChunks]
    empty: Set[tuple[int, int]]

    @property
    def largest(self) -> int:
        """Bytes in the row group that has most of them."""
        return max((int((group.ends - group.starts).sum()) for group in self.groups), default=0)

    @property
    def longest(self) -> int:
        """Bytes of the longest chunk."""
        return max((int((group.ends - group.starts).max(initial=0)) for group in self.groups), default=0)

    def of(self, column: int) -> list[Chunk]:
        return [chunk for group in self.groups for chunk in group.of(group.columns == column).each()]

    def without(self, columns: Set[int]) -> Chunks:
        others = [
            group.of(np.array([c not in columns for c in group.columns.tolist()], np.bool_)) for group in self.groups
        ]
        return Chunks(others, self.empty)

    def in_order(self) -> list[Chunk]:
        return sorted((chunk for group in self.groups for chunk in group.each()), key=lambda chunk: chunk.start)
