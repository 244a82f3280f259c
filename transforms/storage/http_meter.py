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

MOST_HEAD_BYTES = 256 << 10
# Most of a chunked body may be the chunks' own sizes: 6 bytes around each byte.
_MOST_OVERHEAD, _SLACK_BYTES = 8, 1 << 20


class TooSlow(Exception):
    """The server answers, but so slowly that the request's time is over."""


class TooMuch(Exception):
    """The server sends more than any answer to the request can have."""


class Meter(io.RawIOBase):
    """The bytes of one answer. `head_s` bounds the time until the head is complete, whatever comes before it.

    From then on, `grace_s` and one second for every `least_bytes_per_s` received may pass.
    """

    def __init__(
        self, sock: socket.socket, *, silence_s: float, head_s: float, grace_s: float, least_rate: float
    ) -> None:
        self._sock, self._raw = sock, sock.makefile("rb", buffering=0)
        self._silence_s, self._grace_s, self._least_rate = silence_s, grace_s, least_rate
        self._ends = time.monotonic() + head_s
        self._received, self._most = 0, MOST_HEAD_BYTES
        self._in_head, self._head_s = True, head_s

    def expect_body(self, nbytes: int) -> None:
        """The head is whole; of a body of so many bytes, what has come already counts for little."""
        self._in_head, self._received = False, 0
        self._began = time.monotonic()
        self._most = _MOST_OVERHEAD * nbytes + _SLACK_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._left()
        self._sock.settimeout(min(self._silence_s, left))
        try:
            count: int | None = self._raw.readinto(buffer)
        except TimeoutError:
            if left < self._silence_s:
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
        now = time.monotonic()
        ends = self._ends if self._in_head else self._began + self._grace_s + self._received / self._least_rate
        left = ends - now
        if left <= 0:
            raise self._too_slow()
        return left

    def _too_slow(self) -> TooSlow:
        if self._in_head:
            return TooSlow(
                f"the answer's headers were not complete after {self._head_s:g} s ({self._received:,} bytes came)"
            )
        seconds = time.monotonic() - self._began
        least = f"{self._least_rate:g} bytes/s after {self._grace_s:g} s"
        return TooSlow(f"{self._received:,} bytes came in {seconds:.1f} s, less than {least}")


class _Opened:
    """What http.client makes a file of."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self._meter)


class MeteredResponse(http.client.HTTPResponse):
    """As http.client's own, read through a `Meter`. `limits` are the meter's."""

    def __init__(self, sock: socket.socket, debuglevel: int = 0, *, limits: dict[str, float], **more: Any) -> None:
        self.meter = Meter(sock, **limits)
        super().__init__(_Opened(self.meter), debuglevel, **more)  # type: ignore[arg-type]  # nothing else of it is asked

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
