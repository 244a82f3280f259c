"""The weights of a SavedModel: where each tensor's bytes are in a TensorBundle.

Format: tensorflow/core/util/tensor_bundle/tensor_bundle.h and tensorflow/core/protobuf/tensor_bundle.proto; the index is
a LevelDB table (leveldb/doc/table_format.md) with optionally Snappy-compressed blocks (snappy/format_description.txt);
slices are found under keys in OrderedCode (tensorflow/core/lib/strings/ordered_code.cc, util/saved_tensor_slice_util.cc).
Every number from the file is checked against what the file can hold before it is used.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CorruptModel, UnsupportedModel
from ...storage import ObjectRef
from ..first_bytes import FIRST_BYTES, other_file
from ..streaming.dlpack import aligned_empty
from ..streaming.tensor_stream import TensorSlot, mask_crc
from ..streaming.whole_reads import Readable, read_whole

COPY_AGAIN = "Copy the model again from where it was exported."
_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5
# Keys share prefixes, and blocks may be packed: a small index may expand without bound. Real ones stay under 20.
_MAX_KEY_EXPANSION, _MIN_KEY_BYTES = 64, 1 << 20
# As TensorFlow's own TensorShape.
_MAX_RANK = 254
_MAX_SLICES = 4096
# A copy is at most 64 bytes long and takes 2 or more.
_SNAPPY_EXPANSION = 32


Region = tuple[tuple[int, int], ...]
"""(start, length) for each dimension."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor, which covers `region` of the whole."""

    slot: TensorSlot
    region: Region
    masked_crc32c: int


@dataclass(frozen=True, slots=True)
class Entry:
    """`dtype` is TensorFlow's name; a tensor in `pieces` of more than one is a partitioned variable.

    The slots of strings and of dtypes that are but bits to numpy are of dtype "uint8" and such; see `Bundle.value`.
    `start` is where it begins in the whole tensor, which is elsewhere than at 0 for a part of one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    start: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return sum(piece.slot.nbytes for piece in self.pieces)

    @property
    def place(self) -> tuple[str, int]:
        """The URI and the offset of its first piece."""
        slot = self.pieces[0].slot
        return slot.source.uri, slot.offset

    @property
    def region(self) -> Region:
        return tuple(zip(self.start, self.shape, strict=True))

    def part(self, region: Region) -> Entry:
        """Only `region`, from the pieces that meet it."""
        start, shape = tuple(at for at, _ in region), tuple(length for _, length in region)
        pieces = tuple(piece for piece in self.pieces if _meet(piece.region, region)) or self.pieces[:1]
        return Entry(self.name, self.dtype, shape, pieces, start)


class Bundle:
    """The index of one checkpoint. `shard(i, n)` gives the object of data shard `i` of `n`, `None` where it is missing."""

    def __init__(self, store: Readable, index: ObjectRef, shard: Callable[[int, int], ObjectRef | None]) -> None:
        self._store, self.uri, self._shard = store, index.uri, shard
        self._table = read_table(read_whole(store, index), index.uri)
        from tensorflow.core.protobuf import tensor_bundle_pb2 as pb

        header = self._parse(pb.BundleHeaderProto, self._table.get(b"", b""), "the header")
        self.shards = header.num_shards
        if header.endianness != pb.BundleHeaderProto.LITTLE:
            raise UnsupportedModel(
                f"The weights of {self.uri} are big-endian", cure="Export the model on a little-endian machine."
            )
        if header.version.min_consumer > 1:
            raise UnsupportedModel(
                f"The checkpoint {self.uri} is of a newer format",
                expected="version 1",
                found=f"version {header.version.min_consumer}",
            )

    def entry(self, name: str) -> Entry | None:
        """Raises `CorruptModel` where the entry contradicts itself or its shard."""
        proto = self._proto(name.encode())
        if proto is None:
            return None
        dtype, shape = self._dtype(proto, name), self._shape(proto, name)
        origin = (0,) * len(shape)
        if not proto.slices:
            full_region = tuple((0, size) for size in shape)
            piece = Piece(self._slot(name, proto, dtype, shape), full_region, proto.crc32c)
            return Entry(name, dtype, shape, (piece,), origin)
        if len(proto.slices) > _MAX_SLICES:
            raise UnsupportedModel(f"{name!r} in {self.uri} is cut into {len(proto.slices)} slices")
        pieces = []
        for i, extents in enumerate(proto.slices):
            region = self._region(extents, shape, name)
            part = self._proto(_slice_key(name, extents))
            if part is None or part.dtype != proto.dtype or self._shape(part, name) != tuple(n for _, n in region):
                raise damaged(self.uri, f"slice {i} of {name!r} is missing or of another shape")
            slot = self._slot(f"{name} slice {i}", part, dtype, tuple(n for _, n in region))
            pieces.append(Piece(slot, region, part.crc32c))
        if sum(math.prod(n for _, n in p.region) for p in pieces) != math.prod(shape) or _overlap(pieces):
            raise damaged(self.uri, f"the slices of {name!r} do not make up its shape {list(shape)}")
        return Entry(name, dtype, shape, tuple(pieces), origin)

    def string(self, name: str) -> bytes | None:
        """The value of a scalar string tensor, read at once."""
        entry = self.entry(name)
        if entry is None:
            return None
        if entry.dtype != "string" or entry.shape:
            raise damaged(self.uri, f"{name!r} is {entry.dtype} {list(entry.shape)}, not one string")
        piece = entry.pieces[0]
        data = self._store.read(piece.slot.source, piece.slot.offset, piece.slot.nbytes)
        return bytes(_string_array(piece, data, ()).item())

    def value(self, entry: Entry, take: Callable[[str], Any]) -> Any:
        """The entry's array, of objects for strings, else of its slots' dtype; `take` gives a slot's array by its name."""
        arrays = ((piece, self._array(entry, piece, take(piece.slot.name))) for piece in entry.pieces)
        if len(entry.pieces) == 1 and entry.pieces[0].region == entry.region:
            return next(arrays)[1]
        tensor = np.empty(entry.shape, object) if entry.dtype == "string" else None
        for piece, array in arrays:
            if tensor is None:
                nbytes = math.prod(entry.shape) * array.itemsize
                tensor = aligned_empty(nbytes).view(array.dtype).reshape(entry.shape)
            into, out_of = [], []
            for (start, length), (at, size) in zip(entry.region, piece.region, strict=True):
                first = max(start, at)
                last = max(first, min(start + length, at + size))
                into.append(slice(first - start, last - start))
                out_of.append(slice(first - at, last - at))
            tensor[tuple(into)] = array[tuple(out_of)]
        return tensor

    def _array(self, entry: Entry, piece: Piece, array: Any) -> Any:
        if entry.dtype != "string":
            return array
        return _string_array(piece, array.tobytes(), tuple(length for _, length in piece.region))

    def _proto(self, key: bytes) -> Any:
        from tensorflow.core.protobuf import tensor_bundle_pb2 as pb

        value = self._table.get(key)
        return None if value is None or not key else self._parse(pb.BundleEntryProto, value, f"the entry {key!r}")

    def _parse(self, kind: Any, data: bytes, what: str) -> Any:
        from google.protobuf.message import DecodeError

        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise damaged(self.uri, f"{what} cannot be parsed") from error

    def _dtype(self, proto: Any, name: str) -> str:
        import tensorflow as tf

        try:
            dtype = tf.dtypes.as_dtype(proto.dtype)
        except TypeError as error:
            raise damaged(self.uri, f"{name!r} has the unknown dtype {proto.dtype}") from error
        if dtype in (tf.resource, tf.variant) or dtype.name.endswith("_ref"):
            raise UnsupportedModel(f"{name!r} in {self.uri} is a {dtype.name}, which cannot be streamed")
        return str(dtype.name)

    def _shape(self, proto: Any, name: str) -> tuple[int, ...]:
        shape = tuple(dim.size for dim in proto.shape.dim)
        if proto.shape.unknown_rank or len(shape) > _MAX_RANK or min(shape, default=0) < 0:
            raise damaged(self.uri, f"{name!r} has the shape {list(shape[:_MAX_RANK])}")
        return shape

    def _slot(self, name: str, proto: Any, dtype: str, shape: tuple[int, ...]) -> TensorSlot:
        if not 0 <= proto.shard_id < self.shards:
            raise damaged(self.uri, f"{name!r} lies in data shard {proto.shard_id} of {self.shards}")
        source = self._shard(proto.shard_id, self.shards)
        if source is None:
            raise CorruptModel(
                f"Data shard {proto.shard_id} of {self.shards} of {self.uri} is missing",
                expected=f"an object that ends with .data-{proto.shard_id:05d}-of-{self.shards:05d}",
                cure="Copy the whole variables folder.",
            )
        offset, nbytes = proto.offset, proto.size
        if offset < 0 or nbytes < 0 or offset + nbytes > source.size:
            start = self._store.read(source, 0, min(FIRST_BYTES, source.size))
            raise other_file(source.uri, source.size, start) or CorruptModel(
                f"Tensor {name!r} is outside {source.uri}, which is truncated or another model's",
                expected=f"bytes {offset} to {offset + nbytes}",
                found=f"an object of {source.size} bytes",
                cure=COPY_AGAIN,
            )
        if dtype == "string":
            return TensorSlot(name, "uint8", (nbytes,), source, offset, nbytes)
        if dtype.startswith(("qint", "quint")):
            dtype = dtype.replace("quint", "uint").replace("qint", "uint")
        return TensorSlot(name, dtype, shape, source, offset, nbytes, proto.crc32c)

    def _region(self, extents: Any, shape: tuple[int, ...], name: str) -> Region:
        if len(extents.extent) != len(shape):
            raise damaged(self.uri, f"a slice of {name!r} has {len(extents.extent)} dimensions")
        region = tuple(
            (extent.start, extent.length if extent.HasField("length") else size)
            for extent, size in zip(extents.extent, shape, strict=True)
        )
        if not within(region, shape):
            raise damaged(self.uri, f"a slice of {name!r} reaches outside its shape {list(shape)}")
        return region


def read_table(data: bytes, uri: str) -> dict[bytes, bytes]:
    """Every key and value of a LevelDB table. Raises `CorruptModel`."""
    if len(data) < _FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != _MAGIC:
        raise damaged(uri, "no table ends here; it is truncated or no index")
    footer = data[-_FOOTER:-8]
    at = 0
    for _ in range(2):
        _, at = _varint(footer, at, uri)
    offset, at = _varint(footer, at, uri)
    size, _ = _varint(footer, at, uri)
    table: dict[bytes, bytes] = {}
    claimed = keys = 0
    for _, handle in _block(data, offset, size, uri):
        start, at = _varint(handle, 0, uri)
        length, _ = _varint(handle, at, uri)
        claimed += length + _TRAILER
        if claimed > len(data):
            raise damaged(uri, "its blocks overlap")
        for key, value in _block(data, start, length, uri):
            keys += len(key)
            if keys > _MAX_KEY_EXPANSION * len(data) + _MIN_KEY_BYTES:
                raise damaged(uri, "its keys expand without measure")
            if key in table:
                raise damaged(uri, f"{key!r} stands in it twice")
            table[key] = value
    return table


def string_values(data: bytes, count: int, masked_crc32c: int, where: str) -> list[bytes]:
    """`count` strings: their lengths as varints, the masked CRC of the lengths, the bytes. Raises `CorruptModel`."""
    import crc32c

    if count > len(data):
        raise damaged(where, f"{count} strings in {len(data)} bytes")
    lengths, at, crc = [], 0, 0
    for _ in range(count):
        length, at = _varint(data, at, where)
        lengths.append(length)
        # The writer checksums a length as a fixed 32-bit number where it fits.
        crc = crc32c.crc32c(struct.pack("<I" if length < 1 << 32 else "<Q", length), crc)
    stored = data[at : at + 4]
    at += 4
    if len(stored) < 4 or mask_crc(crc) != struct.unpack("<I", stored)[0] or at + sum(lengths) != len(data):
        raise damaged(where, "the lengths of the strings do not match their checksum or size")
    if mask_crc(crc32c.crc32c(data[at:], crc32c.crc32c(stored, crc))) != masked_crc32c:
        raise damaged(where, "the strings do not match their checksum")
    values = []
    for length in lengths:
        values.append(data[at : at + length])
        at += length
    return values


def _block(data: bytes, offset: int, size: int, uri: str) -> Iterator[tuple[bytes, bytes]]:
    import crc32c

    if offset + size + _TRAILER > len(data) - _FOOTER or size < 4:
        raise damaged(uri, f"a block at {offset} of {size} bytes in a file of {len(data)}")
    body, kind = data[offset : offset + size], data[offset + size]
    if (
        mask_crc(crc32c.crc32c(data[offset : offset + size + 1]))
        != struct.unpack_from("<I", data, offset + size + 1)[0]
    ):
        raise damaged(uri, f"the block at {offset} does not match its checksum")
    if kind == 1:
        body = uncompress(body, uri)
    elif kind != 0:
        raise UnsupportedModel(f"A block of {uri} is compressed in the unknown way {kind}")
    if len(body) < 4:
        raise damaged(uri, f"the block at {offset} is too short")
    end = len(body) - 4 - 4 * struct.unpack_from("<I", body, len(body) - 4)[0]
    if end < 0:
        raise damaged(uri, f"the block at {offset} has more restarts than bytes")
    at, key, keys = 0, b"", 0
    while at < end:
        shared, at = _varint(body, at, uri)
        fresh, at = _varint(body, at, uri)
        length, at = _varint(body, at, uri)
        if shared > len(key) or at + fresh + length > end:
            raise damaged(uri, f"an entry reaches outside the block at {offset}")
        key = key[:shared] + body[at : at + fresh]
        keys += len(key)
        if keys > _MAX_KEY_EXPANSION * len(body):
            raise damaged(uri, f"the keys of the block at {offset} expand without measure")
        at += fresh
        yield key, body[at : at + length]
        at += length


def uncompress(data: bytes, uri: str) -> bytes:
    """Snappy's raw format, which names its length first: at most 64 bytes out of 2 or more. Raises `CorruptModel`."""
    import pyarrow as pa

    expected, at = _varint(data, 0, uri)
    if expected > _SNAPPY_EXPANSION * (len(data) - at):
        raise damaged(uri, f"a compressed block of {len(data)} bytes that names a length of {expected}")
    try:
        return bytes(pa.decompress(data, decompressed_size=expected, codec="snappy", asbytes=True))
    except (pa.ArrowException, OSError) as error:
        raise damaged(uri, f"a compressed block that does not give the {expected} bytes that it names") from error


def _varint(data: bytes, at: int, uri: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            # One bit of the tenth byte is within 64.
            if value < 1 << 64:
                return value, at
            break
    raise damaged(uri, "a number that does not end within 64 bits")


def _string_array(piece: Piece, data: bytes, shape: tuple[int, ...]) -> Any:
    where = f"{piece.slot.name!r} in {piece.slot.source.uri}"
    values = string_values(data, math.prod(shape), piece.masked_crc32c, where)
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def within(region: Sequence[tuple[int, int]], shape: Sequence[int]) -> bool:
    """Whether it is a part of a tensor of that shape."""
    return len(region) == len(shape) and all(
        start >= 0 and 0 <= length <= size - start for (start, length), size in zip(region, shape, strict=True)
    )


def _meet(a: Region, b: Region) -> bool:
    return all(max(p, q) < min(p + m, q + n) for (p, m), (q, n) in zip(a, b, strict=True))


def _overlap(pieces: list[Piece]) -> bool:
    """Compares only those that meet in the dimension that has been cut most often."""
    rank = len(pieces[0].region)
    cut = max(range(rank), key=lambda i: len({piece.region[i][0] for piece in pieces}), default=0)
    open_regions: list[Region] = []
    for region in sorted((p.region for p in pieces if all(n for _, n in p.region)), key=lambda r: r[cut:]):
        if not rank:
            return len(pieces) > 1
        open_regions = [other for other in open_regions if sum(other[cut]) > region[cut][0]]
        if any(_meet(other, region) for other in open_regions):
            return True
        open_regions.append(region)
    return False


def _slice_key(name: str, extents: Any) -> bytes:
    escaped = b"".join({0: b"\x00\xff", 255: b"\xff\x00"}.get(byte, bytes([byte])) for byte in name.encode())
    dims = len(extents.extent)
    key = b"\x00" + escaped + b"\x00\x01" + (bytes([1, dims]) if dims else b"\x00")
    for extent in extents.extent:
        key += _signed(extent.start) + _signed(extent.length if extent.HasField("length") else -1)
    return key


def _signed(value: int) -> bytes:
    """OrderedCode's WriteSignedNumIncreasing: n bytes hold 7n-1 bits, under a header of n one-bits."""
    bits = (~value if value < 0 else value).bit_length()
    length = bits // 7 + 1
    header = ((1 << length) - 1) << (8 * length - length)
    payload = value & ((1 << (8 * length)) - 1)
    return (payload ^ header).to_bytes(length, "big")


def damaged(where: str, found: str) -> CorruptModel:
    return CorruptModel(f"{where} is damaged", found=found, cure=COPY_AGAIN)
