"""`http://` and `https://`: any web server, signed URLs included, for reading.

The version is a strong ETag (RFC 9110, section 8.8.3), or else Last-Modified. A URL's query and user may be a signature or
a password: they go to the server, and into nothing that people see.
"""

from __future__ import annotations

import logging
import re
import threading
import urllib.parse
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message

from ..errors import AccessDenied, InvalidRequest, ObjectChanged, ObjectNotFound, StorageError
from .bounded_cache import Recent
from .http_ranges import Asked, Header, HttpRefusal, RangeReader
from .retries import RetryPolicy
from .store import ObjectRef, Store, StoreOptions, Writer, changed, check_range, public_uri

_REDIRECTS = {301, 302, 303, 307, 308}
_MOST_REDIRECTS = 10
# As much as a format's first bytes: not worth fetching a whole object for, where the server has no ranges.
_PEEK_BYTES = 4096
_MOST_PLACES = 4096
# Bytes of objects without ranges, all together; a larger object is held alone.
_MOST_HELD_BYTES = 512 << 20
# The characters that RFC 3986 allows, and `%`: quoted text stays as it is.
_URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where redirects led to, and what was found there."""

    url: str
    headers: Header
    ref: ObjectRef
    ranged: bool


class _HeldObject:
    """An object of a server without ranges: one thread fetches it, the others wait."""

    def __init__(self, size: int) -> None:
        self.size, self.lock = size, threading.Lock()
        self.data: memoryview | None = None


class HttpStore(Store):
    """Reads by ranges. An object whose server lacks ranges is fetched whole, and held in memory until others replace it."""

    def __init__(self, options: StoreOptions = StoreOptions(), policy: RetryPolicy = RetryPolicy()) -> None:
        super().__init__(options, policy)
        self._ranges = RangeReader(self.counters, policy)
        self._lock = threading.Lock()
        self._places = Recent[str, _Place](_MOST_PLACES)
        self._held_objects = Recent[ObjectRef, _HeldObject](_MOST_HELD_BYTES, lambda held: held.size)

    def stat(self, uri: str) -> ObjectRef:
        return self._find(uri).ref

    def list(self, folder: str) -> Iterator[ObjectRef]:
        raise InvalidRequest(
            f"{public_uri(folder)} cannot be listed: web servers do not list a folder's files",
            expected="the URL of one object",
            cure="Name each file by its own URL.",
        )

    def glob(
        self,
        pattern: str,
        noted: Callable[[str], None] | None = None,  # noqa: ARG002
        other: Callable[[ObjectRef], None] | None = None,  # noqa: ARG002
    ) -> Iterator[ObjectRef]:
        """A URL is taken letter for letter, since `?` and `[` belong to it; one with a `*` cannot be answered."""
        if "*" in public_uri(pattern):
            yield from self.list(pattern)
        yield self.stat(pattern)

    def create(self, uri: str) -> Writer:
        raise _read_only(uri, "written")

    def delete(self, ref: ObjectRef) -> None:
        raise _read_only(ref.uri, "deleted")

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        length = check_range(ref, offset, buffers)
        if not length:
            return
        place = self._places.get(ref.uri)
        try:
            if place is None:
                self._read(self._find(ref.uri), ref, offset, buffers)
                return
            try:
                self._read(place, ref, offset, buffers)
            except HttpRefusal as refusal:
                if refusal.status in (412, 416):
                    raise
                # The place that a redirect led to may be good for some minutes only.
                self._read(self._find(ref.uri), ref, offset, buffers)
        except HttpRefusal as refusal:
            if refusal.status in (412, 416):
                raise _changed(ref, refusal.body) from refusal
            raise _refused(refusal.status, ref.uri, refusal.body) from refusal

    def _read(self, place: _Place, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        if (place.ref.version, place.ref.size) != (ref.version, ref.size):
            self._places.drop(ref.uri)
            raise _changed(ref, place.ref.version)
        if place.ranged or offset + sum(buffer.nbytes for buffer in buffers) <= _PEEK_BYTES:
            self._fetch(place, offset, buffers)
            return
        held = self._held_object(place)
        for buffer in buffers:
            buffer[:] = held[offset : offset + buffer.nbytes]
            offset += buffer.nbytes

    def _held_object(self, place: _Place) -> memoryview:
        with self._lock:
            held = self._held_objects.get(place.ref) or _HeldObject(place.ref.size)
            self._held_objects.keep(place.ref, held)
        with held.lock:
            if held.data is None:
                _log.info(
                    "%s comes from a server without ranges: all of its %d bytes are held in memory",
                    public_uri(place.ref.uri),
                    place.ref.size,
                )
                try:
                    data = memoryview(bytearray(place.ref.size))
                except (MemoryError, OverflowError) as error:
                    raise StorageError(
                        f"{public_uri(place.ref.uri)} does not fit into memory, and its server has no ranges",
                        found=f"{place.ref.size} bytes",
                        cure="Copy it to a bucket or a local folder and name that.",
                    ) from error
                self._fetch(place, 0, [data])
                held.data = data
            return held.data

    def _fetch(self, place: _Place, offset: int, buffers: Sequence[memoryview]) -> None:
        etag = place.ref.version.startswith('"')
        asked = Asked(
            place.ref.name,
            place.url,
            {**place.headers, "If-Match": place.ref.version} if etag else place.headers,
            expect={"Content-Encoding": "identity"},
            require={"ETag" if etag else "Last-Modified": place.ref.version},
            size=place.ref.size,
            ranged=place.ranged,
        )
        self._ranges.read_into(asked, offset, buffers)

    def _find(self, uri: str) -> _Place:
        """Asks for the first byte, not by HEAD: a URL is signed for one method."""
        url, headers = _parse(uri)
        for _ in range(_MOST_REDIRECTS):
            status, answer, body = self._ranges.ask(public_uri(uri), url, {**headers, "Range": "bytes=0-0"})
            if status not in _REDIRECTS:
                place = _Place(url, headers, *_pin(uri, status, answer, body))
                self._places.keep(uri, place)
                return place
            there = urllib.parse.urljoin(url, answer.get("Location", ""))
            if url.startswith("https:") and not there.startswith("https:"):
                raise StorageError(f"{public_uri(uri)} leads away from TLS", found=f"a redirect to {public_uri(there)}")
            if _origin(there) != _origin(url):
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url, _ = _parse(there)
        raise StorageError(f"{public_uri(uri)} leads from redirect to redirect", found=f"{_MOST_REDIRECTS} of them")


def _parse(uri: str) -> tuple[str, dict[str, str]]:
    """The URL to ask and the headers to send; a user and a password in it become a header."""
    try:
        parts = urllib.parse.urlsplit(urllib.parse.quote(uri, safe=_URL_CHARACTERS))
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        # Where user and password cannot be separated, all of it may be a password.
        raise InvalidRequest(f"'{uri.partition('://')[0]}://…' is not a URL", expected="https://host/path")
    # Bytes as they are stored: packed on the way, ranges and sizes would be another thing's.
    headers = {"Accept-Encoding": "identity"}
    login, _, netloc = parts.netloc.rpartition("@")
    if login:
        headers["Authorization"] = "Basic " + b64encode(urllib.parse.unquote_to_bytes(login)).decode()
    return parts._replace(netloc=netloc, fragment="").geturl(), headers


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _pin(uri: str, status: int, answer: Message, body: str) -> tuple[ObjectRef, bool]:
    """The object according to the answer to a request for its first byte, and whether the server has ranges."""
    if status not in (200, 206, 416):
        raise _refused(status, uri, body)
    if (encoding := answer.get("Content-Encoding", "identity")) != "identity":
        raise StorageError(
            f"{public_uri(uri)} comes packed, though it was asked for as it is",
            expected="no Content-Encoding",
            found=encoding,
            cure="Switch compression off for it in the server, or copy it to a bucket.",
        )
    header, form = "Content-Length", r"(\d+)"
    if status != 200:  # an empty object has no first byte: RFC 9110, section 15.5.17
        header, form = "Content-Range", r"bytes (?:0-0|\*)/(\d+)"
    size = re.fullmatch(form, answer.get(header, "none").strip())
    if not size or (status == 416 and int(size[1])):
        raise StorageError(
            f"The server does not say how large {public_uri(uri)} is",
            expected="Content-Length, or ranges",
            found=f"HTTP {status} with {header} {answer.get(header, 'missing')}",
            cure="Copy it to a bucket or a local folder and name that.",
        )
    etag = answer.get("ETag", "")
    version = etag if re.fullmatch(r'"[^"]*"', etag) else answer.get("Last-Modified", "")
    if not version:
        raise StorageError(
            f"The server does not distinguish one version of {public_uri(uri)} from another",
            expected="a strong ETag, or Last-Modified",
            found=f"ETag {etag}" if etag else "neither",
            cure="Copy it to a bucket or a local folder and name that.",
        )
    return ObjectRef(uri, int(size[1]), version), status == 206


def _refused(status: int, uri: str, body: str) -> StorageError:
    name = public_uri(uri)
    # Stores keep code and message separate from what was signed, which must stay secret.
    messages = re.findall(r"<(?:Code|Message)>([^<?]{1,200})", body)
    found = f"HTTP {status}" + "".join(f", {text.strip()}" for text in messages[:2])
    if status in (404, 410):
        return ObjectNotFound(f"There is no object {name}", found=found, cure="Look at the spelling.")
    if status in (401, 403, 407):
        return AccessDenied(
            f"Cannot read {name}",
            found=found,
            cure="A signed URL may have expired: sign it again, for GET, and for longer.",
        )
    return StorageError(f"Cannot read {name}", found=found)


def _changed(ref: ObjectRef, found: str) -> ObjectChanged:
    plain = len(found) < 200 and "<" not in found
    return changed(ref, found if plain else "another", f"version {ref.version}, {ref.size} bytes")


def _read_only(uri: str, verb: str) -> InvalidRequest:
    return InvalidRequest(
        f"{public_uri(uri)} cannot be {verb}: web servers are read only",
        expected="gs://bucket/folder, s3://bucket/folder or a local path",
    )
