"""Byte ranges over HTTP (RFC 9110, section 14), read from the socket straight into the caller's buffers.

google-cloud-storage and requests hand out bytes that they have copied several times; reading into place with
http.client is about twice as fast, and takes no second copy in memory.
"""

from __future__ import annotations

import email.utils
import http.client
import os
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from typing import TypeVar, cast

from ..errors import StorageError
from .http_meter import MeteredResponse, TooMuch, TooSlow
from .prefault import prefault
from .retries import MayPass, RetryPolicy, retried, times
from .store import Counters

_TRANSIENT = {408, 429, 500, 502, 503, 504}
_IDLE_CONNECTIONS = 64
_ERROR_BODY_BYTES = 4096
_SKIPPED_AT_ONCE = 1 << 20

# Network and server faults that may pass.
_FAILURES = (OSError, http.client.HTTPException, TooSlow)

Header = Mapping[str, str]
_T = TypeVar("_T")


class HttpRefusal(Exception):
    """A status that no retry will change; `status` and the beginning of the `body` are for the store to interpret."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}")  # a body may quote what was signed, and a traceback shows this
        self.status, self.body = status, body


@dataclass(frozen=True, slots=True)
class Asked:
    """An object at a URL. `name` is its name in errors, since URLs may be signed; `headers` are sent.

    `expect` holds response headers that must have exactly that value if they are sent; those in `require` must be sent.
    `size` is the object's in bytes, where it must be that. With `ranged` false the server is asked for the whole object; it
    must announce `size` bytes, and unneeded ones are left or skipped.
    """

    name: str
    url: str
    headers: Header
    expect: Header = field(default_factory=dict)
    require: Header = field(default_factory=dict)
    size: int | None = None
    ranged: bool = True


class RangeReader:
    """Keeps connections alive, one per range in flight. Safe from many threads, and across fork."""

    def __init__(self, counters: Counters, policy: RetryPolicy = RetryPolicy()) -> None:
        self._counters, self._policy = counters, policy
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = defaultdict(list)
        self._proxies: dict[tuple[str, str], urllib.parse.SplitResult | None] = {}
        self._tls: ssl.SSLContext | None = None

    def ask(self, name: str, url: str, headers: Header) -> tuple[int, Message, str]:
        """A GET's status, headers, and the beginning of a refusal's body. Raises `StorageError` as below."""
        return self._tried(lambda: self._ask(url, headers), lambda n: f"Asking for {name} failed {times(n)}")

    def read_into(self, asked: Asked, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fills the buffers with the object's bytes from `offset` on. Raises `HttpRefusal` for a status that is final, and
        `StorageError` where all attempts failed.
        """
        rest = [buffer for buffer in buffers if buffer.nbytes]
        start, end = offset, offset + sum(buffer.nbytes for buffer in rest)

        def reached() -> int:
            # Buffers that were filled before a failure are no longer in `rest`.
            return end - sum(buffer.nbytes for buffer in rest)

        def attempt() -> None:
            before = reached()
            try:
                self._attempt(asked, rest, before, end)
            finally:
                self._counters.add(bytes_read=reached() - before)

        if rest:
            self._tried(
                attempt,
                lambda n: (
                    f"Reading bytes {start} to {end} (exclusive) of {asked.name} failed {times(n)}, "
                    f"the last time at byte {reached()}"
                ),
            )

    def _tried(self, attempt: Callable[[], _T], describe: Callable[[int], str]) -> _T:
        try:
            return retried(attempt, self._policy, self._counters, describe)
        except TooMuch as error:
            raise StorageError(
                describe(1),
                expected="an answer to what was asked for",
                found=str(error),
                cure="Look at the server, or a proxy before it; or copy the object to a bucket and name that.",
            ) from error

    def _passing(self, error: Exception) -> MayPass:
        return MayPass(_describe(error), attempts=self._policy.slow_attempts if isinstance(error, TooSlow) else None)

    def _ask(self, url: str, headers: Header) -> tuple[int, Message, str]:
        with self._answer(url, headers) as response:
            _check_transient(response)
            body = b""
            if response.status >= 400 or (response.length is not None and response.length <= _ERROR_BODY_BYTES):
                response.meter.expect_body(_ERROR_BODY_BYTES)
                body = response.read(_ERROR_BODY_BYTES)
            return response.status, response.headers, body.decode("utf-8", "replace") if response.status >= 400 else ""

    def _attempt(self, asked: Asked, rest: list[memoryview], offset: int, end: int) -> None:
        headers = {**asked.headers, "Range": f"bytes={offset}-{end - 1}"} if asked.ranged else asked.headers
        with self._answer(asked.url, headers, lambda: prefault(rest)) as response:
            _check_response(response, asked, offset, end)
            response.meter.expect_body(end - offset if asked.ranged else end)
            if not asked.ranged:
                _skip(response, offset)
            while rest:
                count = _read_some(response, rest[0])
                if not count:
                    raise MayPass(f"the body ended {end - offset} bytes early")
                offset += count
                rest[0] = rest[0][count:]
                if not rest[0].nbytes:
                    rest.pop(0)
            with suppress(TooMuch, *_FAILURES):  # all that was asked for is here
                response.read(1)

    @contextmanager
    def _answer(
        self, url: str, headers: Header, meanwhile: Callable[[], None] = lambda: None
    ) -> Iterator[MeteredResponse]:
        """An answer's head. Its connection is kept where the block has read the body to its end."""
        connection, response = self._request(url, headers, meanwhile)
        reusable = False
        try:
            yield response
            reusable = response.isclosed() and not response.will_close
        except _FAILURES as error:
            raise self._passing(error) from error
        finally:
            self._put_back(url, connection, reusable)

    def _request(
        self, url: str, headers: Header, meanwhile: Callable[[], None]
    ) -> tuple[http.client.HTTPConnection, MeteredResponse]:
        """An answer's head; `meanwhile` runs while it is on its way.

        A kept connection that the server has closed since costs no attempt.
        """
        kept = self._take(url)
        while True:
            connection = kept
            try:
                connection = connection or self._connect(url)
                connection.sock.settimeout(self._policy.read_timeout_s)
                target, extra = _target(url, self._proxy(url))
                connection.request("GET", target, headers={**headers, **extra})
                meanwhile()
                return connection, cast(MeteredResponse, connection.getresponse())
            except (TooMuch, *_FAILURES) as error:
                if connection is not None:
                    connection.close()
                if isinstance(error, TooMuch):
                    raise
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise StorageError(
                        f"{urllib.parse.urlsplit(url).netloc} showed a certificate that is not trusted",
                        found=error.verify_message,
                        cure="Where a proxy inspects TLS, name its certificate in SSL_CERT_FILE.",
                    ) from error
                if kept is None or isinstance(error, (TimeoutError, TooSlow)):
                    raise self._passing(error) from error
                kept = None

    def _take(self, url: str) -> http.client.HTTPConnection | None:
        if self._pid != os.getpid():
            # Whoever held the lock, as while it loaded certificates, is not in this process. And the parent's sockets:
            # closing them here would not disturb it, sharing them would.
            self._lock, self._idle = threading.Lock(), defaultdict(list)
            self._pid = os.getpid()
        with self._lock:
            idle = self._idle[urllib.parse.urlsplit(url)[:2]]
            return idle.pop() if idle else None

    def _put_back(self, url: str, connection: http.client.HTTPConnection, reusable: bool) -> None:
        if reusable:
            with self._lock:
                idle = self._idle[urllib.parse.urlsplit(url)[:2]]
                if len(idle) < _IDLE_CONNECTIONS:
                    idle.append(connection)
                    return
        connection.close()

    def _proxy(self, url: str) -> urllib.parse.SplitResult | None:
        """As it was at the first request to that host: finding out reads the whole environment."""
        host = urllib.parse.urlsplit(url)[:2]
        if host not in self._proxies:
            self._proxies[host] = _proxy(url)
        return self._proxies[host]

    def _connect(self, url: str) -> http.client.HTTPConnection:
        parts, proxy = urllib.parse.urlsplit(url), self._proxy(url)
        via = proxy or parts
        timeout = self._policy.connect_timeout_s
        if parts.scheme == "https":
            with self._lock:
                self._tls = self._tls or ssl.create_default_context()
            default = 8080 if proxy else 443
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                via.hostname or "", via.port or default, timeout=timeout, context=self._tls
            )
            if proxy:
                connection.set_tunnel(parts.hostname or "", parts.port or 443, headers=_proxy_login(proxy))
        else:
            connection = http.client.HTTPConnection(via.hostname or "", via.port or 80, timeout=timeout)
        # Includes a proxy's answer to CONNECT.
        connection.response_class = partial(MeteredResponse, policy=self._policy)  # type: ignore[assignment]
        connection.connect()
        return connection


def _check_transient(response: MeteredResponse) -> None:
    if response.status in _TRANSIENT:
        raise MayPass(f"HTTP {response.status} {response.reason}", _retry_after_s(response))


def _check_response(response: MeteredResponse, asked: Asked, offset: int, end: int) -> None:
    """Whether the body that follows is exactly the requested bytes `offset` to `end` (exclusive)."""
    _check_transient(response)
    if response.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
        response.meter.expect_body(_ERROR_BODY_BYTES)
        body = response.read(_ERROR_BODY_BYTES).decode("utf-8", "replace").strip()
        raise HttpRefusal(response.status, body or response.reason)
    for header, value in {**asked.expect, **asked.require}.items():
        found = response.headers.get(header)
        if found != value and (found is not None or header in asked.require):
            raise HttpRefusal(http.client.PRECONDITION_FAILED, f"{header} is {found or 'missing'}, not {value}")
    length, size = response.headers.get("Content-Length"), asked.size
    if not asked.ranged:
        if response.status != http.client.OK or length != str(size):
            raise HttpRefusal(http.client.PRECONDITION_FAILED, f"the server announced {length} bytes, not {size}")
        return
    if response.status == http.client.PARTIAL_CONTENT:
        sent = response.headers.get("Content-Range", "no Content-Range")
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", sent.strip())
        if not match or (int(match[1]), int(match[2]) + 1) != (offset, end):
            raise MayPass(f"asked for bytes {offset}-{end - 1}, the server sent {sent}")
        if size is not None and match[3] not in ("*", str(size)):
            raise HttpRefusal(http.client.PRECONDITION_FAILED, f"the object has {match[3]} bytes, not {size}")
    elif offset or length != str(end):
        raise MayPass(f"asked for bytes {offset}-{end - 1}, the server ignored the range and sent {length} bytes")
    if length is not None and length != str(end - offset):
        raise MayPass(f"asked for {end - offset} bytes, the server announced {length}")


def _skip(response: http.client.HTTPResponse, count: int) -> None:
    scratch = memoryview(bytearray(min(count, _SKIPPED_AT_ONCE)))
    while count:
        skipped = _read_some(response, scratch[:count])
        if not skipped:
            raise MayPass(f"the body ended {count} bytes before what was asked for")
        count -= skipped


def _read_some(response: http.client.HTTPResponse, buffer: memoryview) -> int:
    if response.length is None:
        return response.readinto(buffer)
    # HTTPResponse.readinto waits until the buffer is full, and forgets what it has got if that fails: one receive at a
    # time lets a retry begin at the byte reached.
    count: int = response.fp.readinto1(buffer[: response.length])
    response.length -= count
    return count


def _retry_after_s(response: http.client.HTTPResponse) -> float:
    """RFC 9110, section 10.2.3: seconds, or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _target(url: str, proxy: urllib.parse.SplitResult | None) -> tuple[str, Header]:
    """The request target, and headers for a proxy: with TLS it sees neither (RFC 9112, section 3.2)."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "http" and proxy:
        return url, _proxy_login(proxy)
    # Not urlunsplit: newer Pythons make four slashes where a path begins with two.
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), {}


def _proxy(url: str) -> urllib.parse.SplitResult | None:
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _proxy_login(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    login = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + b64encode(login.encode()).decode()}


def _describe(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"the host's name is not known: {error.strerror}"
    return f"{type(error).__name__}: {error}".rstrip(": ")
