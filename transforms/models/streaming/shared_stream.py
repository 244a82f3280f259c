"""A stream whose tensors are in memory that the machine's processes share: the first process fetches, the others map."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import mmap
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np

from ...container_limits import usable_cores
from ...errors import CorruptModel, ObjectChanged
from ...storage import Store
from ..ref import ModelRef
from . import shared_segment as segment
from .composed_crc import CheckedSpan, ComposedCrc
from .shared_host import Host, meet, receive
from .shared_segment import Unshared
from .tensor_stream import StreamOptions, TensorSlot, TensorStream, check_crc, numpy_dtype, read_of

_CHECKS_AT_ONCE = 4

_log = logging.getLogger(__name__)


def machine_identity(ref: ModelRef) -> str:
    """What must be equal where two processes mean the same bytes.

    It includes the mount namespace: a path means nothing in another one. And containers that share a network, and so see
    the same addresses, may not trust each other.
    """
    return f"{ref.uri}\n{ref.digest}\n{os.readlink('/proc/self/ns/mnt')}"


def why_not(ref: ModelRef) -> str | None:
    """Why no process on this machine shares these weights, if so."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has neither memfd nor abstract socket addresses"
    try:
        machine_identity(ref)
    except OSError as error:
        return f"whose file system this is cannot be told: {error}"
    return None


@functools.cache
def say_once(reason: str) -> None:
    _log.info("The weights are not shared with other processes of this machine: %s", reason)


class MachineStream(TensorStream):
    """Like `TensorStream`, in one of three roles: it leads and fetches, it follows and maps, or it is on its own.

    It trusts a process of the same user and mount namespace, which could change this one's memory anyway. It checks that
    process's segment for size and seals, and its bytes against every checksum that this process knows from the model's own
    files; where one differs, the process fetches the weights itself. A process that comes in the very moment between a leader's
    end and its successor's start fetches again.

    A leader hands out tensors as they are completed, and the segment, sealed, when its `with` block is left; by then every slot
    has been fetched, taken or not. Until then, what was taken must not be written: a page that is written no longer receives
    fetched bytes. A follower waits at the first `take`. Where the leader ends before it is done, one of those that wait takes
    its place; where it finds that the model cannot be read, each finds that out for itself. Where sharing fails for any
    reason, the log says so once, and the process fetches into memory of its own. `identity` distinguishes models.
    """

    def __init__(
        self,
        store: Store,
        slots: Sequence[TensorSlot],
        options: StreamOptions,
        spans: Sequence[CheckedSpan] = (),
        *,
        identity: str,
    ) -> None:
        super().__init__(store, slots, options, spans)
        self._spans = tuple(spans)
        self._layout = segment.lay_out(self._slots, identity)
        self._joining = threading.Lock()
        self._connection: socket.socket | None = None
        self._host: Host | None = None
        self._descriptor = -1
        self._filled: mmap.mmap | None = None
        self._shared: Any = None

    def __enter__(self) -> Self:
        if self._total:
            self._join()
        self._waiting_since = time.perf_counter()
        if self._connection is None:
            try:
                super().__enter__()
            except BaseException:
                self.__exit__(*sys.exc_info())
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = False
        try:
            try:
                complete = self._filled is not None and kind is None and self._take_rest()
            finally:
                super().__exit__(kind, error, trace)
        except BaseException as failure:
            complete, self._failure = False, self._failure or failure
            raise
        finally:
            if self._connection is not None:
                self._connection.close()
            if self._filled is not None:
                self._end_lead(self._filled, complete)
            self._shared = None

    def take(self, name: str) -> Any:
        with self._joining:
            while self._connection is not None:
                self._follow(self._connection)
        if self._shared is None:
            return super().take(name)
        if self._filled is None:
            i = self._index.pop(name)
        else:
            i = self._index[name]
            super().take(name)
        slot, start = self._slots[i], self._layout.offsets[i]
        view = self._shared[start : start + slot.nbytes]
        return view.view(numpy_dtype(slot.dtype)).reshape(slot.shape)

    def _allocate(self, i: int) -> Any:
        if self._filled is None:
            return super()._allocate(i)
        return np.frombuffer(self._filled, np.uint8, self._slots[i].nbytes, self._layout.offsets[i])

    def _join(self) -> None:
        try:
            met, leads = meet(self._layout)
            if leads:
                self._lead(met)
            else:
                self._connection = met
        except Unshared as reason:
            say_once(str(reason))

    def _lead(self, listener: socket.socket) -> None:
        with contextlib.ExitStack() as undone:
            undone.callback(listener.close)
            self._descriptor = segment.create(self._layout.nbytes)
            undone.callback(os.close, self._descriptor)
            try:
                filled = segment.map_shared(self._descriptor, self._layout.nbytes)
                mapping = segment.map_private(self._descriptor, self._layout.nbytes)
            except (OSError, ValueError) as error:
                raise Unshared(f"{self._layout.nbytes} bytes could not be mapped: {error}") from error
            host = Host(self._layout, total=self._total, arrived=lambda: self._arrived, listener=listener)
            undone.pop_all()
        self._host, self._filled = host, filled
        self._keep(mapping, host)

    def _follow(self, connection: socket.socket) -> None:
        """Waits for what the leader has. Afterwards it is here, or this process leads, or it is on its own."""
        total = self._total
        try:
            descriptor = receive(connection, self._layout, self._report_progress)
            if descriptor is not None:
                try:
                    mapping = segment.map_private(descriptor, self._layout.nbytes)
                except (OSError, ValueError) as error:
                    os.close(descriptor)
                    raise Unshared(f"the segment could not be mapped: {error}") from error
                try:
                    self._check_mapped(np.frombuffer(mapping, np.uint8))
                except CorruptModel as error:
                    os.close(descriptor)
                    raise Unshared(f"what was handed over is damaged: {error}") from error
                host = Host(
                    self._layout, total=total, arrived=lambda: total, connection=connection, descriptor=descriptor
                )
        except Unshared as reason:
            connection.close()
            self._connection = None
            say_once(str(reason))
            super().__enter__()
            return
        if descriptor is None:
            _log.info("The process that streamed the weights has ended before they were complete; taking its place")
            connection.close()
            self._connection = None
            self._join()
            if self._connection is None:
                super().__enter__()
            return
        self._keep(mapping, host)
        self._connection = None
        self._report_progress(total, total)
        _log.info(
            "mapped %d tensors, %d bytes, which another process of this machine has streamed, after %.2f s",
            len(self._slots),
            total,
            time.perf_counter() - self._waiting_since,
        )

    def _check_mapped(self, shared: Any) -> None:
        """Raises `CorruptModel` where bytes differ from a slot's checksum, or from one of a span that slots alone make up."""
        views = {
            i: memoryview(shared[start : start + slot.nbytes])
            for i, (slot, start) in enumerate(zip(self._slots, self._layout.offsets, strict=True))
            if slot.nbytes
        }
        # Checksums are computed without the interpreter's lock.
        with ThreadPoolExecutor(min(_CHECKS_AT_ONCE, usable_cores())) as threads:
            list(threads.map(lambda i: check_crc(self._slots[i], views[i]), views))
            list(threads.map(lambda span: self._check_span(span, views), self._spans))

    def _check_span(self, span: CheckedSpan, views: dict[int, memoryview]) -> None:
        inside = read_of(span, self._slots)
        if span.besides(inside) != []:
            return  # bytes between tensors are not in the segment
        composed = ComposedCrc(span)
        for i, view in views.items():
            slot = self._slots[i]
            if slot.source == span.source:
                composed.add(slot.offset, view)
        composed.check()

    def _keep(self, mapping: mmap.mmap, host: Host) -> None:
        """The host answers as long as anything of the mapping is in use."""
        weakref.finalize(mapping, host.close).atexit = False
        self._shared = np.frombuffer(mapping, np.uint8)

    def _report_progress(self, arrived: int, _: int) -> None:
        if self._options.progress is not None:
            self._options.progress(min(arrived, self._total), self._total)

    def _take_rest(self) -> bool:
        """Whether every slot has arrived, even those that this process does not need: others may."""
        try:
            for name in list(self._index):
                super().take(name)
        except Exception as error:
            say_once(f"a tensor that this process does not need could not be fetched: {error}")
            return False
        return True

    def _end_lead(self, filled: mmap.mmap, complete: bool) -> None:
        assert self._host is not None
        try:
            if complete:
                _unmap(filled)
                segment.seal(self._descriptor)
                self._host.publish(self._descriptor)
                return
        except (BufferError, OSError) as error:
            say_once(f"the segment could not be sealed: {error}")
        self._host.close(unreadable=isinstance(self._failure, (CorruptModel, ObjectChanged)))
        os.close(self._descriptor)


def _unmap(mapping: mmap.mmap) -> None:
    try:
        mapping.close()
    except BufferError:
        # A store's own objects may hold a slice of it in a cycle.
        gc.collect()
        mapping.close()
