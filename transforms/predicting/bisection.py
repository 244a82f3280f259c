"""Runs batches through the predictor when some of their rows fail, or when they are too large for memory. No Beam.

When a batch fails, the rows that cannot be fed to any model (nulls, lists of another length, values that no cast may change)
are found at once and left out. If the rest still fails, it is cut in two: the left part has the largest power of two of rows
that is less than all of them. This continues down to single rows. A batch that is too large is cut the same way, and so are
later batches: its size is remembered. Predictions' bits depend on these pieces, which follow from the planned batches, the rows
that fail, and `Bisection.splits`, as in `pieces`. The cause of a failure must be in the rows themselves: a row that fails only
together with others, as lists of unequal lengths do, fails the job.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from ..errors import DataError, row_span
from ..output.bad_rows import BadRow
from .predictor import BatchTooLarge, Predictor


class Bisection:
    """Rows of one file, batch after batch, as predictions in their order.

    `on_bad` takes each row that fails, a batch's in any order; without it the first one ends the job. `batch_rows` is the
    planned size, and `most_rows`, a power of two or less of it, that of a file with large rows.
    After a batch, `splits` says where other than the planned size ruled: from row (inclusive), at most so many rows.
    """

    def __init__(
        self,
        predictor: Predictor,
        where: str,
        batch_rows: int,
        on_bad: Callable[[BadRow], None] | None = None,
        most_rows: int | None = None,
    ) -> None:
        self._predictor, self._where, self._batch_rows, self._on_bad = predictor, where, batch_rows, on_bad
        self._most_rows = most_rows or batch_rows
        self.splits: list[tuple[int, int]] = []
        self.batches = self.halved = self.bad_rows = self.predicted_rows = 0

    def __call__(self, batch: pa.RecordBatch, first_row: int) -> Iterator[pa.RecordBatch]:
        """Raises `DataError` naming the row, and anything that `on_bad` raises."""
        return self._node(batch, range(first_row, first_row + batch.num_rows), self._predictor.limit.rows)

    def _node(
        self, batch: pa.RecordBatch, numbers: Sequence[int], limit_before: int | None, *, screened: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """`numbers` are the rows' in the file; `fit` is whether those that no model can be fed with have been left out."""
        rows, row = batch.num_rows, numbers[0] if numbers else 0
        most = self._most(row)
        failure: DataError | None = None
        if rows <= most:
            try:
                result = self._predictor(batch, self._where, row)
            except BatchTooLarge as error:
                self.halved += 1
                if rows > 1 or most > 1:
                    self._predictor.limit.lower(half(rows) if rows > 1 else 1)
                    yield from self._node(batch, numbers, limit_before, screened=screened)
                    return
                # That row alone is to blame: those after it are not to pay for it.
                self._predictor.limit.restore(limit_before)
                failure = error
            except DataError as error:
                failure = error
            else:
                self.batches += 1
                self.predicted_rows += rows
                yield result
                return
            if not rows:
                raise failure
            if self._on_bad is None:
                raise self._first_failure(batch, row, failure) from failure
            if rows == 1:
                self._add(numbers, batch, {0: str(failure)}, failure.stage)
                return
            unfit = None if screened or isinstance(failure, BatchTooLarge) else self._unfit(batch, row)
            screened = screened or unfit is not None
            if unfit:
                self._add(numbers, batch, unfit, "features")
                keep = np.ones(rows, np.bool_)
                keep[list(unfit)] = False
                if keep.any():
                    rest, left_over = batch.filter(pa.array(keep)), np.asarray(numbers)[keep].tolist()
                    yield from self._node(rest, left_over, limit_before, screened=True)
                return
        bad_before, left = self.bad_rows, half(rows)
        yield from self._node(batch.slice(0, left), numbers[:left], limit_before, screened=screened)
        yield from self._node(batch.slice(left), numbers[left:], limit_before, screened=screened)
        if failure is not None and self.bad_rows == bad_before:
            raise _together(failure, self._where, row, numbers[-1] + 1 - row) from failure

    def _unfit(self, batch: pa.RecordBatch, row: int) -> dict[int, str] | None:
        """None where a function fails on the batch: the rows are then unknown."""
        try:
            return self._predictor.unfit(batch, self._where, row)
        except DataError:
            return None

    def _add(self, numbers: Sequence[int], batch: pa.RecordBatch, errors: dict[int, str], stage: str) -> None:
        assert self._on_bad is not None
        for i, error in sorted(errors.items()):
            self.bad_rows += 1
            self._on_bad(BadRow(self._where, numbers[i], stage, error, batch, i))

    def _most(self, row: int) -> int:
        """Rows that a batch may have that begins here; noted where it is another number than before."""
        most = min(self._predictor.limit.rows or self._most_rows, self._most_rows)
        if self.splits and self.splits[-1][0] == row:
            self.splits.pop()
        if most != (self.splits[-1][1] if self.splits else self._batch_rows):
            self.splits.append((row, most))
        return most

    def _first_failure(self, batch: pa.RecordBatch, row: int, error: DataError) -> DataError:
        """The first row's failure, found in as many calls as the batch's rows have binary digits."""
        first_row, rows, confirmed = row, batch.num_rows, batch.num_rows == 1
        while batch.num_rows > 1:
            left = half(batch.num_rows)
            failure = self._failure(batch.slice(0, left), row)
            if failure is None:
                row, batch, confirmed = row + left, batch.slice(left), False
            else:
                error, batch, confirmed = failure, batch.slice(0, left), True
        if not confirmed:
            failure = self._failure(batch, row)
            if failure is None:
                return _together(error, self._where, first_row, rows)
            error = failure
        return _naming(error, self._where, row)

    def _failure(self, batch: pa.RecordBatch, row: int) -> DataError | None:
        try:
            self._predictor(batch, self._where, row)
        except DataError as error:
            return error
        return None


def half(rows: int) -> int:
    """The largest power of two below `rows`, which is 2 or more."""
    return 1 << ((rows - 1).bit_length() - 1)


def pieces(
    first_row: int,
    rows: int,
    batch_rows: int,
    splits: Sequence[tuple[int, int]],
    bad: Collection[int] | Mapping[int, str],
) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each batch that a shard of these bad rows was predicted in, in order; `bad` may map them to their
    stages. Rows of the stage "features" are passed over, and those on both sides of one may be in one batch.
    """
    stages = bad if isinstance(bad, Mapping) else dict.fromkeys(bad, "model")

    def within(numbers: Sequence[int], screened: bool) -> Iterator[tuple[int, int]]:
        most = next((most for start, most in reversed(splits) if start <= numbers[0]), batch_rows)
        found = {stages[number] for number in numbers if number in stages}
        if len(numbers) <= most and not found:
            yield numbers[0], len(numbers)
        elif len(numbers) == 1:
            return
        elif len(numbers) <= most and not screened and "preprocess" not in found:
            if kept := [number for number in numbers if stages.get(number) != "features"]:
                yield from within(kept, True)
        else:
            left = half(len(numbers))
            yield from within(numbers[:left], screened)
            yield from within(numbers[left:], screened)

    for row in range(first_row, first_row + rows, batch_rows):
        yield from within(range(row, min(row + batch_rows, first_row + rows)), False)


def _naming(error: DataError, where: str, row: int) -> DataError:
    """The failure of one row, by its number in the file."""
    kind = DataError if isinstance(error, BatchTooLarge) else type(error)
    named = re.search(rf"\b[Rr]ow {row}\b", error.what) is not None and where in error.what
    what = error.what if named else f"Row {row} (counted from 0) of {where} cannot be predicted: {error.what}"
    again = kind(what, expected=error.expected, found=error.found, cure=error.cure)
    again.stage = error.stage
    return again


def _together(error: DataError, where: str, row: int, rows: int) -> DataError:
    again = DataError(
        f"In {where}, {row_span(row, row + rows)} fail together, and none of them alone: {error.what}",
        expected=error.expected,
        found=error.found,
        cure="What differs between them must not: pad lists of unequal length (--pad); where it passes by itself, run "
        "the same command again",
    )
    again.stage = error.stage
    return again
