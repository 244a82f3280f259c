"""URIs to byte ranges; commit or abort. Knows neither Beam nor TensorFlow."""

from __future__ import annotations

from transforms.errors import InvalidRequest
from transforms.storage.base import ObjectRef, Store, StoreOptions, Writer

__all__ = ["ObjectRef", "Store", "StoreOptions", "Writer", "open_store"]


def open_store(uri: str, options: StoreOptions = StoreOptions()) -> Store:
    """The store that a URI belongs to: `gs://bucket/…`, `memory://…`, `file:///…` or a local path.

    Raises `InvalidRequest` where the scheme is not known.
    """
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme == "gs":
        from transforms.storage.gcs import GcsStore

        return GcsStore(options)
    if scheme == "file":
        from transforms.storage.local import LocalStore

        return LocalStore(options)
    if scheme == "memory":
        from transforms.storage.memory import MemoryStore

        return MemoryStore(options)
    raise InvalidRequest(
        f"No store for {uri!r}",
        expected="gs://bucket/name or a local path",
        found=f"{scheme}://",
        cure="Copy the object to a bucket or a local folder and name that.",
    )
