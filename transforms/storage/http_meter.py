"""Bounds on what a server may do with a request: how long its head may take, how slow and how long its answer may be.

A socket's timeout is one of a single receive: a server that sends a byte now and then, `100 Continue` without end, or one
header after another is never caught by it. Here each receive has what is left of the request's time, and bytes are counted.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from .retries import RetryPolicy

MOST_HEAD_BYTES = 256 << 10
# Most of a chunked body may be the chunks' own sizes: 6 bytes around each byte.
_MOST_OVERHEAD, _SLACK_BYTES = 8, 1 << 20


class TooSlow(Exception):
    """The server answers, but so slowly that the request's time is over."""


class TooMuch(Exception):
    """The server sends more than any answer to the request can have."""


class Meter(io.RawIOBase):
    """The bytes of one answer. The policy's `head_timeout_s` bounds the time until the head is complete, whatever comes before
    it. From then on, `grace_s` and one second for every `least_bytes_per_s` received may pass.
    """

    def __init__(self, sock: socket.socket, policy: RetryPolicy) -> None:
        self._sock, self._raw, self._policy = sock, sock.makefile("rb", buffering=0), policy
        self._ends = time.monotonic() + policy.head_timeout_s
        self._received, self._most = 0, MOST_HEAD_BYTES
        self._in_head = True

    def makefile(self, _: str) -> io.BufferedReader:
        """What http.client asks of a socket."""
        return io.BufferedReader(self)

    def expect_body(self, nbytes: int) -> None:
        """The head is whole; of a body of so many bytes, what has come already counts for little."""
        self._in_head, self._received = False, 0
        self._began = time.monotonic()
        self._most = _MOST_OVERHEAD * nbytes + _SLACK_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._left()
        self._sock.settimeout(min(self._policy.read_timeout_s, left))
        try:
            count: int | None = self._raw.readinto(buffer)
        except TimeoutError:
            if left < self._policy.read_timeout_s:
                raise self._too_slow() from None
            raise
        self._received += count or 0
        if self._received > self._most:
            what = "headers" if self._in_head else "an answer"
            raise TooMuch(f"{what} of more than {self._most:,} bytes")
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()

    def _left(self) -> float:
        ends = self._ends
        if not self._in_head:
            ends = self._began + self._policy.grace_s + self._received / self._policy.least_bytes_per_s
        left = ends - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        return left

    def _too_slow(self) -> TooSlow:
        if self._in_head:
            return TooSlow(
                f"the answer's headers were not complete after {self._policy.head_timeout_s:g} s "
                f"({self._received:,} bytes came)"
            )
        seconds = time.monotonic() - self._began
        least = f"{self._policy.least_bytes_per_s:g} bytes/s after {self._policy.grace_s:g} s"
        return TooSlow(f"{self._received:,} bytes came in {seconds:.1f} s, less than {least}")


class MeteredResponse(http.client.HTTPResponse):
    """As http.client's own, read through a `Meter` of that policy."""

    def __init__(self, sock: socket.socket, debuglevel: int = 0, *, policy: RetryPolicy, **more: Any) -> None:
        self.meter = Meter(sock, policy)
        super().__init__(self.meter, debuglevel, **more)  # type: ignore[arg-type]  # nothing else of it is asked

    def begin(self) -> None:
        try:
            super().begin()
        except http.client.LineTooLong as error:
            raise TooMuch(f"a line of the answer's headers that is too long: {error}") from error
        except http.client.HTTPException as error:
            # http.client has no kind of its own for it.
            if "got more than" in str(error):
                raise TooMuch(str(error)) from error
            raise
        self.meter.expect_body(0)
