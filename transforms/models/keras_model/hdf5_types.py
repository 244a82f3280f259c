"""Parses the messages of an HDF5 object: the type and shape of its values, and where they are.

Format: HDF5 File Format Specification 3.0, IV.A.2. It knows only the types in which Keras and h5py write weights and names.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from .hdf5_format import SHARED, UNDEFINED, Damaged, Message, NotSupported

DATASPACE, DATATYPE, EXTERNAL, LAYOUT, FILTERS = 0x01, 0x03, 0x07, 0x08, 0x0B
COMPACT, CONTIGUOUS, CHUNKED, VIRTUAL = range(4)
_MAX_RANK = 32
_FLOATS = {
    struct.pack("<HHBBBBI", 0, 16, 10, 5, 0, 10, 15): "float16",
    struct.pack("<HHBBBBI", 0, 32, 23, 8, 0, 23, 127): "float32",
    struct.pack("<HHBBBBI", 0, 64, 52, 11, 0, 52, 1023): "float64",
}
_CLASSES = {2: "times", 4: "bit fields", 6: "records", 7: "references", 8: "enumerations", 9: "lists", 10: "arrays"}


@dataclass(frozen=True, slots=True)
class Dataset:
    """`dtype` is TensorFlow's name; `shape` is in elements, `nbytes` its bytes in memory.

    `offset` is that of its little-endian, C-ordered bytes within the HDF5 file, or None where they are not in one piece.
    `Hdf5File.read` gives such a value from `address`, that of its header.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int | None
    address: int


@dataclass(frozen=True, slots=True)
class Type:
    """`kind` is "number" (and `name` TensorFlow's name of it), "text", "reference" (to a text), "opaque", or "other".

    `size` is in bytes; `little` whether numbers are little-endian.
    """

    kind: str
    name: str
    size: int
    little: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """`data` is that of a compact dataset, `address` and `stored` bytes those of a contiguous one, `address` that of the
    tree of a chunked one, whose last `chunk` size is an element's bytes."""

    kind: int
    data: bytes = b""
    address: int = UNDEFINED
    stored: int = 0
    chunk: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Attribute:
    type: Type
    shape: tuple[int, ...] | None
    data: bytes


def value_type(body: bytes) -> Type:
    """IV.A.2.d."""
    head, flags, size = struct.unpack_from("<BBxxI", body)
    version, kind = head >> 4, head & 15
    if kind == 0:
        return _integer(body, flags, size)
    if kind == 1:
        return _float(body, flags, size)
    if kind == 3:
        return Type("text", f"texts of {size} bytes", size)
    if kind == 5:
        return Type("opaque", f"opaque values of {size} bytes", size)
    if kind == 6 and (name := _complex(body, version, size)) is not None:
        return name
    if kind == 8 and _is_bool(body, version, size):
        return Type("number", "bool", 1)
    if kind == 9 and flags & 15 == 1 and size == 16:
        return Type("reference", "texts", size)
    return Type("other", _CLASSES.get(kind, f"values of class {kind}"), size)


def shape_of(body: bytes) -> tuple[int, ...] | None:
    """IV.A.2.b, in elements; None for a space that is not even a scalar."""
    version, rank, _, kind = struct.unpack_from("<BBBB", body)
    if version not in (1, 2) or rank > _MAX_RANK:
        raise Damaged(f"a dataspace of version {version} and {rank} dimensions")
    if version == 2 and kind == 2:
        return None
    return struct.unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)


def layout_of(body: bytes) -> Layout:
    """IV.A.2.i, versions 3 and 4, which every HDF5 since 2005 writes."""
    version, kind = struct.unpack_from("<BB", body)
    if version not in (3, 4):
        raise NotSupported(f"layout version {version}")
    if kind == COMPACT:
        (length,) = struct.unpack_from("<H", body, 2)
        if length > len(body) - 4:
            raise Damaged(f"a compact value of {length} bytes in a message of {len(body)}")
        return Layout(kind, data=body[4 : 4 + length])
    if kind == CONTIGUOUS:
        address, stored = struct.unpack_from("<QQ", body, 2)
        return Layout(kind, address=address, stored=stored)
    if kind == CHUNKED and version == 3:
        (rank,) = struct.unpack_from("<B", body, 2)
        if not 2 <= rank <= _MAX_RANK + 1:
            raise Damaged(f"chunks of {rank - 1} dimensions")
        (address,) = struct.unpack_from("<Q", body, 3)
        chunk = struct.unpack_from(f"<{rank}I", body, 11)
        if 0 in chunk:
            raise Damaged("chunks without an element")
        return Layout(kind, address=address, chunk=chunk)
    if kind in (CHUNKED, VIRTUAL):
        return Layout(kind)
    raise Damaged(f"a layout of the unknown class {kind}")


def filters_of(body: bytes) -> list[tuple[int, tuple[int, ...]]]:
    """IV.A.2.l: the number of each filter, and what it was given."""
    version, count = struct.unpack_from("<BB", body)
    if version not in (1, 2) or count > 32:
        raise Damaged(f"filters of version {version}, {count} of them")
    found, at = [], 8 if version == 1 else 2
    for _ in range(count):
        (number,) = struct.unpack_from("<H", body, at)
        named = version == 1 or number >= 256
        (name,) = struct.unpack_from("<H", body, at + 2) if named else (0,)
        at += 4 if named else 2
        _, values = struct.unpack_from("<HH", body, at)
        at += 4 + ((name + 7) // 8 * 8 if version == 1 else name)
        found.append((number, struct.unpack_from(f"<{values}I", body, at)))
        at += 4 * values + (4 if version == 1 and values % 2 else 0)
    return found


def attribute_name(body: bytes) -> str:
    version, length = struct.unpack_from("<BxH", body)
    at = 9 if version == 3 else 8
    return body[at : at + length].partition(b"\0")[0].decode()


def attribute_of(body: bytes) -> Attribute:
    """IV.A.2.m; only the oldest version fills up to multiples of 8."""
    version, flags, *sizes = struct.unpack_from("<BBHHH", body)
    if version not in (1, 2, 3):
        raise NotSupported(f"attribute version {version}")
    at, parts = 9 if version == 3 else 8, []
    for size in sizes:
        parts.append(body[at : at + size])
        at += (size + 7) // 8 * 8 if version == 1 else size
    if version > 1 and flags:
        raise NotSupported("a type that several attributes share")
    kind, shape = value_type(parts[1]), shape_of(parts[2])
    nbytes = kind.size * math.prod(shape or ())
    if shape is not None and nbytes > len(body) - at:
        raise Damaged(f"an attribute of {nbytes} bytes in {max(0, len(body) - at)}")
    return Attribute(kind, shape, body[at : at + nbytes])


def unshared(message: Message) -> bytes:
    if message.flags & SHARED:
        raise NotSupported("a description that several objects share")
    return message.body


def _integer(body: bytes, flags: int, size: int) -> Type:
    offset, precision = struct.unpack_from("<HH", body, 8)
    if offset or precision != 8 * size or size not in (1, 2, 4, 8):
        return Type("other", f"integers of {precision} bits", size)
    return Type("number", f"{'int' if flags & 8 else 'uint'}{8 * size}", size, not flags & 1)


def _float(body: bytes, flags: int, size: int) -> Type:
    name = _FLOATS.get(body[8:20])
    if name is None or size * 8 != int(name[5:]) or flags & 0x7E != 0x20 or body[2] != 8 * size - 1:
        return Type("other", f"floating-point numbers of {size} bytes", size)
    return Type("number", name, size, not flags & 1)


def _complex(body: bytes, version: int, size: int) -> Type | None:
    """As h5py writes them: a real and an imaginary part, r and i."""
    if size not in (8, 16) or struct.unpack_from("<H", body, 1)[0] != 2:
        return None
    parts, at = [], 8
    for name, offset in ((b"r", 0), (b"i", size // 2)):
        fields = [name + bytes(1 if version >= 3 else 7), offset.to_bytes(1 if version >= 3 else 4, "little")]
        head = b"".join([*fields, bytes(28) if version == 1 else b""])
        if body[at : at + len(head)] != head:
            return None
        at += len(head)
        if (part := value_type(body[at : at + 20])).name != f"float{4 * size}" or len(body) < at + 20:
            return None
        parts.append(part)
        at += 20
    if parts[0].little != parts[1].little:
        return None
    return Type("number", f"complex{8 * size}", size, parts[0].little)


def _is_bool(body: bytes, version: int, size: int) -> bool:
    """As h5py writes them: an enumeration of FALSE and TRUE."""
    names = b"FALSE\0TRUE\0" if version >= 3 else b"FALSE\0\0\0TRUE\0\0\0\0"
    return (
        size == 1 and body[8] & 15 == 0 and body[20 : 22 + len(names)] == names + b"\0\1" and body[12:16] == b"\1\0\0\0"
    )
