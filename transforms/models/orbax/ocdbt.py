"""The directory of an OCDBT database: which keys it has, and where the value of each is.

Format: TensorStore, kvstore/ocdbt, "Storage format" (https://google.github.io/tensorstore/kvstore/ocdbt/). A manifest names
the root of a B+tree of each version; what is read here is the newest. TensorStore itself reads only through its own
drivers, which know neither headrace's stores nor the version of an object that a job was pinned to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

MANIFEST = "manifest.ocdbt"
MANIFEST_MAGIC, NODE_MAGIC = 0x0CDB3A2A, 0x0CDB20DE
_SINGLE = 0
# Orbax lets a node grow to 100 MB before it is split; a thousand variables make some 300 kB.
NODE_BYTES = 128 << 20
# Of all nodes unpacked, and of the keys and paths in them, which are stored as what differs from the one before.
_ALL_BYTES = 256 << 20
_BYTES_OF_OBJECT = 100
_MAX_HEIGHT = 32
# The length of a root that a version lacks.
_MISSING = (1 << 64) - 1
_NODES_AT_ONCE = 16
# Of a key or a path.
_TEXT_BYTES = 65535


class Damaged(ValueError):
    """What cannot be true of a sound file."""


@dataclass(frozen=True, slots=True)
class Place:
    """`length` bytes from `offset` of the file at `path`, relative to the database."""

    path: str
    offset: int
    length: int


Value = bytes | Place
_File = tuple[bytes, bytes]


def keys_and_values(
    manifest: bytes, read: Callable[[Place], bytes], prefixes: Sequence[str] = ("",)
) -> dict[str, Value]:
    """Every key that begins with one of `prefixes` (and perhaps others), in order, and its value.

    `read` gives the bytes of a node, and is called from several threads. Raises `Damaged`, and what `read` raises.
    """
    budget = _Budget()
    root = _root(manifest, budget)
    if root is None:
        return {}
    wanted = [prefix.encode() for prefix in prefixes]
    level, seen = [root], {root.place}
    found: dict[str, Value] = {}
    with ThreadPoolExecutor(_NODES_AT_ONCE, "headrace-ocdbt") as pool:
        while level:
            if sum(child.place.length for child in level) > _ALL_BYTES:
                raise Damaged(f"a tree of more than {_ALL_BYTES} bytes")
            below: list[_Child] = []
            for child, data in zip(level, pool.map(lambda child: read(child.place), level), strict=True):
                node = _Fields(_body(data, NODE_MAGIC, budget), budget)
                if (height := node.byte()) != child.height:
                    raise Damaged(f"a node of height {height} where one of {child.height} belongs")
                files = _files(node, child.base)
                if height:
                    below += _children(node, files, child, wanted)
                else:
                    found.update(_leaf(node, files, child.prefix))
            places = {child.place for child in below}
            if len(places) < len(below) or places & seen:
                raise Damaged("a tree that leads twice to one node")
            seen |= places
            level = below
    return found


@dataclass(frozen=True, slots=True)
class _Child:
    """`prefix` begins every key below; `base` is what the paths of its files are relative to."""

    place: Place
    base: bytes
    height: int
    prefix: bytes


class _Budget:
    """What may still be made of the bytes that were read: a few of them unpack to many."""

    def __init__(self) -> None:
        self.left = _ALL_BYTES

    def spend(self, nbytes: int) -> None:
        self.left -= nbytes
        if self.left < 0:
            raise Damaged(f"a tree of more than {_ALL_BYTES} bytes")


def _root(manifest: bytes, budget: _Budget) -> _Child | None:
    fields = _Fields(_body(manifest, MANIFEST_MAGIC, budget), budget)
    fields.take(16)  # the database's UUID
    if fields.byte() != _SINGLE:
        raise Damaged("a manifest whose versions are in files of their own, which Orbax does not write")
    fields.varints(2)
    fields.byte()
    if (method := fields.varint()) > 1:
        raise Damaged(f"nodes packed by the unknown method {method}")
    fields.take(4 * method)  # the level of zstd
    files = _files(fields, b"")
    versions = fields.count()
    if not versions:
        raise Damaged("a manifest without a version")
    generations = fields.varints(versions)
    heights = [fields.byte() for _ in range(versions)]
    places = fields.places(files, versions)
    newest = max(range(versions), key=generations.__getitem__)
    place, base = places[newest]
    if heights[newest] > _MAX_HEIGHT:
        raise Damaged(f"a tree of height {heights[newest]}")
    # An empty database lacks a root.
    return _Child(_sized(place), base, heights[newest], b"") if place.length != _MISSING else None


def _files(fields: _Fields, base: bytes) -> list[_File]:
    """The path of each file, and what the paths in that file are relative to."""
    number = fields.count()
    shared = fields.shared(number)
    own, bases = fields.varints(number), fields.varints(number)
    found = []
    for path, length in zip(fields.texts(shared, own, base), bases, strict=True):
        if len(base) + length > len(path):
            raise Damaged("a table of files whose paths cannot be")
        found.append((path, path[: len(base) + length]))
    return found


def _children(node: _Fields, files: list[_File], parent: _Child, wanted: Sequence[bytes]) -> list[_Child]:
    number = node.count()
    shared, own = node.shared(number), node.varints(number)
    common = node.varints(number)
    keys = node.texts(shared, own, parent.prefix)
    places = node.places(files, number)
    node.varints(3 * number)  # statistics
    found = []
    for i, (place, base) in enumerate(places):
        shares = len(parent.prefix) + common[i]
        if shares > len(keys[i]):
            raise Damaged("a subtree whose keys share more than its first key")
        end = keys[i + 1] if i + 1 < number else None
        if any(_meets(keys[i], end, prefix) for prefix in wanted):
            found.append(_Child(_sized(place), base, parent.height - 1, keys[i][:shares]))
    return found


def _meets(first: bytes, end: bytes | None, prefix: bytes) -> bool:
    """Whether a key that begins with `prefix` may be from `first` (inclusive) to `end` (exclusive)."""
    return (first <= prefix or first.startswith(prefix)) and (end is None or end > prefix)


def _leaf(node: _Fields, files: list[_File], prefix: bytes) -> dict[str, Value]:
    number = node.count()
    shared, own = node.shared(number), node.varints(number)
    keys = [_text(key) for key in node.texts(shared, own, prefix)]
    lengths, kinds = node.varints(number), node.varints(number)
    if not set(kinds) <= {0, 1}:
        raise Damaged("a value of an unknown kind")
    apart = [i for i in range(number) if kinds[i]]
    numbers, offsets = node.varints(len(apart)), node.varints(len(apart))
    values: dict[str, Value] = {}
    for i, file, offset in zip(apart, numbers, offsets, strict=True):
        values[keys[i]] = Place(_text(_file(files, file)[0]), offset, lengths[i])
    for i in range(number):
        if not kinds[i]:
            values[keys[i]] = node.take(lengths[i])
    return values


def _file(files: list[_File], number: int) -> _File:
    if number >= len(files):
        raise Damaged(f"file {number} of {len(files)}")
    return files[number]


def _sized(place: Place) -> Place:
    if place.length > NODE_BYTES:
        raise Damaged(f"a node of {place.length} bytes")
    return place


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Damaged(f"a name that is not UTF-8: {data[:80]!r}") from error


def _body(data: bytes, magic: int, budget: _Budget) -> bytes:
    """What a manifest or a node holds, unpacked."""
    import crc32c

    if len(data) < 18 or struct.unpack(">I", data[:4])[0] != magic:
        raise Damaged(f"{len(data)} bytes that begin with {data[:4].hex() or 'nothing'}, not {magic:08x}")
    if struct.unpack("<Q", data[4:12])[0] != len(data):
        raise Damaged(f"{len(data)} bytes that give their length as another")
    if struct.unpack("<I", data[-4:])[0] != crc32c.crc32c(data[:-4]):
        raise Damaged("bytes that do not match their CRC-32C")
    version, method = data[12], data[13]
    if version or method > 1:
        raise Damaged(f"version {version}, packed by method {method}, where 0 and 0 or 1 are known")
    body = _unpacked(data[14:-4], budget.left) if method else data[14:-4]
    budget.spend(len(body))
    return body


def _unpacked(packed: bytes, most: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=NODE_BYTES).stream_reader(
            packed, read_across_frames=True
        ) as to:
            # One byte more than allowed tells what is too large from what just fits.
            return to.read(most + 1)
    except zstandard.ZstdError as error:
        raise Damaged(f"bytes that do not unpack: {error}") from error


class _Fields:
    """Reads one field after the other; what would reach beyond the end is `Damaged`."""

    def __init__(self, data: bytes, budget: _Budget) -> None:
        self._data, self._at, self._budget = data, 0, budget

    def byte(self) -> int:
        return self.take(1)[0]

    def take(self, length: int) -> bytes:
        if length > len(self._data) - self._at:
            raise Damaged("fields that reach beyond the end")
        self._at += length
        return self._data[self._at - length : self._at]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise Damaged("a number of more than 64 bits")

    def varints(self, number: int) -> list[int]:
        return [self.varint() for _ in range(number)]

    def shared(self, number: int) -> list[int]:
        """How much each of so many names shares with the one before it, which the first does not have."""
        return [0, *self.varints(number - 1)] if number else []

    def count(self) -> int:
        """How many entries follow, each of a byte at least."""
        number = self.varint()
        if number > len(self._data) - self._at:
            raise Damaged(f"{number} entries in {len(self._data) - self._at} bytes")
        return number

    def texts(self, shared: Sequence[int], own: Sequence[int], before: bytes) -> list[bytes]:
        """Each begins with `before`, then with as much of the one before it as `shared` has."""
        found, last = [], b""
        for prefix, suffix in zip(shared, own, strict=True):
            if prefix > len(last) or len(before) + prefix + suffix > _TEXT_BYTES:
                raise Damaged("a name that shares more than there is with the one before")
            self._budget.spend(len(before) + prefix + suffix + _BYTES_OF_OBJECT)
            last = last[:prefix] + self.take(suffix)
            found.append(before + last)
        return found

    def places(self, files: list[_File], number: int) -> list[tuple[Place, bytes]]:
        """Of other nodes, each with the base of its file."""
        numbers, offsets, lengths = (self.varints(number) for _ in range(3))
        found = []
        for file, offset, length in zip(numbers, offsets, lengths, strict=True):
            path, base = _file(files, file)
            found.append((Place(_text(path), offset, length), base))
        return found
