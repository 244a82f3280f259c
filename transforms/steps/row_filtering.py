"""Rows of a shard that `--where` leaves out, counted for each input file, and the rows that each batch keeps. No Beam."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

from ..bounded_json import parse_json
from ..columns.where import RowFilter

FILTERED, BATCH_KEPT = "headrace.filtered_rows", "headrace.batch_kept"
_MOST_BATCHES = 4096


class ShardFiltering:
    """The filtering of one shard. `left_out` are rows of each of its parts."""

    def __init__(self, where: RowFilter | None, parts: int) -> None:
        self._where = where
        self.left_out = [0] * parts
        self._batches: list[list[tuple[int, int]]] = [[] for _ in range(parts)]
        self._noted = 0

    def __call__(self, part: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of that part's next batch that stay."""
        if self._where is None:
            return batch
        kept = self._where(batch)
        self.left_out[part] += batch.num_rows - kept.num_rows
        if self._noted < _MOST_BATCHES:
            self._batches[part].append((batch.num_rows, kept.num_rows))
            self._noted += 1
        return kept

    def key_values(self) -> dict[str, str]:
        """The metadata for the prediction file: with rows left out, only they show where a batch's rows begin."""
        if self._where is None:
            return {}
        return {FILTERED: str(sum(self.left_out)), BATCH_KEPT: json.dumps(self._batches)}


def batches_kept(key_values: Mapping[bytes, bytes], part: int) -> list[tuple[int, int]]:
    """For the first `_MOST_BATCHES` batches of the part's file, in their order: the rows that were predicted and those that
    stayed. Raises `ValueError` where the file does not record them.
    """
    try:
        batches = [(rows, kept) for rows, kept in parse_json(key_values[BATCH_KEPT.encode()])[part]]
        if not all(type(rows) is type(kept) is int and 0 <= kept <= rows for rows, kept in batches):
            raise ValueError(f"{BATCH_KEPT} holds other than counts of rows")
        return batches
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{BATCH_KEPT} is missing or damaged") from error
