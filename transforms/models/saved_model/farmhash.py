"""FarmHash's Fingerprint64: a SavedModel's fingerprint.pb identifies the index of its weights by it.

TensorFlow has an operation for it, but running any operation fixes TensorFlow's number of threads, which predicting sets
later. From https://github.com/google/farmhash, farmhashna::Hash64; tests compare it with TensorFlow's.
"""

from __future__ import annotations

import struct

_MASK = (1 << 64) - 1
_K0, _K1, _K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F
_LANES = struct.Struct("<8Q")


def fingerprint64(data: bytes) -> int:
    """About 0.1 s of CPU for each MiB."""
    if len(data) <= 64:
        return _of_few(data)
    x, y = (81 * _K2 + _lane(data, 0)) & _MASK, (81 * _K1 + 113) & _MASK
    z = _mix((y * _K2 + 113) & _MASK) * _K2 & _MASK
    v0 = v1 = w0 = w1 = 0
    rest = (len(data) - 1) & 63
    for lanes in _LANES.iter_unpack(memoryview(data)[: len(data) - 1 - rest]):
        x, y, z, v0, v1, w0, w1 = _round(lanes, _K1, 1, x, y, z, v0, v1, w0, w1)
    multiplier = (_K1 + ((z & 0xFF) << 1)) & _MASK
    w0 += rest
    v0 += w0
    w0 += v0
    last = _LANES.unpack_from(data, len(data) - 64)
    x, y, z, v0, v1, w0, w1 = _round(last, multiplier, 9, x, y, z, v0 & _MASK, v1, w0 & _MASK, w1)
    first = _join(v0, w0, multiplier) + _mix(y) * _K0 + z
    return _join(first & _MASK, (_join(v1, w1, multiplier) + x) & _MASK, multiplier)


def _round(
    lanes: tuple[int, ...], multiplier: int, weight: int, x: int, y: int, z: int, v0: int, v1: int, w0: int, w1: int
) -> tuple[int, int, int, int, int, int, int]:
    """64 bytes, as eight numbers. `x` and `z` come back in each other's place."""
    x = _turn(x + y + v0 + lanes[1], 37) * multiplier & _MASK
    y = _turn(y + v1 + lanes[6], 42) * multiplier & _MASK
    x ^= w1 * weight & _MASK
    y = (y + v0 * weight + lanes[5]) & _MASK
    z = _turn(z + w0, 33) * multiplier & _MASK
    v0, v1 = _weak(lanes[0:4], v1 * multiplier, x + w0)
    w0, w1 = _weak(lanes[4:8], z + w1, y + lanes[2])
    return z, y, x, v0, v1, w0, w1


def _weak(lanes: tuple[int, ...], a: int, b: int) -> tuple[int, int]:
    w, x, y, z = lanes
    a = (a + w) & _MASK
    b = _turn(b + a + z, 21)
    c = a
    a += x + y
    b += _turn(a, 44)
    return (a + z) & _MASK, (b + c) & _MASK


def _of_few(data: bytes) -> int:
    size = len(data)
    multiplier = (_K2 + size * 2) & _MASK
    if size > 32:
        a, b = _lane(data, 0) * _K2, _lane(data, 8)
        c, d = _lane(data, size - 8) * multiplier, _lane(data, size - 16) * _K2
        y = _turn(a + b, 43) + _turn(c, 30) + d
        z = _join(y & _MASK, (a + _turn(b + _K2, 18) + c) & _MASK, multiplier)
        e, f = _lane(data, 16) * multiplier, _lane(data, 24)
        g, h = (y + _lane(data, size - 32)) * multiplier, (z + _lane(data, size - 24)) * multiplier
        return _join((_turn(e + f, 43) + _turn(g, 30) + h) & _MASK, (e + _turn(f + a, 18) + g) & _MASK, multiplier)
    if size > 16:
        a, b = _lane(data, 0) * _K1, _lane(data, 8)
        c, d = _lane(data, size - 8) * multiplier, _lane(data, size - 16) * _K2
        return _join((_turn(a + b, 43) + _turn(c, 30) + d) & _MASK, (a + _turn(b + _K2, 18) + c) & _MASK, multiplier)
    if size >= 8:
        a, b = _lane(data, 0) + _K2, _lane(data, size - 8)
        return _join((_turn(b, 37) * multiplier + a) & _MASK, (_turn(a, 25) + b) * multiplier & _MASK, multiplier)
    if size >= 4:
        first, last = (int.from_bytes(data[at : at + 4], "little") for at in (0, size - 4))
        return _join((size + (first << 3)) & _MASK, last, multiplier)
    if size:
        y, z = data[0] + (data[size >> 1] << 8), size + (data[-1] << 2)
        return _mix((y * _K2 ^ z * _K0) & _MASK) * _K2 & _MASK
    return _K2


def _lane(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _turn(value: int, bits: int) -> int:
    value &= _MASK
    return (value >> bits | value << (64 - bits)) & _MASK


def _mix(value: int) -> int:
    return value ^ value >> 47


def _join(u: int, v: int, multiplier: int) -> int:
    a = _mix((u ^ v) * multiplier & _MASK)
    return _mix((v ^ a) * multiplier & _MASK) * multiplier & _MASK
