"""Record batches of one number of rows, out of those that Arrow gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from ..nested_arrow import one_batch


def whole_batches(batches: Iterable[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of `rows` after the first `skip` rows: Arrow gives shorter ones where a column's dictionary changes."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        if batch.num_rows == rows and not skip and not held:
            yield batch
            continue
        if skip:
            dropped = min(skip, batch.num_rows)
            skip -= dropped
            batch = batch.slice(dropped)
        held.append(batch)
        count += batch.num_rows
        if count >= rows:
            joined = held[0] if len(held) == 1 else one_batch(held)
            yield joined.slice(0, rows)
            held, count = [joined.slice(rows)] if count > rows else [], count - rows
    if count:
        yield held[0] if len(held) == 1 else one_batch(held)
