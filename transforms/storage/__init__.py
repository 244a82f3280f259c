"""URIs to byte ranges; commit or abort. Knows neither Beam nor TensorFlow."""

from __future__ import annotations

from .store import ObjectRef, Store, StoreOptions, Writer

__all__ = ["ObjectRef", "Store", "StoreOptions", "Writer", "open_store"]


def open_store(uri: str, options: StoreOptions = StoreOptions()) -> Store:
    """The store that a URI belongs to: `gs://bucket/…`, `https://…`, `s3://bucket/…`, `file:///…`, a local path, …

    Raises `InvalidRequest` where the scheme is not known, or its package is not installed.
    """
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme == "gs":
        from .gcs import GcsStore

        return GcsStore(options)
    if scheme == "file":
        from .local import LocalStore

        return LocalStore(options)
    if scheme in ("http", "https"):
        from .http_store import HttpStore

        return HttpStore(options)
    if scheme == "memory":
        from .memory import MemoryStore

        return MemoryStore(options)
    if scheme in ("s3", "s3a"):
        from .s3 import S3Store

        return S3Store(options)
    from .fsspec_store import FsspecStore

    return FsspecStore(options, scheme)
