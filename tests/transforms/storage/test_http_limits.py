"""A server that answers without end, or hardly at all, ends in a clear error within a bound."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from headrace.transforms.errors import StorageError, StoreUnavailable
from headrace.transforms.storage.http_ranges import Asked, RangeReader
from headrace.transforms.storage.http_store import HttpStore
from headrace.transforms.storage.retries import RetryPolicy
from headrace.transforms.storage.store import Counters, StoreOptions

POLICY = RetryPolicy(
    attempts=8,
    first_wait_s=0.01,
    longest_wait_s=0.02,
    read_timeout_s=0.5,
    connect_timeout_s=2.0,
    head_timeout_s=0.6,
    grace_s=0.4,
    least_bytes_per_s=10_000,
)
HEAD = b'HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9999/10000\r\nETag: "e"\r\n'
BODY = bytes(10_000)
Speak = Callable[[socket.socket, bytes], None]


class Server:
    """Takes any request and says what `speak` does, in a thread for each connection."""

    def __init__(self, speak: Speak) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.speak, self.requests = speak, 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/x"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while request := client.recv(65536):
                self.requests += 1
                self.speak(client, request)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Speak], Server]]:
    opened: list[Server] = []

    def start(speak: Speak) -> Server:
        opened.append(Server(speak))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def without_end(first: bytes, again: bytes, pause: float = 0.0) -> Speak:
    def speak(client: socket.socket, _: bytes) -> None:
        client.sendall(first)
        while True:
            client.sendall(again)
            time.sleep(pause)

    return speak


def dripping_body(client: socket.socket, request: bytes) -> None:
    """Goes on where the last request came to, as asked."""
    first = int(request.partition(b"bytes=")[2].partition(b"-")[0])
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-9999/10000\r\nContent-Length: %d\r\n\r\n"
    without_end(head % (first, 10_000 - first), b"x", 0.05)(client, request)


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SIZED = HEAD + b"Content-Length: 10000\r\n\r\n"
TOO_SLOW = {
    "100 Continue now and then": without_end(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    "a status line byte by byte": without_end(b"HTTP/1.1 20", b"0", 0.05),
    "headers byte by byte": without_end(HEAD, b"X", 0.05),
    "a header now and then": without_end(HEAD, b"X-A: b\r\n", 0.1),
    "a body byte by byte": dripping_body,
    "chunks of a byte": without_end(CHUNKED, b"1\r\nx\r\n", 0.05),
    "a chunk's size byte by byte": without_end(CHUNKED, b"0", 0.05),
}
TOO_MUCH = {
    "100 Continue without end": without_end(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "headers without end": without_end(HEAD, b"".join(b"X-%d: y\r\n" % i for i in range(1000))),
    "a header without end": without_end(HEAD + b"X: ", b"y" * 65536),
    "a few large headers": without_end(HEAD, b"X: " + b"y" * 60_000 + b"\r\n"),
    "a status line without end": without_end(b"HTTP/1.1 200 ", b"y" * 65536),
}


@pytest.mark.parametrize("how", TOO_SLOW)
def test_a_server_that_drips_is_given_up(serve: Callable[[Speak], Server], how: str) -> None:
    server = serve(TOO_SLOW[how])
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"not complete after 0\.6 s|less than 10000 bytes/s after 0\.4 s"):
        RangeReader(Counters(), POLICY).read_into(
            Asked("the object", server.url, {}), 0, [memoryview(bytearray(10_000))]
        )
    assert time.monotonic() - began < 10
    assert server.requests == POLICY.slow_attempts


@pytest.mark.parametrize("how", TOO_MUCH)
def test_a_server_that_sends_heads_without_end_is_refused_at_once(serve: Callable[[Speak], Server], how: str) -> None:
    server = serve(TOO_MUCH[how])
    with pytest.raises(StorageError) as raised:
        RangeReader(Counters(), POLICY).read_into(
            Asked("the object", server.url, {}), 0, [memoryview(bytearray(10_000))]
        )
    assert raised.value.found
    assert "the object" in raised.value.what
    assert server.requests <= POLICY.slow_attempts
    with pytest.raises(StorageError):
        HttpStore(StoreOptions(), POLICY).stat(server.url)


def test_trailers_without_end_keep_nobody(serve: Callable[[Speak], Server]) -> None:
    """All that was asked for is here."""
    server = serve(without_end(CHUNKED + b"2710\r\n" + BODY + b"\r\n0\r\n", b"X: y\r\n" * 1000))
    buffer = bytearray(b"?" * 10_000)
    began = time.monotonic()
    RangeReader(Counters(), POLICY).read_into(Asked("the object", server.url, {}), 0, [memoryview(buffer)])
    assert buffer == BODY
    assert time.monotonic() - began < 10


def test_the_body_of_a_refusal_that_drips_is_given_up(serve: Callable[[Speak], Server]) -> None:
    server = serve(without_end(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4000\r\n\r\n", b"x", 0.05))
    reader = RangeReader(Counters(), POLICY)
    with pytest.raises(StoreUnavailable, match="less than 10000 bytes/s"):
        reader.ask("the object", server.url, {})
    with pytest.raises(StoreUnavailable, match="less than 10000 bytes/s"):
        reader.read_into(Asked("the object", server.url, {}), 0, [memoryview(bytearray(9))])


def test_a_slow_server_that_keeps_the_rate_is_waited_for(serve: Callable[[Speak], Server]) -> None:
    """100 Continue before it, a pause before the head, and the body in small pieces that take longer than the grace."""

    def speak(client: socket.socket, _: bytes) -> None:
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.3)
        client.sendall(SIZED)
        for at in range(0, len(BODY), 1000):
            client.sendall(BODY[at : at + 1000])
            time.sleep(0.07)

    server = serve(speak)
    reader = RangeReader(Counters(), POLICY)
    for _ in range(2):  # on a kept connection too
        buffer = bytearray(b"?" * 10_000)
        reader.read_into(Asked("the object", server.url, {}), 0, [memoryview(buffer)])
        assert buffer == BODY
    assert server.requests == 2


def test_a_proxy_that_answers_connect_without_end(
    serve: Callable[[Speak], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    for how in itertools.chain(list(TOO_SLOW.values())[:2], list(TOO_MUCH.values())[:2]):
        server = serve(how)
        monkeypatch.setenv("https_proxy", server.url)
        began = time.monotonic()
        with pytest.raises(StorageError):
            RangeReader(Counters(), POLICY).ask("the object", "https://host.invalid/x", {})
        assert time.monotonic() - began < 20
