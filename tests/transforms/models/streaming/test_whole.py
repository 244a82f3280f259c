"""Small reads asked for together, over a real store that counts them."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transforms.errors import ObjectNotFound
from headrace.transforms.models.streaming.whole_reads import ReadTogether
from headrace.transforms.storage import ObjectRef
from headrace.transforms.storage.memory import MemoryStore, put
from tests.support.faulty_store import FaultyStore

DATA = bytes(range(200))


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_every_read_gives_the_objects_own_bytes(start: int, offset: int, length: int) -> None:
    store = MemoryStore()
    ref = put("memory://together/a", DATA)
    other = put("memory://together/b", DATA[::-1])
    length = min(length, 200 - offset)
    with ReadTogether(store, [(ref, start)]) as front:
        assert front.read(ref, offset, length) == DATA[offset : offset + length]
        assert front.read(ref, offset) == DATA[offset:]
        assert front.read(other, offset, length) == DATA[::-1][offset : offset + length]


def test_the_ends_are_read_at_once_and_not_again() -> None:
    inner = MemoryStore()
    refs = [put(f"memory://together/{i}", DATA) for i in range(3)]
    together = threading.Barrier(3, timeout=10)

    class Meeting(FaultyStore):
        def read(self, ref: ObjectRef, offset: int = 0, length: int | None = None) -> bytes:
            together.wait()
            return super().read(ref, offset, length)

    with ReadTogether(Meeting(inner), [(ref, 100) for ref in refs]) as front:
        # Had one waited for another, the barrier would have broken; a further read would meet nobody there.
        assert [front.read(ref, 150) for ref in refs] == [DATA[150:]] * 3
        assert [front.read(ref, 100, 5) for ref in refs] == [DATA[100:105]] * 3


def test_a_failure_is_raised_where_the_bytes_are_asked_for() -> None:
    store = MemoryStore()
    ref = put("memory://together/gone", DATA)
    store.delete(ref)
    with ReadTogether(store, [(ref, 0)]) as front, pytest.raises(ObjectNotFound):
        front.read(ref)
