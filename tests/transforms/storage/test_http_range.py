from __future__ import annotations

import email.utils
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from headrace.transforms.errors import StorageError
from headrace.transforms.storage.http_ranges import Asked, HttpRefusal, RangeReader
from headrace.transforms.storage.retries import RetryPolicy
from headrace.transforms.storage.store import Counters
from tests.support.store_contract import noise

BLOB = noise(1 << 20)
POLICY = RetryPolicy(attempts=4, first_wait_s=0.01, longest_wait_s=0.02, read_timeout_s=0.3, connect_timeout_s=2.0)


class Answer(BaseHTTPRequestHandler):
    """Answers ranges of BLOB; each request first takes the next of the server's `faults`, if any is left."""

    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())  # type: ignore[union-attr]
        with self.server.lock:
            self.server.seen.append((first, last + 1))
            self.server.peers.add(self.client_address)
            self.server.times.append(time.monotonic())
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is None:
            self.head(first, last)
            self.wfile.write(BLOB[first : last + 1])
        else:
            fault(self, first, last)

    def head(self, first: int, last: int, *, status: int = 206, **other: str) -> None:
        headers = {"Content-Range": f"bytes {first}-{last}/{len(BLOB)}", "Content-Length": str(last - first + 1)}
        self.send_response(status)
        for name, value in {**headers, **{name.replace("_", "-"): value for name, value in other.items()}}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class FaultyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.lock = threading.Lock()
        self.faults: list[Fault] = []
        self.seen: list[tuple[int, int]] = []
        self.times: list[float] = []
        self.peers: set[object] = set()
        self.url = f"http://127.0.0.1:{self.server_port}/blob?signature=secret"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what these tests are about."""


Fault = Callable[[Answer, int, int], None]


def status(code: int, **headers: str) -> Fault:
    def fault(answer: Answer, first: int, last: int) -> None:
        answer.head(0, 3, status=code, **{"Content_Range": "", "Content_Length": "4", **headers})
        answer.wfile.write(b"oops")

    return fault


def reset(after: int) -> Fault:
    def fault(answer: Answer, first: int, last: int) -> None:
        answer.head(first, last)
        answer.wfile.write(BLOB[first : first + after])
        answer.wfile.flush()
        time.sleep(0.05)
        answer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        answer.connection.close()

    return fault


def truncate(after: int) -> Fault:
    def fault(answer: Answer, first: int, last: int) -> None:
        answer.head(first, last)
        answer.wfile.write(BLOB[first : first + after])
        answer.close_connection = True

    return fault


def stall(after: int) -> Fault:
    def fault(answer: Answer, first: int, last: int) -> None:
        answer.head(first, last)
        answer.wfile.write(BLOB[first : first + after])
        answer.wfile.flush()
        time.sleep(1)

    return fault


def mute(answer: Answer, first: int, last: int) -> None:
    time.sleep(1)


def wrong_range(answer: Answer, first: int, last: int) -> None:
    answer.head(first, last, Content_Range=f"bytes {first + 1}-{last + 1}/{len(BLOB)}")
    answer.wfile.write(BLOB[first + 1 : last + 2])


def no_range(answer: Answer, first: int, last: int) -> None:
    answer.head(first, last, Content_Range="")
    answer.wfile.write(BLOB[first : last + 1])


def whole_object(answer: Answer, first: int, last: int) -> None:
    answer.head(0, len(BLOB) - 1, status=200, Content_Range="")
    answer.wfile.write(BLOB)


def shorter(answer: Answer, first: int, last: int) -> None:
    answer.head(first, last - 1)
    answer.wfile.write(BLOB[first:last])


def garbage(answer: Answer, first: int, last: int) -> None:
    answer.wfile.write(b"\0\1\2 no HTTP at all\r\n\r\n")
    answer.close_connection = True


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(reader: RangeReader, server: FaultyServer, start: int, *sizes: int) -> bytes:
    data = bytearray(sum(sizes))
    buffers, at = [], 0
    for size in sizes:
        buffers.append(memoryview(data)[at : at + size])
        at += size
    reader.read_into(Asked("gs://b/blob", server.url, {}), start, buffers)
    return bytes(data)


FAULTS = {
    "503": (status(503), 0),
    "500": (status(500), 0),
    "408": (status(408), 0),
    "429": (status(429, Retry_After="0"), 0),
    "429 without a number": (status(429, Retry_After="soon"), 0),
    "429 with other digits": (status(429, Retry_After="\u00b2"), 0),
    "reset in mid-body": (reset(70_000), 70_000),
    "reset in another buffer": (reset(210_000), 210_000),
    "truncated body": (truncate(70_000), 70_000),
    "stall in mid-body": (stall(70_000), 70_000),
    "no answer": (mute, 0),
    "wrong Content-Range": (wrong_range, 0),
    "no Content-Range": (no_range, 0),
    "range ignored": (whole_object, 0),
    "less than asked for": (shorter, 0),
    "garbage": (garbage, 0),
}


@pytest.mark.parametrize(("fault", "kept"), FAULTS.values(), ids=FAULTS.keys())
def test_what_passes_is_tried_again_from_the_byte_reached(server: FaultyServer, fault: Fault, kept: int) -> None:
    server.faults = [fault, fault]
    counters = Counters()
    data = fetch(RangeReader(counters, POLICY), server, 1000, 200_000, 0, 1, 300_000)
    assert data == BLOB[1000:501_001]
    # A reset may take bytes with it that were on their way.
    exact = kept if "reset" not in fault.__qualname__ else None
    starts = [first for first, _ in server.seen]
    assert starts == [1000, 1000 + kept, 1000 + 2 * kept] if exact is not None else starts == sorted(starts)
    assert {end for _, end in server.seen} == {501_001}
    assert (counters.requests, counters.retries, counters.bytes_read) == (3, 2, 500_001)


def test_attempts_are_bounded_and_the_error_tells_the_whole_story(server: FaultyServer) -> None:
    server.faults = [truncate(10)] * 10
    counters = Counters()
    with pytest.raises(StorageError) as caught:
        fetch(RangeReader(counters, POLICY), server, 1000, 5000)
    assert str(caught.value) == (
        "Reading bytes 1000 to 6000 (exclusive) of gs://b/blob failed 4 times, the last time at byte 1040. "
        "Found: the body ended 4960 bytes early. Look at the network and at the store's status, then run again."
    )
    assert "secret" not in str(caught.value)
    assert len(server.seen) == 4
    assert (counters.requests, counters.retries, counters.bytes_read) == (4, 3, 40)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 412, 416])
def test_a_refusal_is_final(server: FaultyServer, code: int) -> None:
    server.faults = [status(code)] * 2
    with pytest.raises(HttpRefusal, match=f"HTTP {code}") as caught:
        fetch(RangeReader(Counters(), POLICY), server, 0, 10)
    assert (caught.value.status, caught.value.body) == (code, "oops")
    assert len(server.seen) == 1


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_honoured_and_bounded(server: FaultyServer, date: bool) -> None:
    # Dates have whole seconds: the third one from now is at least two seconds away.
    soon = email.utils.formatdate(time.time() + 3, usegmt=True) if date else "2"
    server.faults = [status(429, Retry_After=soon), status(503, Retry_After="1000000")]
    policy = RetryPolicy(first_wait_s=0.01, longest_wait_s=0.02, longest_retry_after_s=2.5)
    assert fetch(RangeReader(Counters(), policy), server, 0, 10) == BLOB[:10]
    first, second = server.times[1] - server.times[0], server.times[2] - server.times[1]
    assert 1.9 < first < 3.5
    assert 2.4 < second < 3.5


def test_waits_grow_to_their_bound() -> None:
    policy = RetryPolicy(first_wait_s=1.0, longest_wait_s=10.0)
    for failures, bound in enumerate([1, 2, 4, 8, 10, 10], 1):
        waits = [policy.wait_s(failures, 0.0) for _ in range(50)]
        assert bound / 2 <= min(waits) < max(waits) <= bound


def test_a_header_that_must_match(server: FaultyServer) -> None:
    def other_generation(answer: Answer, first: int, last: int) -> None:
        answer.head(first, last, X_Goog_Generation="8")
        answer.wfile.write(BLOB[first : last + 1])

    server.faults = [other_generation]
    data = bytearray(10)
    asked = Asked("gs://b/x", server.url, {}, expect={"X-Goog-Generation": "7"})
    with pytest.raises(HttpRefusal) as caught:
        RangeReader(Counters(), POLICY).read_into(asked, 0, [memoryview(data)])
    assert (caught.value.status, caught.value.body) == (412, "X-Goog-Generation is 8, not 7")
    assert data == bytes(10)


def test_the_whole_object_in_place_of_its_whole_range(server: FaultyServer) -> None:
    server.faults = [whole_object]
    assert fetch(RangeReader(Counters(), POLICY), server, 0, len(BLOB)) == BLOB
    assert len(server.seen) == 1


@pytest.mark.parametrize("end", [b"", b"no chunk\r\n"])
def test_a_body_that_is_here_needs_no_end(server: FaultyServer, end: bytes) -> None:
    def chunked(answer: Answer, first: int, last: int) -> None:
        answer.head(first, last, Content_Length="", Transfer_Encoding="chunked")
        answer.wfile.write(b"%x\r\n%s\r\n" % (last + 1 - first, BLOB[first : last + 1]) + end)
        answer.close_connection = True

    server.faults = [chunked] * 2
    counters = Counters()
    reader = RangeReader(counters, POLICY)
    assert fetch(reader, server, 5, 10) + fetch(reader, server, 15, 10) == BLOB[5:25]
    assert (len(server.seen), counters.retries) == (2, 0)


def test_connections_are_kept_and_one_that_was_closed_costs_no_attempt(server: FaultyServer) -> None:
    counters = Counters()
    reader = RangeReader(counters, RetryPolicy(attempts=1))
    for _ in range(5):
        assert fetch(reader, server, 5, 10) == BLOB[5:15]
    assert len(server.peers) == 1

    def hang_up_after(answer: Answer, first: int, last: int) -> None:
        answer.head(first, last)
        answer.wfile.write(BLOB[first : last + 1])
        answer.close_connection = True

    server.faults = [hang_up_after]
    for _ in range(2):
        assert fetch(reader, server, 5, 10) == BLOB[5:15]
    assert len(server.peers) == 2
    assert counters.retries == 0


def test_many_threads_have_connections_of_their_own(server: FaultyServer) -> None:
    reader = RangeReader(Counters(), POLICY)
    with ThreadPoolExecutor(8) as threads:
        pieces = list(threads.map(lambda at: fetch(reader, server, at, 1 << 14), range(0, len(BLOB), 1 << 14)))
    assert b"".join(pieces) == BLOB
    assert 1 <= len(server.peers) <= 8


def test_a_forked_child_uses_connections_of_its_own(server: FaultyServer) -> None:
    reader = RangeReader(Counters(), POLICY)
    fetch(reader, server, 0, 10)
    child = os.fork()
    if child == 0:
        os._exit(0 if fetch(reader, server, 0, 1000) == BLOB[:1000] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert fetch(reader, server, 10, 10) == BLOB[10:20]
    assert len(server.peers) == 2


def test_a_process_forked_while_another_thread_loads_certificates_does_not_wait_for_it(server: FaultyServer) -> None:
    reader = RangeReader(Counters(), POLICY)
    with reader._lock:
        child = os.fork()
        if not child:
            try:
                signal.alarm(20)  # ends a child that waits for a lock which nobody holds in it
                os._exit(0 if fetch(reader, server, 0, 1000) == BLOB[:1000] else 1)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nobody_listening_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    asked = Asked("gs://b/x", f"http://127.0.0.1:{port}/", {})
    with pytest.raises(StorageError, match=r"gs://b/x failed 4 times.*ConnectionRefusedError"):
        RangeReader(Counters(), POLICY).read_into(asked, 0, [memoryview(bytearray(1))])


def test_a_proxy_is_used_unless_it_is_to_be_passed_by(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def remember(answer: Answer, first: int, last: int) -> None:
        asked.append((answer.path, answer.headers["Proxy-Authorization"]))
        answer.head(first, last)
        answer.wfile.write(BLOB[first : last + 1])

    server.faults = [remember, remember]
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://me:pass%20word@127.0.0.1:{server.server_port}")
    data = bytearray(10)
    url = "http://bucket.invalid/x?alt=media"
    RangeReader(Counters(), POLICY).read_into(Asked("x", url, {}), 0, [memoryview(data)])
    assert data == BLOB[:10]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch(RangeReader(Counters(), POLICY), server, 0, 10) == BLOB[:10]
    assert asked == [(url, "Basic bWU6cGFzcyB3b3Jk"), ("/blob?signature=secret", None)]
