"""A shard's measurements for the report. No Beam."""

from __future__ import annotations

import logging
import os
import socket
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from ..storage.store import retries_so_far
from .column_statistics import Column, Columns, decode, encode
from .number_bins import Numbers

STATISTICS = "headrace.statistics"
"""The key of a prediction file's metadata that holds its columns' statistics; see
`headrace.transforms.shards.column_statistics`.
"""


_BATCHES_AT_ONCE = 4096

_log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that predicts shards. `began` (seconds since 1970) and `load_seconds` are about loading the models;
    `retries_before` are requests to stores that this process had repeated until then.
    """

    name: str
    began: float
    load_seconds: float
    retries_before: int


def timed_load(load: Callable[[], Loaded]) -> tuple[Loaded, Process]:
    """Times a load, and records this process as the one that loaded."""
    began, started, retries = time.time(), time.perf_counter(), retries_so_far()
    loaded = load()
    return loaded, Process(f"{socket.gethostname()}:{os.getpid()}", began, time.perf_counter() - started, retries)


@dataclass(frozen=True, slots=True)
class ShardMeasurements:
    """`columns` are the statistics of its predictions; None where they are not known.

    `began` and `ended` are seconds since 1970, `batch_seconds` the time of each batch, and `retries` those of its process
    when the shard ended. Of a shard that this run found done, there are at most columns.
    """

    columns: tuple[Column, ...] | None
    began: float = 0.0
    ended: float = 0.0
    batch_seconds: Numbers = field(default_factory=Numbers)
    process: Process | None = None
    retries: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Small, where a runner moves it: the arrays of many columns take a tenth as text."""
        text = None if self.columns is None else encode(self.columns)[0]
        return _measured, (text, self.began, self.ended, self.batch_seconds, self.process, self.retries)


def _measured(text: str | None, *more: Any) -> ShardMeasurements:
    return ShardMeasurements(known_columns(text), *more)


def known_columns(text: str | None) -> tuple[Column, ...] | None:
    """The columns that a prediction file describes. None also where it holds something else under that name."""
    try:
        return None if text is None else tuple(decode(text))
    except ValueError:
        return None


class ShardMeasuring:
    """Collects while a shard is predicted. If that fails, the shard is reported without its columns: no row is lost by it."""

    def __init__(self, schema: pa.Schema, predictions: Iterable[str]) -> None:
        """`predictions` are the columns of it to describe."""
        self._columns: Columns | None = None
        self._described: tuple[Column, ...] | None = None
        self._began, self._batch_seconds, self._uncounted = time.time(), Numbers(), array("d")
        with self._counting():
            self._columns = Columns(schema, predictions)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Where it fails, nothing more is counted, and the log says why: a fault of ours here must not cost a prediction."""
        try:
            yield
        except Exception:
            self._columns = None
            _log.warning("Predictions could not be counted for the report", exc_info=True)

    def add(self, batch: pa.RecordBatch, seconds: float) -> None:
        """Predictions, and what they took."""
        with self._counting():
            if self._columns is not None:
                self._columns.add(batch)
        self._uncounted.append(seconds)
        if len(self._uncounted) >= _BATCHES_AT_ONCE:
            self._count_seconds()

    def key_values(self) -> dict[str, str]:
        """The metadata for the prediction file; nothing is added afterwards."""
        with self._counting():
            if self._columns is not None:
                text, self._described = self._columns.encode()
                return {STATISTICS: text}
        return {}

    def measurements(self) -> ShardMeasurements:
        self._count_seconds()
        self._batch_seconds.settle()
        return ShardMeasurements(
            self._described, self._began, time.time(), self._batch_seconds, retries=retries_so_far()
        )

    def _count_seconds(self) -> None:
        self._batch_seconds.add(np.frombuffer(self._uncounted))
        self._uncounted = array("d")
