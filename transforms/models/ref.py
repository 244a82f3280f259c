"""A model pinned: its objects, each at the version that the launcher saw."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from transforms.storage import ObjectRef, StoreOptions


@dataclass(frozen=True, slots=True)
class ModelRef:
    """`uri` is the folder or file as given, without a trailing slash; `format` is "saved_model" or "keras".

    `objects` holds every object of the model in URI order. A worker that reads through it gets these versions or
    `ObjectChanged`.
    """

    uri: str
    format: str
    objects: tuple[ObjectRef, ...]
    options: StoreOptions = StoreOptions()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over each object's place in the model, size, and content checksum (else its version)."""
        digest = hashlib.sha256(self.format.encode())
        for ref in self.objects:
            content = f"crc32c:{ref.crc32c:08x}" if ref.crc32c is not None else f"version:{ref.version}"
            digest.update(f"\n{ref.uri.removeprefix(self.uri)}\t{ref.size}\t{content}".encode())
        return digest.hexdigest()

    def object(self, relative: str) -> ObjectRef | None:
        """The object at `relative` (no leading slash) below the model's folder."""
        wanted = f"{self.uri}/{relative}"
        return next((ref for ref in self.objects if ref.uri == wanted), None)
