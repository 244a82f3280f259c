"""A checksum of bytes that arrive in pieces, in any order: that of each piece, put together.

As zlib's crc32_combine does since 1.2.12: appending n zero bytes multiplies a CRC by x^8n modulo its polynomial
(https://github.com/madler/zlib/blob/v1.3.1/crc32.c).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from ...errors import CorruptModel
from ...storage import ObjectRef

_POLYNOMIALS = {"CRC-32C": 0x82F63B78, "CRC-32": 0xEDB88320}
_ONE = 1 << 31
# Bytes that are read only for the checksum: fewer than this cost almost nothing.
_MOST_BESIDES, _SHARE_BESIDES = 256 << 10, 256


@dataclass(frozen=True, slots=True)
class CheckedSpan:
    """Bytes `start` (inclusive) to `stop` (exclusive) of an object, with a known checksum.

    `kind` is "CRC-32C", as stores keep it of whole objects, or "CRC-32", as a zip archive does of its members.
    """

    source: ObjectRef
    start: int
    stop: int
    crc: int
    kind: str

    def besides(self, taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """The rest of the span, outside the (start, stop) that are read anyway, where reading it too costs little.

        None where it costs too much, or where these overlap or leave the span: the checksum then cannot be used.
        """
        left, at = [], self.start
        for start, stop in sorted(taken):
            if start < at or stop > self.stop:
                return None
            if start > at:
                left.append((at, start))
            at = stop
        if at < self.stop:
            left.append((at, self.stop))
        most = max(_MOST_BESIDES, (self.stop - self.start) // _SHARE_BESIDES)
        return left if sum(stop - start for start, stop in left) <= most else None


class ComposedCrc:
    """Safe for threads that add different pieces."""

    def __init__(self, span: CheckedSpan) -> None:
        self._span = span
        self._pieces: dict[int, tuple[int, int]] = {}

    def add(self, offset: int, data: memoryview) -> None:
        """A piece of the object, from byte `offset` on; bytes outside the span are ignored."""
        if self._span.start <= offset < self._span.stop:
            self._pieces[offset] = len(data), _crc(self._span.kind, data)

    def check(self) -> None:
        """Raises `CorruptModel` where the pieces are not the bytes that the checksum is of."""
        span, at, total_crc = self._span, self._span.start, 0
        for offset, (length, crc) in sorted(self._pieces.items()):
            if offset != at:
                break
            total_crc, at = combine(span.kind, total_crc, crc, length), at + length
        if at != span.stop:
            raise RuntimeError(f"{span.source.uri}: nothing was added from byte {at} on, of {span.stop}")
        if total_crc != span.crc:
            raise CorruptModel(
                f"{span.source.uri} arrived damaged",
                expected=f"{span.kind} {span.crc:08x} of bytes {span.start} to {span.stop} (exclusive)",
                found=f"{total_crc:08x}",
                cure="Run again; if that does not help, copy the model again from where it was saved.",
            )


def combine(kind: str, first: int, second: int, length: int) -> int:
    """The checksum of two pieces put together, from those of each and the bytes of the second."""
    polynomial = _POLYNOMIALS[kind]
    shift, bits = _ONE, 8 * length
    for bit in range(bits.bit_length()):
        if bits >> bit & 1:
            shift = _times(_power_of_two(polynomial, bit), shift, polynomial)
    return _times(shift, first, polynomial) ^ second


def _crc(kind: str, data: memoryview) -> int:
    if kind == "CRC-32":
        return zlib.crc32(data)
    import crc32c

    return int(crc32c.crc32c(data))


@lru_cache(256)
def _power_of_two(polynomial: int, bit: int) -> int:
    """x to the power of 2^bit, modulo the polynomial; the lowest coefficient is the highest bit."""
    if not bit:
        return _ONE >> 1
    root = _power_of_two(polynomial, bit - 1)
    return _times(root, root, polynomial)


def _times(a: int, b: int, polynomial: int) -> int:
    product = 0
    for i in range(32):
        if a & _ONE >> i:
            product ^= b
        b = b >> 1 ^ (polynomial if b & 1 else 0)
    return product
