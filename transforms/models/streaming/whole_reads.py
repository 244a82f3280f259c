"""Objects that are read whole, and small reads that are asked for together."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol, Self

from ...errors import CorruptModel
from ...storage import ObjectRef, Store

_log = logging.getLogger(__name__)


@cache
def say_unchecked(name: str) -> None:
    _log.info("%s: its store knows no checksum of it: TLS and length alone", name)


class Readable(Protocol):
    """The part of a store's interface that reads."""

    def read(self, ref: ObjectRef, offset: int = 0, length: int | None = None) -> bytes: ...


class ReadTogether:
    """Requests the ends of some objects together: one round trip is enough for all. Other reads go to the store.

    `wanted` are objects and the offsets from which on their bytes will be read.
    """

    def __init__(self, store: Store, wanted: Iterable[tuple[ObjectRef, int]]) -> None:
        self._store, wanted = store, list(wanted)
        self._threads = ThreadPoolExecutor(max(1, len(wanted)), thread_name_prefix="headrace-front")
        self._ends = {ref: (start, self._threads.submit(store.read, ref, start)) for ref, start in wanted}

    def read(self, ref: ObjectRef, offset: int = 0, length: int | None = None) -> bytes:
        start, end = self._ends.get(ref, (offset + 1, None))
        if end is None or offset < start:
            return self._store.read(ref, offset, length)
        data = end.result()[offset - start :]
        return data if length is None else data[:length]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)


def read_whole(store: Readable, ref: ObjectRef) -> bytes:
    """The object, checked against its CRC-32C where the store knows it. Raises `CorruptModel`."""
    import crc32c

    data = store.read(ref)
    found = None if ref.crc32c is None else crc32c.crc32c(data)
    if found != ref.crc32c:
        raise CorruptModel(
            f"{ref.name} arrived damaged",
            expected=f"CRC-32C {ref.crc32c:08x} of {ref.size} bytes",
            found=f"{found:08x}",
            cure="Run again; if that does not help, copy the model again from where it was exported.",
        )
    return data
