"""URIs to byte ranges; commit or abort. Knows neither Beam nor TensorFlow."""

from __future__ import annotations

from importlib import import_module

from .store import ObjectRef, Store, StoreOptions, Writer

__all__ = ["ObjectRef", "Store", "StoreOptions", "Writer", "open_store"]


# By a URI's scheme: the module that is loaded for it, since each loads libraries of its own, and the class in it.
_STORES = {
    "file": (".local", "LocalStore"),
    "gs": (".gcs", "GcsStore"),
    "http": (".http_store", "HttpStore"),
    "https": (".http_store", "HttpStore"),
    "memory": (".memory", "MemoryStore"),
    "s3": (".s3", "S3Store"),
    "s3a": (".s3", "S3Store"),
}


def open_store(uri: str, options: StoreOptions = StoreOptions()) -> Store:
    """The store that a URI belongs to: `gs://bucket/…`, `https://…`, `s3://bucket/…`, `file:///…`, a local path, …

    Raises `InvalidRequest` where the scheme is not known, or its package is not installed.
    """
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme not in _STORES:
        from .fsspec_store import FsspecStore

        return FsspecStore(options, scheme)
    module, name = _STORES[scheme]
    store: Store = getattr(import_module(module, __name__), name)(options)
    return store
