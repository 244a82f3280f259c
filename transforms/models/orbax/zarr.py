"""What the metadata of a Zarr array says: its type and shape, the keys of its chunks, and how they are packed.

Formats: Zarr version 2, and version 3 with the codecs "sharding_indexed", "bytes" and "zstd". Only what Orbax writes is known:
little-endian numbers in C order, one piece in each shard, packed by Zstandard or not at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...bounded_json import NotJson, parse_json_object
from ..streaming.tensor_stream import numpy_dtype

METADATA = (".zarray", "zarr.json")
METADATA_BYTES = 1 << 20
_MAX_RANK = 32
# A shard of one piece ends in that piece's offset and length, and their CRC-32C.
SHARD_INDEX_BYTES = 20
# By version 2's names without the byte order, where they are not version 3's.
_SHORT = {
    **{f"{kind}{size}": f"{name}{8 * size}" for kind, name in (("i", "int"), ("u", "uint")) for size in (1, 2, 4, 8)},
    "b1": "bool",
    "f2": "half",
    "f4": "float32",
    "f8": "float64",
}
_LONG = {
    **{name: name for name in _SHORT.values()},
    **{name: name for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")},
    "float16": "half",
}


class NotSupported(ValueError):
    """What a sound array may be, and is not known here."""


@dataclass(frozen=True, slots=True)
class ZarrArray:
    """`dtype` is TensorFlow's name. `chunk` is the shape of each chunk; those at the edges may reach beyond `shape`.

    `sharded` chunks end in an index. `beginning` and `separator` make a chunk's key below the array's own.
    """

    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    packed: bool
    sharded: bool
    beginning: tuple[str, ...]
    separator: str

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.chunk) or 0 in self.chunk:
            raise NotJson(f"chunks of {list(self.chunk)} in an array of {list(self.shape)}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize

    @property
    def chunk_nbytes(self) -> int:
        return math.prod(self.chunk) * numpy_dtype(self.dtype).itemsize

    @property
    def chunks(self) -> int:
        return math.prod(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    def places(self) -> Iterator[tuple[tuple[int, ...], str]]:
        """The first element of each chunk, and its key."""
        counts = (range(-(-n // c)) for n, c in zip(self.shape, self.chunk, strict=True))
        for numbers in itertools.product(*counts):
            start = tuple(number * c for number, c in zip(numbers, self.chunk, strict=True))
            key = self.separator.join([*self.beginning, *map(str, numbers)])
            yield start, key or "0"  # as version 2 calls the chunk of a single number


def parse_array(data: bytes) -> ZarrArray:
    """Raises `NotSupported`, and `NotJson` where it is no metadata of an array."""
    described = parse_json_object(data, most_bytes=METADATA_BYTES)
    version = described.get("zarr_format")
    if version == 2:
        return _version_2(described)
    if version == 3:
        return _version_3(described)
    raise NotSupported(f"Zarr of version {version!r}")


def _version_2(described: dict[str, Any]) -> ZarrArray:
    kind = described.get("dtype")
    plain = kind.removeprefix("<").removeprefix("|") if isinstance(kind, str) else ""
    compressor = described.get("compressor")
    packing = compressor.get("id") if isinstance(compressor, dict) else compressor
    if packing not in (None, "zstd"):
        raise NotSupported(f"chunks packed by {packing!r}")
    _expect(described.get("filters") in (None, []), "filters")
    _expect(described.get("order") == "C", "an order of elements other than C")
    separator = described.get("dimension_separator", ".")
    _expect(separator in (".", "/"), "another separator of a chunk's numbers")
    shape, chunk = _shape(described.get("shape")), _shape(described.get("chunks"))
    dtype = _dtype(kind, _SHORT.get(plain) or _LONG.get(plain))
    return ZarrArray(dtype, shape, chunk, packing is not None, False, (), separator)


def _version_3(described: dict[str, Any]) -> ZarrArray:
    _expect(described.get("node_type") == "array", "a group where an array belongs")
    name, grid = _named(described.get("chunk_grid"))
    _expect(name == "regular", "chunks of several shapes")
    chunk = _shape(grid.get("chunk_shape"))
    encoded, encoding = _named(described.get("chunk_key_encoding", "default"))
    _expect(encoded in ("default", "v2"), "keys of another kind")
    separator = encoding.get("separator", "/" if encoded == "default" else ".")
    _expect(separator in (".", "/"), "another separator of a chunk's numbers")
    codecs = _codecs(described.get("codecs"))
    sharded = codecs[0][0] == "sharding_indexed"
    if sharded:
        _expect(len(codecs) == 1, "shards that are packed as a whole")
        inner = codecs[0][1]
        _expect(_shape(inner.get("chunk_shape")) == chunk, "several pieces in a shard")
        _expect(inner.get("index_location", "end") == "end", "shards with their index in front")
        index = [name for name, _ in _codecs(inner.get("index_codecs"))]
        _expect(index == ["bytes", "crc32c"], "shards with an index of another form")
        codecs = _codecs(inner.get("codecs"))
    _expect(codecs[0][0] == "bytes" and codecs[0][1].get("endian", "little") == "little", "big-endian numbers")
    packing = [name for name, _ in codecs[1:]]
    if packing not in ([], ["zstd"]):
        raise NotSupported(f"chunks packed by {', '.join(packing)[:80]}")
    kind = described.get("data_type")
    shape, beginning = _shape(described.get("shape")), ("c",) if encoded == "default" else ()
    dtype = _dtype(kind, _LONG.get(kind) if isinstance(kind, str) else None)
    return ZarrArray(dtype, shape, chunk, bool(packing), sharded, beginning, separator)


def _dtype(kind: Any, name: str | None) -> str:
    if name is None:
        raise NotSupported(f"elements of type {str(kind)[:80]}")
    return name


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise NotSupported(otherwise)


def _named(described: Any) -> tuple[str, dict[str, Any]]:
    """A name with its configuration, which version 3 gives in one form for everything."""
    if isinstance(described, str):
        return described, {}
    configuration = described.get("configuration", {}) if isinstance(described, dict) else None
    if not isinstance(configuration, dict) or not isinstance(described.get("name"), str):
        raise NotJson("no name with a configuration where one belongs")
    return described["name"], configuration


def _codecs(described: Any) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(described, list) or not described:
        raise NotJson("no list of codecs")
    return [_named(codec) for codec in described]


def _shape(described: Any) -> tuple[int, ...]:
    if not isinstance(described, list) or len(described) > _MAX_RANK:
        raise NotJson("no shape where one belongs")
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in described):
        raise NotJson("a shape that is not of whole numbers")
    return tuple(described)
