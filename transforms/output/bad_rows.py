"""A row that cannot be predicted, on its way to the dead letters."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class BadRow:
    """`row` counts from 0 in `where`; it is the row `index` of `batch`, as that was read, before any function."""

    where: str
    row: int
    stage: str
    error: str
    batch: pa.RecordBatch
    index: int = 0

    @property
    def values(self) -> pa.RecordBatch:
        """The row alone."""
        return self.batch.slice(self.index, 1)
