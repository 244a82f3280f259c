"""Parsers written for local files, run over a remote object with few round trips."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from ...errors import CorruptModel
from ...storage import ObjectRef, Store

BLOCK = 4096
# A parser that wants more than this at once has believed a hostile length: no index or header is as large.
LARGEST_READ = 64 << 20
# A longer read passes through and is not kept: it is content, read once, and no index.
_KEPT = 1 << 20
# Requests in flight at once: they are short, so the round trip is all they cost.
_CONNECTIONS = 64


class NotFetched(Exception):
    """A parser met bytes that are not here yet; they are noted in `Ranges.wanted`."""


class Ranges:
    """What has been read of one object, in blocks of `BLOCK` bytes; for one thread at a time.

    While `collecting`, a miss is noted and raises `NotFetched`: a caller can continue with other work and fetch everything
    that is missing in one round trip with `fetch_wanted`. Otherwise it is read at once.
    """

    def __init__(self, store: Store, ref: ObjectRef) -> None:
        self._store, self._ref = store, ref
        self._blocks: dict[int, bytes] = {}
        self._pool = ThreadPoolExecutor(_CONNECTIONS, "headrace-ranges")
        self.collecting = False
        self.wanted: set[int] = set()
        self.round_trips = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._blocks.clear()

    @property
    def ref(self) -> ObjectRef:
        return self._ref

    def fetch(self, spans: Iterable[tuple[int, int]]) -> None:
        """Reads what is not here yet of each (offset, length), all in one round trip."""
        blocks: set[int] = set()
        for offset, length in spans:
            stop = min(offset + length, self._ref.size)
            blocks.update(range(max(0, offset) // BLOCK, (stop + BLOCK - 1) // BLOCK))
        self._fetch(blocks)

    def fetch_wanted(self, ahead: int, behind: int = 0) -> bool:
        """Reads the missing blocks, each with the `behind` before it and the `ahead` that follow. False where none was."""
        if not self.wanted:
            return False
        last = (self._ref.size - 1) // BLOCK
        around = range(-behind, 1 + ahead)
        self._fetch({block + i for block in self.wanted for i in around if 0 <= block + i <= last})
        self.wanted.clear()
        return True

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, as far as the object goes. Raises `CorruptModel` above `LARGEST_READ`."""
        length = max(0, min(length, self._ref.size - offset))
        if length > LARGEST_READ:
            raise CorruptModel(
                f"{self._ref.uri} declares a header of {length} bytes",
                expected=f"at most {LARGEST_READ} bytes",
                found="a length that no sound file has",
                cure="Save the model again.",
            )
        if not length:
            return b""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        missing = {block for block in range(first, last + 1) if block not in self._blocks}
        if missing and self.collecting:
            self.wanted |= missing
            raise NotFetched
        if missing and length > _KEPT:
            self.round_trips += 1
            return self._store.read(self._ref, offset, length)
        if missing:
            self._fetch(missing)
        joined = b"".join(self._blocks[block] for block in range(first, last + 1))
        return joined[offset - first * BLOCK : offset - first * BLOCK + length]

    def _fetch(self, blocks: set[int]) -> None:
        runs: list[tuple[int, int]] = []
        # Not a set's difference from the keys, which goes through all of those.
        for block in sorted(block for block in blocks if block not in self._blocks):
            if runs and runs[-1][1] == block:
                runs[-1] = runs[-1][0], block + 1
            else:
                runs.append((block, block + 1))
        if not runs:
            return
        self.round_trips += 1
        for (first, _), data in zip(runs, self._pool.map(self._read_run, runs), strict=True):
            for at in range(0, len(data), BLOCK):
                self._blocks[first + at // BLOCK] = data[at : at + BLOCK]

    def _read_run(self, run: tuple[int, int]) -> bytes:
        offset = run[0] * BLOCK
        return self._store.read(self._ref, offset, min(run[1] * BLOCK, self._ref.size) - offset)


class Resident:
    """Bytes that are in memory already, read as `Ranges` are."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = memoryview(data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.view(offset, length))

    def view(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]


class RangeFile(io.RawIOBase):
    """Bytes `start` (inclusive) to `start + size` (exclusive) of a source as a seekable, read-only binary file."""

    def __init__(self, source: Ranges | Resident, start: int, size: int) -> None:
        self.source, self.size = source, size
        self.start, self._at = start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:
            raise OSError(f"seek to {at}, before the start of the file")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.source.read(self.start + self._at, max(0, min(len(view), self.size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        wanted = self.size - self._at if size is None or size < 0 else min(size, self.size - self._at)
        data = self.source.read(self.start + self._at, max(0, wanted))
        self._at += len(data)
        return data
