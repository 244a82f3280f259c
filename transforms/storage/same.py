"""Creates an object unless the same one already exists."""

from __future__ import annotations

from ..errors import AlreadyExists
from .store import ObjectRef, Store


def create_same(store: Store, uri: str, data: bytes) -> ObjectRef:
    """Raises `AlreadyExists` where an object of other content exists."""
    with store.create(uri) as writer:
        try:
            writer.write(data)
            return writer.commit()
        except AlreadyExists:
            there = store.stat(uri)
            if store.read(there) != data:
                raise
            return there
