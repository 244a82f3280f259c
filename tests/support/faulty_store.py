"""A store in front of a real one that delays, fails, corrupts and counts."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from headrace.transforms.errors import StorageError
from headrace.transforms.storage import ObjectRef, Store, Writer


class FaultyStore(Store):
    """Passes every call on to `inner`, after `latency_s`, and unless `fault(verb, uri)` raises.

    Verbs are stat, list, read, write, commit, publish and delete. `calls` counts them, and `reads` lists (URI, offset, length
    in bytes). Byte `flip` of an object (URI to offset) arrives inverted. It is pickled with its inner store and settings;
    the counts begin anew.
    """

    def __init__(
        self,
        inner: Store,
        *,
        latency_s: float = 0.0,
        fault: Callable[[str, str], None] | None = None,
        flip: dict[str, int] | None = None,
    ) -> None:
        super().__init__(inner.options)
        self.counters = inner.counters
        self.inner, self.latency_s, self.fault, self.flip = inner, latency_s, fault, flip or {}
        self.calls: Counter[str] = Counter()
        self.reads: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.inner, self.latency_s, self.fault, self.flip)

    def met(self, verb: str, uri: str) -> None:
        with self._lock:
            self.calls[verb] += 1
        time.sleep(self.latency_s)
        if self.fault is not None:
            self.fault(verb, uri)

    def stat(self, uri: str) -> ObjectRef:
        self.met("stat", uri)
        return self.inner.stat(uri)

    def list(self, folder: str) -> Iterator[ObjectRef]:
        self.met("list", folder)
        yield from self.inner.list(folder)

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        with self._lock:
            self.reads.append((ref.uri, offset, sum(buffer.nbytes for buffer in buffers)))
        self.met("read", ref.uri)
        self.inner.read_into(ref, offset, buffers)
        at = self.flip.get(ref.uri, -1) - offset
        for buffer in buffers:
            if 0 <= at < buffer.nbytes:
                buffer[at] ^= 0xFF
            at -= buffer.nbytes

    def create(self, uri: str) -> Writer:
        return _FaultyWriter(self, uri, self.inner.create(uri))

    def publish(self, source: ObjectRef, uri: str) -> ObjectRef:
        self.met("publish", uri)
        return self.inner.publish(source, uri)

    def delete(self, ref: ObjectRef) -> None:
        self.met("delete", ref.uri)
        self.inner.delete(ref)


class _FaultyWriter(Writer):
    def __init__(self, store: FaultyStore, uri: str, inner: Writer) -> None:
        self._store, self._uri, self._inner = store, uri, inner

    def write(self, data: Any) -> int:
        self._store.met("write", self._uri)
        return self._inner.write(data)

    def commit(self) -> ObjectRef:
        self._store.met("commit", self._uri)
        return self._inner.commit()

    def tell(self) -> int:
        return self._inner.tell()

    def abort(self) -> None:
        self._inner.abort()

    @property
    def closed(self) -> bool:
        return self._inner.closed


class FailNth:
    """A fault for `FaultyStore` that survives pickling: the `n`-th call (from 1) of `verb` on a URI with `part` fails."""

    def __init__(self, verb: str, n: int = 1, part: str = "") -> None:
        self.verb, self.n, self.part, self.seen = verb, n, part, 0

    def __call__(self, verb: str, uri: str) -> None:
        if verb == self.verb and self.part in uri:
            self.seen += 1
            if self.seen == self.n:
                raise StorageError(f"A fault was injected into {verb} of {uri}")


def _rebuild(
    inner: Store, latency_s: float, fault: Callable[[str, str], None] | None, flip: dict[str, int]
) -> FaultyStore:
    return FaultyStore(inner, latency_s=latency_s, fault=fault, flip=flip)
