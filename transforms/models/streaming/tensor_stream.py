"""The engine: tensor slots -> joined or split ranges -> their final, aligned buffers, checked.

Formats know nothing of networks, stores nothing of tensors, and this file nothing of formats.

Every byte that has been requested and has not arrived yet counts as in flight. Bytes that have arrived are in their tensor's
own final buffer, which becomes the weight itself. So the memory beyond the weights is bounded by the gaps between joined
neighbours, and by what is read only for a checksum. Nothing waits for `take`: the caller may take in any order. Only with
`host_bytes`, where buffers are on their way to a device, do tensors that were not taken delay the next requests.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from ...errors import CorruptModel
from ...storage import ObjectRef, Store
from .composed_crc import CheckedSpan, ComposedCrc
from .dlpack import aligned_empty

# A gap that costs less to read than another request's round trip.
MAX_GAP = 64 << 10

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """At most `connections` in parallel, and `in_flight_bytes` requested at once, in requests of at most `piece_bytes`.

    `progress` is called with bytes arrived and bytes in all, by one thread at a time, often not the caller's. `place` makes
    the stream where the tensors are to be in other memory than the process's own.

    `host_bytes` bounds the bytes that were requested and not taken, for callers that copy each tensor elsewhere and drop it.
    It is exceeded by less than a piece, or where a tensor that is waited for comes after others in the order of the bytes.
    """

    connections: int = 32
    in_flight_bytes: int = 256 << 20
    piece_bytes: int = 8 << 20
    progress: Progress | None = None
    place: Callable[[Store, Sequence[TensorSlot], StreamOptions, Sequence[CheckedSpan]], TensorStream] | None = None
    host_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("connections", "in_flight_bytes", "piece_bytes", "host_bytes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where a tensor's little-endian, C-ordered bytes are: `nbytes` from `offset` of `source`.

    `dtype` is TensorFlow's name of it; `masked_crc32c` is the CRC-32C of exactly these bytes in LevelDB's masked form.
    What is `undivided` is asked for in one request, because its source makes these bytes from what it stores, in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: ObjectRef
    offset: int
    nbytes: int
    masked_crc32c: int | None = None
    undivided: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes `start` (inclusive) to `stop` (exclusive) of a slot; slot -1 is a gap."""

    slot: int
    start: int
    stop: int


@dataclass(slots=True)
class _Request:
    source: ObjectRef
    offset: int
    parts: list[_Part]
    nbytes: int = 0

    def add(self, part: _Part) -> None:
        self.parts.append(part)
        self.nbytes += part.stop - part.start


def numpy_dtype(name: str) -> Any:
    """The numpy dtype of TensorFlow's dtype `name`, from ml_dtypes where numpy lacks it. Raises `TypeError`."""
    if name in ("bfloat16", "int4", "uint4", "int2", "uint2") or name.startswith("float8"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype({"half": "float16", "bool": "?"}.get(name, name))


def mask_crc(crc: int) -> int:
    """LevelDB's masking, which keeps the CRC of data that holds CRCs sound (leveldb/util/crc32c.h)."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def open_stream(
    store: Store, slots: Sequence[TensorSlot], options: StreamOptions, spans: Sequence[CheckedSpan] = ()
) -> TensorStream:
    """Starts fetching when its `with` block is entered, in the place that the options choose. Raises `CorruptModel` where a
    slot cannot be true.
    """
    return (options.place or TensorStream)(store, slots, options, spans)


class TensorStream:
    """Tensors on their way; leaving the `with` block ends every thread.

    It cancels what was not yet requested, unless there are `spans`: these are then read to their end and checked, whatever
    was taken, and `CorruptModel` is raised out of the block where one is damaged.
    """

    def __init__(
        self,
        store: Store,
        slots: Sequence[TensorSlot],
        options: StreamOptions,
        spans: Sequence[CheckedSpan] = (),
    ) -> None:
        _check(slots)
        self._store, self._slots, self._options = store, list(slots), options
        piece_bytes = min(options.piece_bytes, options.in_flight_bytes)
        self._requests: Iterator[_Request] = iter(requests := _plan(self._slots, piece_bytes, spans))
        self._composed: dict[ObjectRef, list[ComposedCrc]] = defaultdict(list)
        for span in spans:
            self._composed[span.source].append(ComposedCrc(span))
        self._unread, self._settling = len(requests), False
        self._index = {slot.name: i for i, slot in enumerate(self._slots)}
        self._buffers: dict[int, Any] = {}
        self._missing = [slot.nbytes for slot in self._slots]
        self._unasked = list(self._missing)
        self._held = 0
        self._awaited: set[int] = set()
        self._complete = {i for i, slot in enumerate(self._slots) if not slot.nbytes}
        self._failure: BaseException | None = None
        self._closed = True
        self._changed = threading.Condition()
        self._progress_lock = threading.Lock()
        self._arrived, self._total = 0, sum(self._missing)
        self._request_count = len(requests)
        self._workers = min(options.connections, len(requests), max(1, options.in_flight_bytes // piece_bytes))
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._retries_before = self._store.counters.retries
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"headrace-stream-{i}", daemon=True)
            for i in range(self._workers)
        ]
        if self._threads:
            self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._threads:
                self._check_spans()
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            for thread in self._threads:  # each is started by one before it, unless that one has ended
                if thread.ident is not None:
                    thread.join()
            self._buffers.clear()

    def take(self, name: str) -> Any:
        """The tensor as an aligned array, once it is whole and checked; it is the caller's from then on.

        Raises `KeyError` for a name that is unknown or was taken, and the first failure of any fetch.
        """
        with self._changed:
            i = self._index.pop(name)
            if self._unasked[i]:
                self._awaited.add(i)
                self._changed.notify_all()
            while i not in self._complete and self._failure is None and not self._closed:
                self._changed.wait()
            self._awaited.discard(i)
            self._held -= self._slots[i].nbytes
            if self._options.host_bytes is not None:
                self._changed.notify_all()
            if self._failure is not None:
                raise self._failure
            if i not in self._complete:
                raise RuntimeError(f"{name!r} taken outside the stream's with block")
            buffer = self._buffers.pop(i, None)
        slot = self._slots[i]
        buffer = aligned_empty(0) if buffer is None else buffer
        return buffer.view(numpy_dtype(slot.dtype)).reshape(slot.shape)

    def _work(self, number: int) -> None:
        try:
            # Each starts two more: a new thread that shares its cores with those before waits for its turn, and so does
            # the one that starts it.
            for thread in self._threads[2 * number + 1 : 2 * number + 3]:
                with self._changed:
                    if self._closed or self._failure is not None:
                        return
                thread.start()
            while (request := self._next_request()) is not None:
                self._fetch(request)
        except BaseException as error:
            # Kept for the caller's thread, whose `take` raises it: nothing may end a fetch in silence.
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _sum_up(self, request: _Request, buffers: Sequence[memoryview]) -> None:
        offset = request.offset
        for buffer in buffers if request.source in self._composed else ():
            for composed in self._composed[request.source]:
                composed.add(offset, buffer)
            offset += buffer.nbytes

    def _check_spans(self) -> None:
        if not self._composed:
            return
        with self._changed:
            self._settling = True
            self._changed.notify_all()
            while self._unread and self._failure is None:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
        for several in self._composed.values():
            for composed in several:
                composed.check()

    def _next_request(self) -> _Request | None:
        with self._changed:
            while self._holds_enough() and not self._closed and self._failure is None:
                self._changed.wait()
            request = None if self._closed or self._failure else next(self._requests, None)
            for part in () if request is None else request.parts:
                if part.slot >= 0:
                    self._unasked[part.slot] -= part.stop - part.start
                    self._held += part.stop - part.start
        return request

    def _fetch(self, request: _Request) -> None:
        """Its views of the buffers end with it: a thread that waits would keep memory alive that was taken and dropped."""
        with self._changed:
            buffers = [self._memory(part) for part in request.parts]
        self._store.read_into(request.source, request.offset, buffers)
        self._sum_up(request, buffers)
        for part in request.parts:
            if part.slot >= 0:
                self._arrive(part)
        with self._changed:
            self._unread -= 1
            self._changed.notify_all()

    def _holds_enough(self) -> bool:
        limit = self._options.host_bytes
        if self._settling:
            return False
        return limit is not None and self._held >= limit and not any(self._unasked[i] for i in self._awaited)

    def _memory(self, part: _Part) -> memoryview:
        if part.slot < 0:
            return memoryview(bytearray(part.stop - part.start))
        if part.slot not in self._buffers:
            self._buffers[part.slot] = self._allocate(part.slot)
        return memoryview(self._buffers[part.slot])[part.start : part.stop]

    def _allocate(self, i: int) -> Any:
        """The slot's final memory, as an aligned uint8 array."""
        return aligned_empty(self._slots[i].nbytes)

    def _arrive(self, part: _Part) -> None:
        size = part.stop - part.start
        with self._changed:
            self._missing[part.slot] -= size
            complete = not self._missing[part.slot]
            buffer = self._buffers[part.slot]
        if complete:
            check_crc(self._slots[part.slot], buffer)
        with self._progress_lock:
            self._arrived += size
            if self._options.progress is not None:
                self._options.progress(self._arrived, self._total)
            if self._arrived == self._total:
                self._report()
        if complete:
            with self._changed:
                self._complete.add(part.slot)
                self._changed.notify_all()

    def _report(self) -> None:
        seconds = max(time.perf_counter() - self._started, 1e-9)
        _log.info(
            "streamed %d tensors, %d bytes in %.2f s, %.0f MiB/s: %d requests over %d connections, %d retries",
            len(self._slots),
            self._total,
            seconds,
            self._total / 2**20 / seconds,
            self._request_count,
            self._workers,
            self._store.counters.retries - self._retries_before,
        )


def _check(slots: Sequence[TensorSlot]) -> None:
    """Before any allocation: a slot's sizes agree, it is inside its object, and no object is handed out twice."""
    if len({slot.name for slot in slots}) != len(slots):
        raise ValueError("two slots of one name")
    claimed: dict[ObjectRef, int] = {}
    for slot in slots:
        itemsize = numpy_dtype(slot.dtype).itemsize
        expected = math.prod(slot.shape) * itemsize
        too_large = math.prod(filter(None, slot.shape)) * itemsize >= 1 << 63  # as NumPy counts, also where a size is 0
        if min(slot.shape, default=0) < 0 or slot.nbytes != expected or too_large:
            raise CorruptModel(
                f"The size of tensor {slot.name!r} in {slot.source.uri} contradicts its shape",
                expected=f"{expected} bytes for {slot.dtype} {list(slot.shape)}, and sizes of an array",
                found=f"{slot.nbytes} bytes",
                cure="Export the model again.",
            )
        claimed[slot.source] = claimed.get(slot.source, 0) + slot.nbytes
        if slot.offset < 0 or slot.offset + slot.nbytes > slot.source.size:
            raise CorruptModel(
                f"Tensor {slot.name!r} is outside {slot.source.uri}, which is truncated or another model's",
                expected=f"bytes {slot.offset} to {slot.offset + slot.nbytes}",
                found=f"an object of {slot.source.size} bytes",
                cure="Copy the model again from where it was exported.",
            )
    for source, nbytes in claimed.items():
        if nbytes > source.size:
            raise CorruptModel(
                f"Tensors overlap in {source.uri}",
                expected=f"at most {source.size} bytes of tensors",
                found=f"{nbytes} bytes",
                cure="Export the model again.",
            )


def check_crc(slot: TensorSlot, buffer: Any) -> None:
    """Raises `CorruptModel` where the buffer does not hold what the slot's checksum is of."""
    if slot.masked_crc32c is None:
        return
    import crc32c

    found = mask_crc(crc32c.crc32c(memoryview(buffer)))
    if found != slot.masked_crc32c:
        raise CorruptModel(
            f"Tensor {slot.name!r} in {slot.source.uri} is damaged",
            expected=f"masked CRC-32C {slot.masked_crc32c:08x} of {slot.nbytes} bytes from {slot.offset} on",
            found=f"{found:08x}",
            cure="Copy the model again from where it was exported.",
        )


def _plan(slots: Sequence[TensorSlot], piece_bytes: int, spans: Sequence[CheckedSpan] = ()) -> list[_Request]:
    """Requests in the order of the bytes: neighbours joined across gaps up to `MAX_GAP`, then cut at `piece_bytes`.

    A small tensor is cut, too, where it comes to that: a request of its own would cost a round trip. Of `spans`, what no
    slot holds is read as a gap is.
    """
    extents = [(slot.source, slot.offset, slot.offset + slot.nbytes, i) for i, slot in enumerate(slots)]
    extents += [(span.source, start, stop, -1) for span in spans for start, stop in _besides(span, slots)]
    requests: list[_Request] = []
    for source, start, end, i in sorted(extents, key=lambda extent: (extent[0].uri, extent[1])):
        at = start
        while at < end:
            last = requests[-1] if requests else None
            gap = at - (last.offset + last.nbytes) if last is not None and last.source == source else -1
            if last is None or not 0 <= gap <= MAX_GAP or last.nbytes + gap >= piece_bytes:
                requests.append(last := _Request(source, at, []))
                gap = 0
            if gap:
                last.add(_Part(-1, 0, gap))
            undivided = i >= 0 and slots[i].undivided
            stop = end if undivided else min(end, at + piece_bytes - last.nbytes)
            last.add(_Part(i, at - start, stop - start))
            at = stop
    return requests


def _besides(span: CheckedSpan, slots: Sequence[TensorSlot]) -> list[tuple[int, int]]:
    left = span.besides(read_of(span, slots))
    if left is None:
        raise ValueError(f"the checksum of bytes {span.start} to {span.stop} of {span.source.uri} cannot be composed")
    return left


def read_of(span: CheckedSpan, slots: Sequence[TensorSlot]) -> list[tuple[int, int]]:
    """The (start, stop) of the slots that have bytes in the span."""
    return [
        (slot.offset, slot.offset + slot.nbytes)
        for slot in slots
        if slot.nbytes
        and slot.source == span.source
        and slot.offset < span.stop
        and span.start < slot.offset + slot.nbytes
    ]
