"""The contract that every store keeps: objects by URI, exact ranges of a pinned version, create-only writes."""

from __future__ import annotations

import functools
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ..errors import LOGIN, AlreadyExists, InvalidRequest, ObjectChanged, ObjectNotFound, StorageError

# Names that begin with `_` or `.`, which readers of Parquet pass over.
# A folder `_key=value` is a partition, as Spark has it.
HIDDEN = re.compile(r"/(?:\.|_(?![^/]*=[^/]*/))")


@dataclass(frozen=True, slots=True, order=True)
class ObjectRef:
    """One version of one object. Reading through it gives that version's bytes or raises `ObjectChanged`.

    `size` is in bytes. `version` is a value that the store changes on every write: a GCS generation, an ETag, or a local
    file's inode, size, modification and change time. `crc32c` is the whole object's CRC-32C where the store knows it.
    """

    uri: str
    size: int
    version: str
    crc32c: int | None = None

    def __repr__(self) -> str:
        return f"ObjectRef({self.name!r}, size={self.size}, version={self.version!r})"

    @property
    def name(self) -> str:
        """The URI for people to see."""
        return public_uri(self.uri)


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """The user's settings for access; never a secret.

    `change_times` is False for jobs that an earlier version of headrace began: versions of local files then lack the time at
    which the file system last changed them.
    """

    billing_project: str | None = None
    kms_key: str | None = None
    change_times: bool = True


_lock = threading.Lock()
_retries = _retries_taken = 0


def retries_so_far() -> int:
    """Requests that any store of this process tried again since it began."""
    return _retries


def take_retries() -> int:
    """The retries since the last call."""
    global _retries_taken
    with _lock:
        taken, _retries_taken = _retries - _retries_taken, _retries
    return taken


class Counters:
    """What a store has done since it was opened; safe from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = self.retries = self.bytes_read = self.bytes_written = 0

    def add(self, *, requests: int = 0, retries: int = 0, bytes_read: int = 0, bytes_written: int = 0) -> None:
        global _retries
        with self._lock:
            self.requests += requests
            self.retries += retries
            self.bytes_read += bytes_read
            self.bytes_written += bytes_written
        if retries:
            with _lock:
                _retries += retries


class Writer(ABC):
    """An object being written. It becomes visible, complete, at `commit()` and at no other moment.

    Neither `close()`, nor leaving the `with` block, nor an exception, nor garbage collection publishes anything: what
    has not been committed is lost. `write`, `tell`, `flush`, `close` and `closed` are what pyarrow needs of a file.
    `_written` counts bytes, and `commit` and `abort` set `_closed`.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._written, self._closed = uri, 0, False

    @abstractmethod
    def write(self, data: Any) -> int:
        """Takes any bytes-like object; returns its length in bytes."""

    def tell(self) -> int:
        """Bytes written so far."""
        return self._written

    @abstractmethod
    def commit(self) -> ObjectRef:
        """Publishes the object. Raises `AlreadyExists` where one of that name already exists.

        `write` raises it too, where a store says so before the last byte is sent.
        """

    @abstractmethod
    def abort(self) -> None:
        """Forgets what was written; harmless after `commit()` and when called twice."""

    @property
    def closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self.closed:
            raise StorageError(f"{self._uri} was committed or aborted before; nothing more can be written to it")

    def flush(self) -> None:
        """Nothing to do: bytes are durable at `commit()`."""

    def close(self) -> None:
        """Nothing to do: pyarrow closes its sinks, and closing must never publish."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class Store(ABC):
    """Objects by full URI. Every method may be called from many threads at once; a Store survives pickling."""

    def __init__(self, options: StoreOptions = StoreOptions(), *more: Any) -> None:
        """`more` are a subclass' own arguments, of which it is made again when it is unpickled."""
        self.options, self._more = options, more
        self.counters = Counters()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.options, *self._more)

    @abstractmethod
    def stat(self, uri: str) -> ObjectRef:
        """The object's newest version. Raises `ObjectNotFound`, `AccessDenied`."""

    def find(self, uri: str) -> ObjectRef | None:
        """As `stat`; None where there is no such object."""
        try:
            return self.stat(uri)
        except ObjectNotFound:
            return None

    @abstractmethod
    def list(self, folder: str) -> Iterator[ObjectRef]:
        """Every object below the folder, at any depth, in order of its URI; nothing where there is none.

        Raises `ObjectNotFound` only where the bucket itself is missing.
        """

    @abstractmethod
    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fills the writable byte buffers, one after the other, with the pinned version's bytes from `offset` on.

        Retries what may pass, resuming at the byte reached. Raises `ObjectChanged` where another version has taken its
        place, `ObjectNotFound` where none has, and `StorageError` naming object, range, attempts and last cause where
        retries are spent or the object is too short. After an error the buffers' content is undefined.
        """

    @abstractmethod
    def create(self, uri: str) -> Writer:
        """A create-only writer; see `Writer`."""

    def put(self, uri: str, data: bytes) -> ObjectRef:
        """Creates an object. Raises `AlreadyExists` where one of that name exists."""
        with self.create(uri) as writer:
            writer.write(data)
            return writer.commit()

    def put_same(self, uri: str, data: bytes) -> ObjectRef:
        """Creates an object unless the same one exists. Raises `AlreadyExists` where one of other content does."""
        try:
            return self.put(uri, data)
        except AlreadyExists:
            there = self.stat(uri)
            if self.read(there) != data:
                raise
            return there

    @abstractmethod
    def delete(self, ref: ObjectRef) -> None:
        """Removes that version; harmless where it is gone. Raises `ObjectChanged` where another version exists."""

    def publish(self, source: ObjectRef, uri: str) -> ObjectRef:
        """Also gives the content of `source` the name `uri`, in one step that fails where `source` is gone.

        So a process that removes `source` first knows that it is never published. Raises `AlreadyExists` where an object of
        that name exists, `ObjectNotFound` where `source` is gone. A store without such a step, as here, removes what it wrote
        if `source` was gone afterwards.
        """
        ref = self.put(uri, self.read(source))
        try:
            self.stat(source.uri)
        except ObjectNotFound:
            self.delete(ref)
            raise
        return ref

    def clean(self, folder: str) -> int:  # noqa: ARG002
        """Removes what writers that crashed left hidden below the folder, and what running ones have so far; returns how many.

        Most stores keep nothing hidden. GCS keeps it where nobody sees it, and deletes it after a week.
        """
        return 0

    def read(self, ref: ObjectRef, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes (default: to the end) of the pinned version from `offset` on."""
        data = bytearray(max(0, ref.size - offset) if length is None else length)
        self.read_into(ref, offset, [memoryview(data)])
        return bytes(data)

    def open_arrow(self, ref: ObjectRef) -> Any:
        """The pinned version as a random-access `pyarrow.NativeFile`."""
        from ..nested_arrow import python_file
        from .arrow_reader import CachedReader

        return python_file(CachedReader(functools.partial(self.read_into, ref), ref.size), "r")

    def glob(
        self,
        pattern: str,
        noted: Callable[[str], None] | None = None,  # noqa: ARG002
        other: Callable[[ObjectRef], None] | None = None,
    ) -> Iterator[ObjectRef]:
        """Objects whose URI matches: `*` and `?` within a folder, `**` across folders, `[...]` sets; in URI order.

        A name that itself contains a wildcard is matched by putting that character in a set: `[[]`, `[*]`, `[?]`.
        `noted` is called with a sentence on each match that is not an object; only local folders hold such.
        `other` takes each object of the listing that does not match; local folders that cannot match are not listed.
        """
        folder, wild = split_glob(pattern)
        if not wild:
            yield self.stat(pattern)
            return
        matches = glob_regex(pattern).fullmatch
        for ref in self.list(folder):
            if matches(ref.uri):
                yield ref
            elif other is not None:
                other(ref)


def public_uri(uri: str) -> str:
    """A web address without what may be a secret: user, password, query and fragment. Other URIs as they are, but for
    a user with a password.
    """
    uri = LOGIN.sub(r"\1", uri)
    web = re.match(r"(https?://)(?:[^/?#]*@)?([^?#]*)", uri)
    return web[1] + web[2] if web else uri


def already_exists(uri: str) -> AlreadyExists:
    return AlreadyExists(f"{uri} already exists", cure="Delete it, or write under another name.")


def changed(ref: ObjectRef, found: str, expected: str = "") -> ObjectChanged:
    """Another version is `found`; `expected` is the pinned one."""
    return ObjectChanged(
        f"{ref.name} was rewritten while it was in use",
        expected=expected or f"version {ref.version}",
        found=found,
        cure="Run again, and leave the inputs alone meanwhile.",
    )


def check_range(ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> int:
    """How many bytes the buffers ask for. Raises `StorageError` where the object does not reach that far."""
    length = sum(buffer.nbytes for buffer in buffers)
    if offset < 0 or offset + length > ref.size:
        raise StorageError(
            f"{ref.name} is too short for the bytes asked of it",
            expected=f"at least {offset + length} bytes",
            found=f"{ref.size} bytes",
        )
    return length


def split_glob(pattern: str) -> tuple[str, bool]:
    """The folder (with its trailing slash) above the first wildcard, and whether there is a wildcard at all."""
    wildcard = re.search(r"[*?\[]", pattern)
    literal = pattern[: wildcard.start()] if wildcard else pattern
    return literal[: literal.rfind("/") + 1], wildcard is not None


_FOLDERS = "(?:[^/]+/)*"
_WILD = ("[^/]*", ".*", _FOLDERS)
# Of an even number of stars before a slash, the last two are any number of folders. A set's first member may be a `]`.
_GLOB = re.compile(
    r"(?P<folders>\*\*/)|(?P<stars>(?:\*\*)+(?=\*\*/)|\*+)|(?P<one>\?)|\[(?P<negated>[!^]?+)(?P<members>.[^\]]*+)\]|.",
    re.DOTALL,
)


def glob_regex(pattern: str) -> re.Pattern[str]:
    """`**/` is any number of folders; `*`, `?` and sets stay within one; a `[` without its `]` is literal.

    Raises `InvalidRequest` where a set's range runs backwards.
    """
    out = [""]
    for token in _GLOB.finditer(pattern):
        if token["folders"]:
            if out[-1] != _FOLDERS:
                out.append(_FOLDERS)
        elif token["stars"]:
            # However many in a row: a regular expression would try every way to share a name among them.
            out.append(".*" if len(token["stars"]) > 1 else "[^/]*")
        elif token["one"]:
            out.append("[^/]")
        elif token["members"]:
            members = "".join("-" if c == "-" else re.escape(c) for c in token["members"])
            out.append(f"(?!/)[{'^' if token['negated'] else ''}{members}]")
        else:
            out.append(re.escape(token[0]))
    try:
        return re.compile(_without_retries(out), re.DOTALL)
    except re.error as error:
        raise InvalidRequest(
            f"{pattern!r} is not a glob", found=str(error), cure="Write sets as [abc] or [a-z]."
        ) from error


def _without_retries(parts: Sequence[str]) -> str:
    """The parts in a row. A star that another follows keeps the first end that fits, since no other end lets more follow:
    otherwise a regular expression tries every end of every star, and never ends.
    """
    wild = [i for i, part in enumerate(parts) if part in _WILD]
    if not wild:
        return "".join(parts)
    out = "".join(parts[: wild[0]])
    for i, end in zip(wild, [*wild[1:], None], strict=True):
        fixed = "".join(parts[i + 1 : end])
        first = parts[i] == "[^/]*" and end is not None and parts[end] in ("[^/]*", ".*")
        out += f"(?>[^/]*?{fixed})" if first else parts[i] + fixed
    return out
