"""`memory://name/…`: objects of this process, for tests and examples; gone with it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c

from ..errors import ObjectChanged, ObjectNotFound
from .store import ObjectRef, Store, Writer, already_exists, check_range

# URI to (what is pinned, content); shared by every MemoryStore of the process, as a bucket is by its clients.
OBJECTS: dict[str, tuple[ObjectRef, bytes]] = {}
_lock = threading.Lock()
_generations = itertools.count(1)


def put(uri: str, data: bytes) -> ObjectRef:
    """Sets an object, replacing an existing one."""
    ref = ObjectRef(uri, len(data), str(next(_generations)), google_crc32c.value(data))
    OBJECTS[uri] = ref, data
    return ref


class MemoryStore(Store):
    def stat(self, uri: str) -> ObjectRef:
        self.counters.add(requests=1)
        return _find(uri)[0]

    def list(self, folder: str) -> Iterator[ObjectRef]:
        self.counters.add(requests=1)
        prefix = folder if folder.endswith("/") else folder + "/"
        with _lock:
            found = sorted(ref for uri, (ref, _) in OBJECTS.items() if uri.startswith(prefix))
        yield from found

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        length = check_range(ref, offset, buffers)
        if not length:
            return
        data = memoryview(_find(ref.uri, ref)[1])
        for buffer in buffers:
            buffer[:] = data[offset : offset + buffer.nbytes]
            offset += buffer.nbytes
        self.counters.add(requests=1, bytes_read=length)

    def create(self, uri: str) -> Writer:
        return _MemoryWriter(self, uri)

    def publish(self, source: ObjectRef, uri: str) -> ObjectRef:
        self.counters.add(requests=1)
        with _lock:
            data = _find(source.uri, source)[1]
            if uri in OBJECTS:
                raise already_exists(uri)
            return put(uri, data)

    def delete(self, ref: ObjectRef) -> None:
        self.counters.add(requests=1)
        with _lock:
            if ref.uri in OBJECTS:
                _find(ref.uri, ref)
                del OBJECTS[ref.uri]


class _MemoryWriter(Writer):
    def __init__(self, store: MemoryStore, uri: str) -> None:
        super().__init__(uri)
        self._store, self._data = store, bytearray()

    def write(self, data: Any) -> int:
        self._check_open()
        view = memoryview(data).cast("B")
        self._data += view
        self._written += view.nbytes
        return view.nbytes

    def commit(self) -> ObjectRef:
        self._check_open()
        data = bytes(self._data)
        self.abort()
        with _lock:
            if self._uri in OBJECTS:
                raise already_exists(self._uri)
            ref = put(self._uri, data)
        self._store.counters.add(requests=1, bytes_written=len(data))
        return ref

    def abort(self) -> None:
        self._closed, self._data = True, bytearray()


def _find(uri: str, pinned: ObjectRef | None = None) -> tuple[ObjectRef, bytes]:
    if uri not in OBJECTS:
        raise ObjectNotFound(f"There is no object {uri}")
    found = OBJECTS[uri]
    if pinned is not None and found[0].version != pinned.version:
        raise ObjectChanged(
            f"{uri} was rewritten while it was in use", expected=f"version {pinned.version}", found=found[0].version
        )
    return found
