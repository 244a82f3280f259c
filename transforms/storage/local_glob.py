"""Finds the local files that match a pattern. Links are followed: a linked folder's files are found like any other's.

No match is lost silently: it is yielded, it is an error, or it is noted with its name.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator

from ..errors import ObjectNotFound, StorageError
from .store import HIDDEN, glob_regex, split_glob

Noted = Callable[[str], None]
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class MatchingFiles:
    """URI and status of each file that matches, in the order of the URIs. Names that begin with `passed_over` are ignored.

    `noted` gets a sentence on each folder that matches but has no match inside, and on each link back to a folder above it.
    Raises `ObjectNotFound` for a broken link, `StorageError` for what is neither file nor folder, and what `refused` makes of a
    folder or file that may not be read; hidden names are no errors.
    """

    def __init__(
        self, pattern: str, passed_over: str, noted: Noted, refused: Callable[[OSError, str, str], StorageError]
    ) -> None:
        self._literal = split_glob(pattern)[0]
        self._matches = glob_regex(pattern).fullmatch
        rest = pattern[len(self._literal) :]
        # A slash within a set would be cut apart.
        segments = ["**"] if re.search(r"\[[^\]]*/", rest) else rest.split("/")
        self._segments = [None if "**" in segment else glob_regex(segment) for segment in segments]
        self._passed_over, self._noted, self._refused = passed_over, noted, refused

    def __iter__(self) -> Iterator[tuple[str, os.stat_result]]:
        return self._enter(self._literal, frozenset())

    def _enter(self, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
        """`above` are device and inode of the folders that the walk is in."""
        path = folder.removeprefix("file://") or "."
        try:
            status = os.stat(path)
            key = (status.st_dev, status.st_ino)
            if key in above:
                self._noted(f"{folder} is a link back to a folder above it, whose files are read under their own names")
                return
            with os.scandir(path) as scan:
                # With its slash, a folder's name sorts as all the URIs below it do.
                entries = sorted((entry.name + "/" * _is_folder(entry), entry) for entry in scan)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._refused(error, folder, "list") from error
        for name, entry in entries:
            if name.endswith("/"):
                yield from self._folder(folder + name, above | {key})
            elif not name.startswith(self._passed_over):
                found = self._status(folder + name, entry)
                if found is not None:
                    yield folder + name, found

    def _folder(self, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
        found = False
        if self._may_lead(folder):
            for match in self._enter(folder, above):
                found = True
                yield match
        if not found and self._matches(folder[:-1]) and not self._hidden(folder):
            self._noted(
                f"{folder} is a folder, and nothing in it matches; '{folder}*' or '**' would read what is in it"
            )

    def _status(self, uri: str, entry: os.DirEntry[str]) -> os.stat_result | None:
        """None for what does not concern the pattern."""
        matches = self._matches(uri) is not None
        if not matches and not (entry.is_symlink() and self._may_lead(f"{uri}/")):
            return None
        try:
            status = entry.stat()
        except OSError as error:
            if entry.is_symlink() and error.errno in _LEADS_NOWHERE:
                if self._hidden(uri):
                    return None
                raise _leads_nowhere(uri, error) from error
            if isinstance(error, FileNotFoundError):  # it has gone since
                return None
            raise self._refused(error, uri, "read") from error
        if not matches or stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            if self._hidden(uri):
                return None
            raise StorageError(
                f"{uri} matches the pattern and cannot be read",
                expected="a file",
                found=_KINDS.get(stat.S_IFMT(status.st_mode), "something else"),
                cure="Move it elsewhere, or narrow the pattern.",
            )
        return status

    def _may_lead(self, folder: str) -> bool:
        """Whether something below that folder can match."""
        for i, part in enumerate(folder[len(self._literal) : -1].split("/")):
            segment = self._segments[i]
            if segment is None:
                return True
            if i + 1 >= len(self._segments) or not segment.fullmatch(part):
                return False
        return True

    def _hidden(self, uri: str) -> bool:
        return HIDDEN.search(f"/{uri[len(self._literal) :]}") is not None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to what may not be seen
        return False


def _leads_nowhere(uri: str, error: OSError) -> ObjectNotFound:
    try:
        target = os.readlink(uri.removeprefix("file://"))
    except OSError:
        target = "an unknown place"
    found = "a link that leads to itself" if error.errno == errno.ELOOP else f"a link to {target}, which does not exist"
    return ObjectNotFound(
        f"{uri} matches the pattern and leads nowhere",
        expected="a file, or a link to one",
        found=found,
        cure="Restore what it points at, remove the link, or narrow the pattern.",
    )
