"""Reads from everything that fsspec has a file system for (`az://`, `abfs://`, `hf://`, …).

Each file system finds its credentials as its documentation describes; fsspec's configuration (`FSSPEC_*` variables or
~/.config/fsspec) reaches all of them. Writing is refused: fsspec's files publish when they are closed, by the garbage
collector too, and few of its file systems can create without replacing.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import (
    AccessDenied,
    HeadraceError,
    InvalidRequest,
    ObjectNotFound,
    StorageError,
    StoreUnavailable,
)
from .retries import MayPass, RetryPolicy, retried, times
from .store import ObjectRef, Store, StoreOptions, Writer, changed, check_range

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
    "hf": "hf",
}
# The file systems' names for what changes with the content, the surest first; then for when it changed.
_VERSIONS = ("generation", "ETag", "etag", "blob_id", "sha256", "sha", "oid", "md5")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "modificationTime", "modify", "created")
_PIECE_BYTES = 16 << 20
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError, TypeError, ImportError)


class FsspecStore(Store):
    """Reads a pinned range, then checks that the version still exists, since most file systems read by name alone."""

    def __init__(self, options: StoreOptions, scheme: str, policy: RetryPolicy = RetryPolicy()) -> None:
        super().__init__(options, scheme, policy)
        self._scheme, self._policy = scheme, policy
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._made: dict[tuple[int, str], Any] = {}
        _check_installed(scheme)

    def stat(self, uri: str) -> ObjectRef:
        if uri.endswith("/"):
            raise ObjectNotFound(f"There is no object {uri}", found="the name of a folder")
        filesystem, path = self._filesystem(uri)
        self.counters.add(requests=1)
        with errors_of(uri, "read"):
            filesystem.invalidate_cache()
            info = filesystem.info(path)
        if info["type"] != "file":
            raise ObjectNotFound(f"There is no object {uri}", found=f"a {info['type']} of that name")
        return _pin(uri, info)

    def list(self, folder: str) -> Iterator[ObjectRef]:
        """The whole listing is held in memory: fsspec has no other."""
        folder = folder.rstrip("/")
        filesystem, path = self._filesystem(folder)
        self.counters.add(requests=1)
        try:
            filesystem.invalidate_cache()
            found = filesystem.find(path, detail=True)
        except NotADirectoryError:
            return
        except Exception as error:
            raise as_storage_error(error, folder, "list") from error
        below = path.rstrip("/") + "/"
        refs = [
            _pin(f"{folder}/{name.removeprefix(below)}", info)
            for name, info in found.items()
            if name.startswith(below) and not name.endswith("/") and info["type"] == "file"
        ]
        yield from sorted(refs)

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        if not check_range(ref, offset, buffers):
            return
        filesystem, path = self._filesystem(ref.uri)
        for buffer in buffers:
            for at in range(0, buffer.nbytes, _PIECE_BYTES):
                piece = buffer[at : at + _PIECE_BYTES]
                piece[:] = self._piece(filesystem, path, ref, offset, piece.nbytes)
                offset += piece.nbytes
        now = self.stat(ref.uri)
        if now.version != ref.version:
            raise changed(ref, now.version)

    def _piece(self, filesystem: Any, path: str, ref: ObjectRef, offset: int, length: int) -> bytes:
        def attempt() -> bytes:
            try:
                data: bytes = filesystem.cat_file(path, start=offset, end=offset + length)
                if len(data) == length:
                    self.counters.add(bytes_read=length)
                    return data
                found, cause = f"{len(data)} bytes", None
            except _FINAL as error:
                raise as_storage_error(error, ref.uri, "read") from error
            except Exception as error:
                found, cause = described(error), error
            now = self.stat(ref.uri)
            if now.version != ref.version:
                raise changed(ref, now.version) from cause
            raise MayPass(found) from cause

        return retried(
            attempt,
            self._policy,
            self.counters,
            lambda n: f"Reading bytes {offset} to {offset + length} (exclusive) of {ref.uri} failed {times(n)}",
        )

    def create(self, uri: str) -> Writer:
        raise InvalidRequest(
            f"{uri} cannot be written: {self._scheme}:// cannot create an object here without replacing another",
            expected="an output in gs://bucket/folder, s3://bucket/folder or a local folder",
            cure="Write there, and copy it afterwards.",
        )

    def delete(self, ref: ObjectRef) -> None:
        raise InvalidRequest(
            f"{ref.uri} cannot be deleted: {self._scheme}:// cannot delete one version here and no other"
        )

    def _filesystem(self, uri: str) -> tuple[Any, str]:
        """fsspec's own cache keeps a file system for each thread, which each takes time to connect."""
        import fsspec.core

        # No more of it than the bucket: fsspec takes `::` in a name for a chain of file systems.
        scheme, _, rest = uri.partition("://")
        bucket = rest.partition("/")[0]
        place = (os.getpid(), bucket)
        if self._pid != os.getpid():
            # Whoever held the lock, as while it connected, is not in this process.
            self._lock, self._pid = threading.Lock(), os.getpid()
        with errors_of(uri, "open"):
            with self._lock:
                if place not in self._made:
                    self._made[place] = fsspec.core.url_to_fs(
                        f"{scheme}://{bucket}", use_listings_cache=False, **self._arguments()
                    )[0]
            filesystem = self._made[place]
            return filesystem, filesystem._strip_protocol(uri)

    def _arguments(self) -> dict[str, Any]:
        """The file system's arguments, in addition to those in fsspec's configuration."""
        return {}


def _check_installed(scheme: str) -> None:
    extra = _EXTRAS.get(scheme)
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        raise _no_store(scheme) from error
    except ImportError as error:
        if not extra and error.name == "fsspec":
            raise _no_store(scheme, cure="Schemes beyond these come with fsspec: pip install fsspec") from error
        raise InvalidRequest(
            f"{scheme}:// needs a package that is not installed",
            found=str(error),
            cure=f"pip install 'headrace[{extra}]'" if extra else "Install it, here and on the workers.",
        ) from error


def _no_store(
    scheme: str, cure: str = "Copy the object to a bucket or a local folder and name that."
) -> InvalidRequest:
    return InvalidRequest(
        f"No store for {scheme}://",
        expected="gs://, s3://, az://, hf://, https:// or a local path",
        found=f"{scheme}://",
        cure=cure,
    )


def _pin(uri: str, info: Mapping[str, Any]) -> ObjectRef:
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    if not version:
        times = [str(_seconds(info[key])) for key in _TIMES if info.get(key)]
        if not times or info.get("size") is None:
            raise StorageError(
                f"{uri} cannot be pinned: its store does not distinguish one version from another",
                found=f"no more than {', '.join(sorted(info))}",
                cure="Copy it to a bucket or a local folder and name that.",
            )
        version = ":".join([*times[:1], *([str(info["ino"])] if "ino" in info else []), str(info["size"])])
    return ObjectRef(uri, int(info["size"]), version)


def _seconds(time_: Any) -> Any:
    """File systems of one kind may give the same time as a datetime or as a number."""
    return time_.timestamp() if hasattr(time_, "timestamp") else time_


@contextmanager
def errors_of(uri: str, verb: str) -> Iterator[None]:
    """A file system's errors as a store's, which says that it cannot `verb` the object."""
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        raise as_storage_error(error, uri, verb) from error


def as_storage_error(error: Exception, uri: str, verb: str) -> StorageError:
    """Each file system has exceptions of its own: only their names can be compared."""
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if isinstance(error, FileNotFoundError):
        return ObjectNotFound(f"There is no object {uri}, or no such bucket", cure="Look at the spelling.")
    if isinstance(error, PermissionError) or re.search("Credential|Auth|Forbidden|GatedRepo", names):
        return AccessDenied(
            f"Cannot {verb} {uri}",
            found=described(error),
            cure="Give this identity the permission, or let the store's own variables name credentials that have it.",
        )
    unavailable = re.search("Timeout|Connect", names)
    return (StoreUnavailable if unavailable else StorageError)(f"Cannot {verb} {uri}", found=described(error))


def described(error: Exception) -> str:
    # Errors of web clients hold whole addresses, whose queries may be signatures.
    return re.sub(r"\?[^\s'\"]*", "?…", f"{type(error).__name__}: {error}")[:500].rstrip(": ")
