"""Local files as a store: `file:///…` or plain paths, taken literally (`%20` is not a space).

A file that is being written has no name until it is committed (`O_TMPFILE`, see open(2) and linkat(2)): not even `kill -9`
leaves a trace. On a file system without that, it has a hidden name that `list` ignores.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import AccessDenied, InvalidRequest, ObjectNotFound, StorageError
from .local_glob import MatchingFiles
from .store import ObjectRef, Store, Writer, already_exists, changed, check_range, split_glob

_TEMPORARY = ".headrace-"
_BUFFERS_PER_CALL = os.sysconf("SC_IOV_MAX")
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}


class LocalStore(Store):
    """`version` is inode, size in bytes, and modification and change time in ns; a local file carries no checksum.

    The file system sets the change time itself: it cannot be set back, as `touch` does with the modification time.
    """

    def _pin(self, uri: str, status: os.stat_result) -> ObjectRef:
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "neither a file nor a folder"
            raise ObjectNotFound(f"There is no file {uri}", found=kind)
        change_time = f"-{status.st_ctime_ns}" if self.options.change_times else ""
        return ObjectRef(uri, status.st_size, f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}{change_time}")

    def stat(self, uri: str) -> ObjectRef:
        self.counters.add(requests=1)
        with _errors_of(uri, "read", (OSError, ValueError)):
            return self._pin(uri, os.stat(_path(uri)))

    def list(self, folder: str) -> Iterator[ObjectRef]:
        """Links to files are listed; links to folders are not followed, which avoids duplicates and endless loops."""
        self.counters.add(requests=1)
        yield from self._walk(folder if folder.endswith("/") or not folder else folder + "/")

    def glob(
        self,
        pattern: str,
        noted: Callable[[str], None] | None = None,
        other: Callable[[ObjectRef], None] | None = None,  # noqa: ARG002
    ) -> Iterator[ObjectRef]:
        """Follows links to folders too: see `MatchingFiles` for what is noted, and what is an error."""
        folder, wild = split_glob(pattern)
        if not wild:
            yield self.stat(pattern)
            return
        _path(folder)
        self.counters.add(requests=1)
        for uri, status in MatchingFiles(pattern, _TEMPORARY, noted or (lambda _: None), _as_storage_error):
            yield self._pin(uri, status)

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        length = check_range(ref, offset, buffers)
        if not length:
            return
        with _errors_of(ref.uri, "read"), _opened(_path(ref.uri)) as fd:
            self._check(ref, fd)
            _fill(ref, fd, offset, buffers)
            self._check(ref, fd)
        self.counters.add(requests=1, bytes_read=length)

    def open_arrow(self, ref: ObjectRef) -> Any:
        """A `pyarrow.OSFile`, read without the GIL. Closing it raises where the file was rewritten meanwhile."""
        from .pinned_local_file import PinnedFile

        with _errors_of(ref.uri, "read"):
            fd = os.open(_path(ref.uri), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._check(ref, fd)
            # Through the descriptor, it is the very file that was checked, even if another has taken its name since.
            file = PinnedFile(f"/proc/self/fd/{fd}", mode="r")
        except BaseException:
            os.close(fd)
            raise
        file.pin(fd, lambda: self._check(ref, fd))
        self.counters.add(requests=1)
        return file

    def create(self, uri: str) -> Writer:
        return _LocalWriter(self, uri)

    def clean(self, folder: str) -> int:
        """Files with hidden names: there are some only where the file system has no unnamed ones."""
        found = [
            os.path.join(inside, name)
            for inside, _, names in os.walk(_path(folder))
            for name in names
            if name.startswith(_TEMPORARY)
        ]
        for path in found:
            with _errors_of(path, "delete"):
                os.unlink(path)
        return len(found)

    def delete(self, ref: ObjectRef) -> None:
        """Callers that remove files of one folder take turns: no other file gets into the place between check and removal.

        A different change time alone does not mean another file: a second name or other permissions change it.
        """
        folder, name = os.path.split(os.path.abspath(_path(ref.uri)))
        try:
            with _opened(folder, os.O_DIRECTORY) as fd:
                with suppress(OSError):  # some network file systems cannot lock folders
                    fcntl.flock(fd, fcntl.LOCK_EX)
                found = self._pin(ref.uri, os.stat(name, dir_fd=fd))
                if _without_change_time(found) != _without_change_time(ref):
                    raise changed(ref, found.version)
                os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _as_storage_error(error, ref.uri, "delete") from error

    def _walk(self, folder: str) -> Iterator[ObjectRef]:
        try:
            with os.scandir(_path(folder) or ".") as scan:
                # With its slash, a folder's name sorts as all the URIs below it do.
                entries = sorted((entry.name + "/" * entry.is_dir(follow_symlinks=False), entry) for entry in scan)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _as_storage_error(error, folder, "list") from error
        for name, entry in entries:
            if name.endswith("/"):
                yield from self._walk(folder + name)
            elif not name.startswith(_TEMPORARY):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise _as_storage_error(error, folder + name, "read") from error
                if stat.S_ISREG(status.st_mode):
                    yield self._pin(folder + name, status)

    def _check(self, ref: ObjectRef, fd: int) -> None:
        status = os.fstat(fd)
        found = self._pin(ref.uri, status)
        # Losing its last name changes the change time of an open file.
        same = _without_change_time(found) == _without_change_time(ref) and not status.st_nlink
        if found.version != ref.version and not same:
            raise changed(ref, found.version)

    def publish(self, source: ObjectRef, uri: str) -> ObjectRef:
        """A second name of the same file. The link fails where the first is gone."""
        self.counters.add(requests=1)
        path = os.path.abspath(_path(uri))
        try:
            _make_folders(os.path.dirname(path))
            os.link(_path(source.uri), path)
            _sync_folder(os.path.dirname(path))
            return self._pin(uri, os.stat(path))
        except FileNotFoundError as error:
            raise ObjectNotFound(f"There is no file {source.uri}") from error
        except OSError as error:
            raise _as_storage_error(error, uri, "write") from error


class _LocalWriter(Writer):
    def __init__(self, store: LocalStore, uri: str) -> None:
        super().__init__(uri)
        self._store = store
        self._fd = self._folder = -1
        self._hidden: str | None = None
        path = os.path.abspath(_path(uri))
        folder, self._name = os.path.split(path)
        if uri.endswith("/"):
            raise StorageError(f"{uri} names a folder, not a file")
        try:
            _make_folders(folder)
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._fd = self._nameless(folder)
        except OSError as error:
            self.abort()
            raise _as_storage_error(error, uri, "write") from error

    def _nameless(self, folder: str) -> int:
        if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
            try:
                return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
        self._hidden = f"{_TEMPORARY}{secrets.token_hex(8)}"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        return os.open(self._hidden, flags, 0o666, dir_fd=self._folder)

    def write(self, data: Any) -> int:
        self._check_open()
        rest = memoryview(data).cast("B")
        length = rest.nbytes
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self.abort()
            raise _as_storage_error(error, self._uri, "write") from error
        self._written += length
        return length

    def commit(self) -> ObjectRef:
        self._check_open()
        try:
            os.fsync(self._fd)
            if self._hidden is None:
                # Only with a dir_fd does Python call linkat(), which alone follows the link in /proc to the open file.
                os.link(f"/proc/self/fd/{self._fd}", self._name, dst_dir_fd=self._folder, follow_symlinks=True)
            else:
                os.link(self._hidden, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                # Before the file is pinned: losing a name changes its change time.
                hidden, self._hidden = self._hidden, None
                os.unlink(hidden, dir_fd=self._folder)
            ref = self._store._pin(self._uri, os.fstat(self._fd))
            os.fsync(self._folder)
        except OSError as error:
            raise _as_storage_error(error, self._uri, "write") from error
        finally:
            self.abort()
        self._store.counters.add(requests=1, bytes_written=self._written)
        return ref

    def abort(self) -> None:
        self._closed = True
        fd, self._fd = self._fd, -1
        folder, self._folder = self._folder, -1
        hidden, self._hidden = self._hidden, None
        try:
            if hidden is not None and fd >= 0:
                os.unlink(hidden, dir_fd=folder)
        finally:
            for open_fd in (fd, folder):
                if open_fd >= 0:
                    os.close(open_fd)

    def __del__(self) -> None:
        self.abort()


def check_writable(folder: str) -> None:
    """Raises `StorageError` where no file can be made in that folder, which may not exist yet. Writes nothing."""
    nearest = _nearest(folder)
    if os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK):
        return
    raise StorageError(
        f"Nothing can be written to {folder}",
        expected="a folder that can be written",
        found=f"{nearest}, which this user may not write to" if os.path.isdir(nearest) else f"a file at {nearest}",
        cure="Name another --output.",
    )


def _nearest(uri: str) -> str:
    """The existing part of a path: all of it, or its deepest existing parent."""
    path = os.path.abspath(_path(uri))
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _path(uri: str) -> str:
    path = uri.removeprefix("file://")
    if (path is not uri and not path.startswith("/")) or "\0" in path:
        raise InvalidRequest(f"{uri!r} is not a local file", expected="file:///folder/name or a plain path")
    return path


def _fill(ref: ObjectRef, fd: int, offset: int, buffers: Sequence[memoryview]) -> None:
    rest = [buffer for buffer in buffers if buffer.nbytes]
    first = 0
    while first < len(rest):
        count = os.preadv(fd, rest[first : first + _BUFFERS_PER_CALL], offset)
        if not count:
            raise changed(ref, f"no byte {offset}")
        offset += count
        while first < len(rest) and count >= rest[first].nbytes:
            count -= rest[first].nbytes
            first += 1
        if count:
            rest[first] = rest[first][count:]


def _make_folders(folder: str) -> None:
    """Like `os.makedirs`, and each new folder's name is on the disk before anything is put into it."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folders(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    _sync_folder(parent)


def _without_change_time(ref: ObjectRef) -> list[str]:
    return ref.version.split("-")[:3]


@contextmanager
def _opened(path: str, flags: int = 0) -> Iterator[int]:
    """A descriptor of a file or, with `O_DIRECTORY`, a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _sync_folder(folder: str) -> None:
    with _opened(folder, os.O_DIRECTORY) as fd:
        os.fsync(fd)


@contextmanager
def _errors_of(uri: str, verb: str, kinds: type[Exception] | tuple[type[Exception], ...] = OSError) -> Iterator[None]:
    """The system's errors as a store's, which says that it cannot `verb` the file."""
    try:
        yield
    except kinds as error:
        raise _as_storage_error(error, uri, verb) from error


def _as_storage_error(error: Exception, uri: str, verb: str) -> StorageError:
    if isinstance(error, FileExistsError) and verb == "write":
        return already_exists(uri)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) and verb != "write":
        if os.path.islink(_path(uri)):
            return ObjectNotFound(
                f"There is no file {uri}",
                found=f"a link to {os.readlink(_path(uri))}, which does not exist",
                cure="Restore what it points at, or remove the link.",
            )
        return ObjectNotFound(f"There is no file {uri}", cure="Look at the path's spelling.")
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return AccessDenied(f"Cannot {verb} {uri}", found=reason, cure=f"Grant this user the right to {verb} it.")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return StorageError(
            f"Cannot write {uri}",
            expected="a folder that can be written",
            found=f"{reason}, below {_nearest(uri)}",
            cure="Name another --output.",
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"No space to {verb} {uri}", found=reason, cure="Free some, or write elsewhere.")
    if getattr(error, "errno", None) == errno.EFBIG:
        return StorageError(f"Cannot {verb} {uri}", found=reason, cure="Raise this user's limit (ulimit -f).")
    return StorageError(f"Cannot {verb} {uri}", found=reason)
