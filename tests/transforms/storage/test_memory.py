from __future__ import annotations

import uuid

import pytest

from headrace.transforms.errors import StorageError
from headrace.transforms.storage import Store, open_store
from headrace.transforms.storage.memory import OBJECTS, put
from tests.support.faulty_store import FailNth, FaultyStore
from tests.support.store_contract import StoreContract


class MemoryValues(StoreContract):
    @pytest.fixture
    def root(self) -> str:
        return f"memory://{uuid.uuid4().hex}/in"

    def put(self, uri: str, data: bytes) -> None:
        put(uri, data)

    def get(self, uri: str) -> bytes | None:
        return OBJECTS[uri][1] if uri in OBJECTS else None


class TestMemoryStore(MemoryValues):
    @pytest.fixture
    def store(self, root: str) -> Store:
        return open_store(root)


class TestFaultyStoreWithoutFaults(MemoryValues):
    @pytest.fixture
    def store(self, root: str) -> Store:
        return FaultyStore(open_store(root))


def test_faults_are_injected_once_and_bytes_flipped_where_told() -> None:
    ref = put("memory://faults/x", b"\x00\x01\x02\x03")
    store = FaultyStore(open_store(ref.uri), fault=FailNth("read", 2), flip={ref.uri: 2})
    assert store.read(ref) == b"\x00\x01\xfd\x03"
    with pytest.raises(StorageError, match="read of memory://faults/x"):
        store.read(ref)
    assert store.read(ref, 3) == b"\x03"
    assert store.calls == {"read": 3}
    assert store.reads == [(ref.uri, 0, 4), (ref.uri, 0, 4), (ref.uri, 3, 1)]
