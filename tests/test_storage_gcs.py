from __future__ import annotations

import pytest
from google.cloud import storage

from tests.store_contract import StoreContract
from transforms.storage import Store, open_store


class TestGcsStore(StoreContract):
    @pytest.fixture(autouse=True)
    def client(self, emulator: str) -> None:
        self.library = storage.Client(project="test")

    @pytest.fixture
    def root(self, bucket: str) -> str:
        return f"{bucket}/in"

    @pytest.fixture
    def store(self, root: str) -> Store:
        return open_store(root)

    def put(self, uri: str, data: bytes) -> None:
        storage.Blob.from_uri(uri, client=self.library).upload_from_string(data)

    def get(self, uri: str) -> bytes | None:
        blob = storage.Blob.from_uri(uri, client=self.library)
        return blob.download_as_bytes() if blob.exists() else None
