"""Any sequence of calls, held against a dict."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from headrace.transforms.errors import AlreadyExists, ObjectChanged, ObjectNotFound, StorageError
from headrace.transforms.storage import ObjectRef, Writer, open_store

# A name is never the folder of another: a bucket would allow that, a file system does not.
NAMES = st.sampled_from(["x", "x.y", "d/x", "d/e/x", "d/e/ü %20#", "d.e/[x]", "é"])


class AgainstADict(RuleBasedStateMachine):
    pins = Bundle("pins")
    writers = Bundle("writers")

    def make_root(self) -> str:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.root = self.make_root()
        self.store = open_store(self.root)
        self.expected: dict[str, tuple[ObjectRef, bytes]] = {}

    @rule(target=writers, name=NAMES)
    def create(self, name: str) -> Any:
        uri = f"{self.root}/{name}"
        return uri, self.store.create(uri), bytearray()

    @rule(writer=writers, data=st.binary(max_size=50))
    def write(self, writer: tuple[str, Writer, bytearray], data: bytes) -> None:
        _, open_writer, written = writer
        if open_writer.closed:
            with pytest.raises(StorageError):
                open_writer.write(data)
        else:
            assert open_writer.write(data) == len(data)
            written += data
            assert open_writer.tell() == len(written)

    @rule(target=pins, writer=writers)
    def commit(self, writer: tuple[str, Writer, bytearray]) -> Any:
        uri, open_writer, written = writer
        if open_writer.closed:
            with pytest.raises(StorageError):
                open_writer.commit()
        elif uri in self.expected:
            with pytest.raises(AlreadyExists):
                open_writer.commit()
        else:
            self.expected[uri] = open_writer.commit(), bytes(written)
            return self.expected[uri]
        return None

    @rule(writer=writers)
    def abort(self, writer: tuple[str, Writer, bytearray]) -> None:
        writer[1].abort()
        assert writer[1].closed

    @rule(pin=pins, cut=st.tuples(st.integers(0, 50), st.integers(0, 50)))
    def read(self, pin: tuple[ObjectRef, bytes] | None, cut: tuple[int, int]) -> None:
        if pin is None:
            return
        ref, data = pin
        start, stop = sorted(min(at, ref.size) for at in cut)
        standing = self.expected.get(ref.uri)
        if standing == pin or start == stop:
            assert self.store.read(ref, start, stop - start) == data[start:stop]
        else:
            with pytest.raises(ObjectNotFound if standing is None else ObjectChanged):
                self.store.read(ref, start, stop - start)

    @rule(pin=pins)
    def delete(self, pin: tuple[ObjectRef, bytes] | None) -> None:
        if pin is None:
            return
        ref = pin[0]
        if ref.uri in self.expected and self.expected[ref.uri] != pin:
            with pytest.raises(ObjectChanged):
                self.store.delete(ref)
        else:
            self.store.delete(ref)
            self.expected.pop(ref.uri, None)

    @rule(name=NAMES)
    def stat(self, name: str) -> None:
        uri = f"{self.root}/{name}"
        if uri in self.expected:
            assert self.store.stat(uri) == self.expected[uri][0]
        else:
            with pytest.raises(ObjectNotFound):
                self.store.stat(uri)

    @invariant()
    def lists_what_stands(self) -> None:
        if hasattr(self, "store"):
            assert list(self.store.list(self.root)) == [self.expected[uri][0] for uri in sorted(self.expected)]


class MemoryAgainstADict(AgainstADict):
    def make_root(self) -> str:
        return f"memory://{uuid.uuid4().hex}"


class LocalAgainstADict(AgainstADict):
    def make_root(self) -> str:
        return tempfile.mkdtemp()

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


TestMemoryAgainstADict = MemoryAgainstADict.TestCase
TestLocalAgainstADict = LocalAgainstADict.TestCase
TestMemoryAgainstADict.settings = TestLocalAgainstADict.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None
)
