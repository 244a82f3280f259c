"""The arrays of a checkpoint as objects of a store: reading one gives its numbers, fetched and unpacked on the way.

So the engine that streams tensors puts them straight into their final memory, be it a process's own, a machine's shared
segment, or what is copied to a GPU. A chunk is packed as one piece: it is fetched a few pieces ahead of its unpacking, and
what is on the way and not yet unpacked stays within the stream's bytes in flight.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any, Self, cast

import numpy as np

from ...errors import CorruptModel
from ...storage import ObjectRef, Store
from ...storage.store import Writer
from ..streaming.tensor_stream import StreamOptions, TensorSlot, numpy_dtype
from .ocdbt import Damaged
from .zarr import SHARD_INDEX_BYTES, ZarrArray

# Bytes that are unpacked apart from their final place, and copied there.
_ASIDE_BYTES = 4 << 20
# Levels of Zstandard up to 19 look back no further.
_WINDOW_BYTES = 8 << 20
# Unpacking takes a second for some 600 MB. So much of one array on the way is as fast from a bucket, at 100 MB/s a connection.
_PIECE_BYTES, _MOST_AHEAD = 4 << 20, 15


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where the chunk is whose first element is at `start`: `length` bytes from `offset` of `source`, or `inline`."""

    start: tuple[int, ...]
    source: ObjectRef | None
    offset: int
    length: int
    inline: bytes = b""


@dataclass(frozen=True, slots=True)
class StoredArray:
    """`ref` is what an `ArrayStore` calls the array, and as large as its numbers."""

    ref: ObjectRef
    array: ZarrArray
    chunks: tuple[Chunk, ...]

    @property
    def slot(self) -> TensorSlot:
        return TensorSlot(
            self.ref.uri, self.array.dtype, self.array.shape, self.ref, 0, self.array.nbytes, undivided=True
        )


class ArrayStore(Store):
    """The store `inner`, and in it `arrays` by the URI of their `ref`. Leaving its `with` block ends its threads."""

    def __init__(self, inner: Store, arrays: Collection[StoredArray], options: StreamOptions) -> None:
        super().__init__(inner.options)
        self.counters = inner.counters
        self._inner, self._arrays = inner, {stored.ref.uri: stored for stored in arrays}
        at_once = max(1, min(options.connections, len(arrays)))
        share = options.in_flight_bytes // at_once
        self._piece = max(1, min(options.piece_bytes, share // 4, _PIECE_BYTES))
        self._ahead = max(1, min(share // self._piece - 1, _MOST_AHEAD))
        self._pool = ThreadPoolExecutor(options.connections, "headrace-chunks")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        stored = self._arrays.get(ref.uri)
        if stored is None:
            self._inner.read_into(ref, offset, buffers)
            return
        (buffer,) = buffers
        if offset or buffer.nbytes != stored.array.nbytes:
            raise ValueError(f"{buffer.nbytes} bytes from {offset} of {ref.uri}, which is read whole")
        # Elements are moved, never looked at.
        kind = np.dtype((np.void, numpy_dtype(stored.array.dtype).itemsize))
        value: Any = np.frombuffer(buffer, kind).reshape(stored.array.shape)
        for chunk in stored.chunks:
            edges = zip(chunk.start, stored.array.chunk, strict=True)
            # With the dots, a value without dimensions is an array, too.
            part = value[(*(slice(at, at + size) for at, size in edges), ...)]
            try:
                with closing(self._pieces(chunk)) as pieces:
                    _read_chunk(_Stored(pieces, chunk.length), stored.array, part)
            except Damaged as error:
                raise CorruptModel(
                    f"Array {ref.uri.rpartition('/')[2]!r} is damaged in {(chunk.source or ref).name}",
                    expected=f"{stored.array.chunk_nbytes} bytes of {stored.array.dtype} in each chunk",
                    found=str(error),
                    cure="Copy the checkpoint again from where it was saved.",
                ) from error

    def _pieces(self, chunk: Chunk) -> Generator[bytes | bytearray, None, None]:
        """The chunk's bytes in their order, asked for some pieces ahead."""
        if chunk.source is None:
            yield chunk.inline
            return
        waiting = deque[Future[bytearray]]()
        try:
            for at in range(0, chunk.length, self._piece):
                size = min(self._piece, chunk.length - at)
                waiting.append(self._pool.submit(self._read, chunk.source, chunk.offset + at, size))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _read(self, source: ObjectRef, offset: int, size: int) -> bytearray:
        data = bytearray(size)
        self._inner.read_into(source, offset, [memoryview(data)])
        return data

    def stat(self, uri: str) -> ObjectRef:
        return self._inner.stat(uri)

    def list(self, folder: str) -> Iterator[ObjectRef]:
        return self._inner.list(folder)

    def create(self, uri: str) -> Writer:
        return self._inner.create(uri)

    def delete(self, ref: ObjectRef) -> None:
        self._inner.delete(ref)


class _Stored:
    """The bytes of a chunk as a file of `left` bytes that is read once, from front to end."""

    def __init__(self, pieces: Generator[bytes | bytearray, None, None], left: int) -> None:
        self._pieces, self.left = pieces, left
        self._piece = memoryview(b"")

    def read(self, size: int) -> memoryview:
        """At most so many bytes; none at the end."""
        if not self._piece and self.left:
            self._piece = memoryview(next(self._pieces))
        found = self._piece[: min(size, self.left)]
        self._piece = self._piece[len(found) :]
        self.left -= len(found)
        return found

    def readinto(self, buffer: memoryview) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def _read_chunk(stored: _Stored, array: ZarrArray, into: Any) -> None:
    import zstandard

    index = SHARD_INDEX_BYTES * array.sharded
    stored.left = length = stored.left - index
    if length < 0:
        raise Damaged(f"{length + index} bytes")
    if not array.packed:
        _scatter(stored.readinto, into, array.chunk)
        more = stored.left
    else:
        unpack = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        try:
            with unpack.stream_reader(cast(IO[bytes], stored), read_across_frames=True) as unpacked:
                _scatter(unpacked.readinto, into, array.chunk)
                more = len(unpacked.read(1))
        except zstandard.ZstdError as error:
            raise Damaged(f"bytes that do not unpack: {error}") from error
    if more:
        raise Damaged("more bytes")
    stored.left = index
    _check_index(stored, length)


def _check_index(stored: _Stored, length: int) -> None:
    """A shard of one piece has it in front, or nowhere."""
    import crc32c

    if not stored.left:
        return
    index = bytearray(SHARD_INDEX_BYTES)
    _exactly(stored.readinto, memoryview(index))
    if struct.unpack("<QQI", index) != (0, length, crc32c.crc32c(index[:16])):
        raise Damaged("an index that does not lead to its only piece")


def _scatter(readinto: Callable[[memoryview], int], into: Any, chunk: tuple[int, ...]) -> None:
    """Puts a chunk's elements where they belong; elements beyond the array's edge are read and dropped."""
    if into.shape == chunk and into.flags.c_contiguous:
        _exactly(readinto, memoryview(into.reshape(-1).view(np.uint8)))
        return
    row = math.prod(chunk[1:]) * into.itemsize
    if row > _ASIDE_BYTES:
        for i in range(chunk[0]):
            beyond = np.empty((0,) * (len(chunk) - 1), into.dtype)
            _scatter(readinto, into[i] if i < len(into) else beyond, chunk[1:])
        return
    rows = _ASIDE_BYTES // row
    for first in range(0, chunk[0], rows):
        aside: Any = np.empty((min(rows, chunk[0] - first), *chunk[1:]), into.dtype)
        _exactly(readinto, memoryview(aside.reshape(-1).view(np.uint8)))
        part = into[first : first + rows]
        part[...] = aside[tuple(slice(0, size) for size in part.shape)]


def _exactly(readinto: Callable[[memoryview], int], buffer: memoryview) -> None:
    while buffer:
        if not (size := readinto(buffer)):
            raise Damaged(f"{buffer.nbytes} bytes too few")
        buffer = buffer[size:]
