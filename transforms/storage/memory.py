"""`memory://name/…`: objects of this process, for tests and examples; gone with it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c

from ..errors import AlreadyExists, ObjectChanged, ObjectNotFound, StorageError
from .store import ObjectRef, Store, Writer, check_range

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
                raise AlreadyExists(f"{uri} already exists", cure="Delete it, or write under another name.")
            return put(uri, data)

    def delete(self, ref: ObjectRef) -> None:
        self.counters.add(requests=1)
        with _lock:
            if ref.uri in OBJECTS:
                _find(ref.uri, ref)
                del OBJECTS[ref.uri]


class _MemoryWriter(Writer):
    def __init__(self, store: MemoryStore, uri: str) -> None:
        self._store, self._uri = store, uri
        self._data: bytearray | None = bytearray()
        self._written = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._open().extend(view)
        self._written += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._written

    def commit(self) -> ObjectRef:
        data = bytes(self._open())
        self._data = None
        with _lock:
            if self._uri in OBJECTS:
                raise AlreadyExists(f"{self._uri} already exists", cure="Delete it, or write under another name.")
            ref = put(self._uri, data)
        self._store.counters.add(requests=1, bytes_written=len(data))
        return ref

    def abort(self) -> None:
        self._data = None

    @property
    def closed(self) -> bool:
        return self._data is None

    def _open(self) -> bytearray:
        if self._data is None:
            raise StorageError(f"{self._uri} was committed or aborted before; nothing more can be written to it")
        return self._data


def _find(uri: str, pinned: ObjectRef | None = None) -> tuple[ObjectRef, bytes]:
    if uri not in OBJECTS:
        raise ObjectNotFound(f"There is no object {uri}")
    found = OBJECTS[uri]
    if pinned is not None and found[0].version != pinned.version:
        raise ObjectChanged(
            f"{uri} was rewritten while it was in use", expected=f"version {pinned.version}", found=found[0].version
        )
    return found
