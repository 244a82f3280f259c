"""Rows of a file that a table's log marks as deleted: the file is read, and its rows are counted, as if they were not in it.

Its version then says so, since another set of deleted rows makes it another input.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from ..storage.store import ObjectRef

Positions: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
"""Numbers of rows, from 0, sorted, each once."""
NONE: Positions = np.empty(0, np.int64)
_MARKED = re.compile(r"(?P<stored>.*);deleted=(?P<rows>\d+):[0-9a-f]{12}", re.DOTALL)


def pack_positions(positions: Positions) -> bytes:
    return zlib.compress(np.diff(positions, prepend=0).astype("<i8").tobytes()) if len(positions) else b""


def unpack_positions(packed: bytes) -> Positions:
    return np.cumsum(np.frombuffer(zlib.decompress(packed) if packed else b"", "<i8"), dtype=np.int64)


def without_rows(ref: ObjectRef, deleted: Positions) -> ObjectRef:
    """The file as it is without these rows."""
    if not len(deleted):
        return ref
    digest = hashlib.sha256(deleted.astype("<i8").tobytes()).hexdigest()[:12]
    return replace(ref, version=f"{ref.version};deleted={len(deleted)}:{digest}")


def stored_object(ref: ObjectRef) -> ObjectRef:
    """The object in the store, which still has the deleted rows."""
    return replace(ref, version=stored_version(ref.version))


def stored_version(version: str) -> str:
    match = _MARKED.fullmatch(version)
    return match["stored"] if match else version


def deleted_count(version: str) -> int:
    match = _MARKED.fullmatch(version)
    return int(match["rows"]) if match else 0


def live_rows(row_group_rows: Sequence[int], deleted: Positions) -> list[int]:
    """The rows that are left in each row group."""
    ends = np.cumsum([0, *row_group_rows])
    gone = np.diff(np.searchsorted(deleted, ends))
    return [rows - int(count) for rows, count in zip(row_group_rows, gone, strict=True)]


def deleted_in(row_group_rows: Sequence[int], row_groups: tuple[int, int], deleted: Positions) -> Positions:
    """The deleted rows in row groups from the first (inclusive) to the second (exclusive), counted from there."""
    first, end = (sum(row_group_rows[:group]) for group in row_groups)
    start, stop = np.searchsorted(deleted, [first, end])
    return deleted[start:stop] - first


def drop_rows(batches: Iterator[pa.RecordBatch], deleted: Positions) -> Iterator[pa.RecordBatch]:
    """The batches' rows except for those, counted from the first batch's first."""
    at = 0
    for batch in batches:
        start, stop = np.searchsorted(deleted, [at, at + batch.num_rows])
        keep = np.ones(batch.num_rows, np.bool_)
        keep[deleted[start:stop] - at] = False
        at += batch.num_rows
        if keep.any():
            yield batch if start == stop else batch.filter(pa.array(keep))
