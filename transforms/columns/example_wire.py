"""Columns to serialized tf.train.Example and SequenceExample: protobuf's wire format, written for all rows of a batch at once.

The parts of rows are built side by side in matrices of bytes, and joined by Arrow: no row is a Python object. Keys are sorted,
and the bytes equal protobuf's deterministic serialization. Formats: https://protobuf.dev/programming-guides/encoding/,
tensorflow/core/example/example.proto and feature.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..nested_arrow import buffer_of
from .column import RowValues
from .values import offsets

Part = bytes | tuple[np.ndarray[Any, Any], "np.ndarray[Any, Any] | None"]
"""Bytes that are the same for every row; or a matrix of a line for each row, and how many of its bytes count (all for None)."""

_FIELD_1 = b"\x0a"
_FEATURE_LISTS = b"\x12"
"""The field of a SequenceExample beside its context."""
_VALUE = b"\x12"
"""The value's field in an entry of a map; the key's is field 1."""
_LISTS = {"string": b"\x0a", "float32": b"\x12", "int64": b"\x1a"}
"""The field of a `Feature` that holds values of a dtype."""
_KIND = pa.large_binary()


def encode_examples(rows: int, features: Sequence[tuple[str, str, RowValues]]) -> pa.Array[Any]:
    """A serialized Example for each of `rows`; `features` are keys, dtypes and what rows hold of each."""
    pieces = [
        _for_every_row(rows, piece, values.kept)
        for key, dtype, values in sorted(features, key=lambda feature: feature[0].encode())
        for piece in _feature(dtype, values, rows if values.kept is None else len(values.kept), (_key(key), _FIELD_1))
    ]
    size = sum(map(_lengths, pieces), np.zeros(rows, np.int64))
    return _joined([_side_by_side(rows, [_FIELD_1, _varints(size)]), *pieces])


def encode_sequences(
    rows: int,
    context: Sequence[tuple[str, str, RowValues]],
    lists: Sequence[tuple[str, str, RowValues, np.ndarray[Any, Any]]],
) -> pa.Array[Any]:
    """A serialized SequenceExample for each of `rows`. `lists` are keys, dtypes, the values of all features of the feature
    list, one after the other, and how many of them each row has.
    """
    pieces = [
        _for_every_row(rows, piece, values.kept)
        for key, dtype, values, steps in sorted(lists, key=lambda one: one[0].encode())
        for piece in _list_entry(key, dtype, values, steps)
    ]
    if not pieces:
        return encode_examples(rows, context)
    size = sum(map(_lengths, pieces), np.zeros(rows, np.int64))
    # The context has the field and the type of an Example's features.
    before = [encode_examples(rows, context)] if context else []
    return _joined([*before, _side_by_side(rows, [_FEATURE_LISTS, _varints(size)]), *pieces])


def _list_entry(key: str, dtype: str, values: RowValues, steps: np.ndarray[Any, Any]) -> list[pa.Array[Any]]:
    """One feature list of each row, as an entry of the map of feature lists, in pieces that follow one another."""
    features = _joined(_feature(dtype, values, int(steps.sum()), (_FIELD_1,)))
    listed = _by_row(features, steps, len(steps))
    return [_side_by_side(len(steps), _wrapped((_key(key), _FIELD_1), _lengths(listed), [])), listed]


def _key(key: str) -> bytes:
    """An entry's key, and the field of its value."""
    name = key.encode()
    return _FIELD_1 + _varint(len(name)) + name + _VALUE


def _feature(dtype: str, values: RowValues, rows: int, around: tuple[bytes, ...]) -> list[pa.Array[Any]]:
    """A feature for each of the rows, in the fields `around` it from the innermost."""
    if isinstance(values.values, np.ndarray):
        if isinstance(values.counts, int) and values.counts == 1:
            payload = _numbers(values.values)
            lengths = np.full(rows, payload[0].shape[1]) if payload[1] is None else payload[1]
            return [_side_by_side(rows, [*_headers(around, dtype, lengths), payload])]
        listed = _by_row(_binaries(*_numbers(values.values)), values.counts, rows)
    else:
        own = _lengths(values.values)
        texts = _joined([_side_by_side(len(own), [_FIELD_1, _varints(own)]), values.values.cast(_KIND)])
        listed = _by_row(texts, values.counts, rows)
    return [_side_by_side(rows, _headers(around, dtype, _lengths(listed))), listed]


def _headers(around: tuple[bytes, ...], dtype: str, lengths: np.ndarray[Any, Any]) -> list[Part]:
    """The bytes before the values of a feature, whose sizes are `lengths`."""
    parts: list[Part] = []
    if dtype != "string":
        # Numbers are packed into one field, which is not there where there are none.
        line, used = _varints(lengths)
        packed = np.empty((len(lengths), 1 + line.shape[1]), np.uint8)
        packed[:, :1], packed[:, 1:] = np.frombuffer(_FIELD_1, np.uint8), line
        sizes = np.where(lengths > 0, 1 + (line.shape[1] if used is None else used), 0)
        parts = [(packed, None if sizes.all() and used is None else sizes)]
        lengths = lengths + sizes
    return _wrapped((_LISTS[dtype], *around), lengths, parts)


def _wrapped(around: tuple[bytes, ...], lengths: np.ndarray[Any, Any], parts: list[Part]) -> list[Part]:
    """The parts with fields around them and the bytes that follow, `lengths` in all: a field in a field in a field."""
    for before in around:
        number = _varints(lengths)
        lengths = lengths + len(before) + (number[0].shape[1] if number[1] is None else number[1])
        parts = [before, number, *parts]
    return parts


def _numbers(values: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    if values.dtype.kind == "f":
        little = np.ascontiguousarray(values, "<f4")
        return little.view(np.uint8).reshape(len(values), 4), None
    return _varints(np.ascontiguousarray(values, np.int64).view(np.uint64))


def _varints(values: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Whole numbers from 0 as varints, a line each, and how many bytes of it count; None for all."""
    top = int(values.max(initial=0))
    width = max(1, -(-top.bit_length() // 7))
    if width == 1:
        return values.astype(np.uint8).reshape(-1, 1), None
    lines, used = np.empty((len(values), width), np.uint8), np.ones(len(values), np.int64)
    rest: Any = values.astype(np.uint64 if top >> 32 else np.uint32)
    for at in range(width):
        low, rest = rest.astype(np.uint8), rest >> 7
        if at < width - 1:
            more = rest != 0
            low = (low & 0x7F) | (more.view(np.uint8) << 7)
            used += more
        lines[:, at] = low
    return lines, used


def _varint(number: int) -> bytes:
    lines, _ = _varints(np.array([number]))
    return lines.tobytes()


def _side_by_side(rows: int, parts: Sequence[Part]) -> pa.Array[Any]:
    widths = [len(part) if isinstance(part, bytes) else part[0].shape[1] for part in parts]
    lines = np.empty((rows, sum(widths)), np.uint8)
    lines[:] = np.frombuffer(
        b"".join(part if isinstance(part, bytes) else bytes(part[0].shape[1]) for part in parts), np.uint8
    )
    used: np.ndarray[Any, Any] | None = None
    keep = np.ones(lines.shape, np.bool_) if any(not isinstance(p, bytes) and p[1] is not None for p in parts) else None
    at = 0
    for part, width in zip(parts, widths, strict=True):
        if not isinstance(part, bytes):
            line, own = part
            lines[:, at : at + width] = line
            if own is not None and keep is not None:
                keep[:, at : at + width] = np.arange(width) < own[:, None]
                used = (np.full(rows, lines.shape[1]) if used is None else used) + own - width
        at += width
    return _binaries(lines, used, keep)


def _binaries(
    lines: np.ndarray[Any, Any], used: np.ndarray[Any, Any] | None, keep: np.ndarray[Any, Any] | None = None
) -> pa.Array[Any]:
    """A binary value for each line; `keep` says which of its bytes, else the first so many that are `used`."""
    rows, width = lines.shape
    if used is None:
        return _of_buffers(np.arange(rows + 1) * width, lines)
    if keep is None:
        keep = np.arange(width) < used[:, None]
    return _of_buffers(_edges(used), lines[keep])


def _by_row(items: pa.Array[Any], counts: int | np.ndarray[Any, Any], rows: int) -> pa.Array[Any]:
    """Joins `counts` consecutive items to the value of each row."""
    edges = np.arange(rows + 1) * counts if isinstance(counts, int) else _edges(counts)
    return pa.LargeBinaryArray.from_buffers(_KIND, rows, [None, buffer_of(offsets(items)[edges]), items.buffers()[2]])


def _for_every_row(rows: int, piece: pa.Array[Any], kept: np.ndarray[Any, Any] | None) -> pa.Array[Any]:
    """Nothing for the rows that are not kept."""
    if kept is None:
        return piece
    lengths = np.zeros(rows, np.int64)
    lengths[kept] = _lengths(piece)
    return pa.LargeBinaryArray.from_buffers(_KIND, rows, [None, buffer_of(_edges(lengths)), piece.buffers()[2]])


def _joined(pieces: Sequence[pa.Array[Any]]) -> pa.Array[Any]:
    parts: list[Any] = [*pieces, pa.scalar(b"", _KIND)]
    joined: Any = pc.binary_join_element_wise(*parts)
    return joined


def _lengths(array: pa.Array[Any]) -> np.ndarray[Any, Any]:
    return np.diff(offsets(array)).astype(np.int64)


def _edges(lengths: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    edges = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=edges[1:])
    return edges


def _of_buffers(edges: np.ndarray[Any, Any], data: np.ndarray[Any, Any]) -> pa.Array[Any]:
    return pa.LargeBinaryArray.from_buffers(
        _KIND, len(edges) - 1, [None, buffer_of(edges), buffer_of(np.ascontiguousarray(data))]
    )
