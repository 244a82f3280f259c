"""The structures of an HDF5 file, read with bounds that HDF5's own library does not keep.

That library loops for ever on a crafted length, and ends the process on others, so no byte of a file reaches it. Read here
is what h5py writes, for Keras, in its oldest and its newest layouts; other structures are refused. Format: HDF5 File Format
Specification 3.0, with the numbers of its sections below. Every structure is read once, wherever it is referred to; what is
read, and what is done again for a second reference, is paid for from a budget that the file's size sets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..streaming.ranges import NotFetched

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 2**64 - 1
LINK_INFO, LINK, GROUP_INFO, ATTRIBUTE = 0x02, 0x06, 0x0A, 0x0C
CONTINUATION, SYMBOL_TABLE, ATTRIBUTE_INFO = 0x10, 0x11, 0x15
# A flag of a message: its body is elsewhere, shared with others.
SHARED = 0x02
# Limits for the bytes read in all: sound files need up to 1.3 times their size, and a gigabyte at most.
_READS, _MIN_WORK, _MAX_WORK = 4, 1 << 20, 1 << 30
# No structure is larger (a text of the global heap may be a whole configuration), no checked header, and no name longer.
_LARGEST, _LARGEST_HEADER, _LONGEST_NAME = 64 << 20, 2 << 20, 64 << 10
# The cost of reading a message again.
_MESSAGE_WORK = 4
_MAX_BLOCKS = 4096
_SUPERBLOCK_BYTES = 100

T = TypeVar("T")


class Damaged(Exception):
    """A structure that contradicts itself; the text says how."""


class NotSupported(Exception):
    """A structure that may be sound, and that is not read here."""


@dataclass(frozen=True, slots=True)
class Message:
    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """`address` is that of an object's header; a link without one leads elsewhere, as `kind` says.

    `table` holds the addresses of a group's tree and heap, if the link records them.
    """

    address: int | None
    kind: str = "a hard link"
    table: tuple[int, int] | None = None


class Structures:
    """`read` takes an address and a length, and may raise `NotFetched`; the same may then be requested again.

    Raises `Damaged`, `NotSupported`, `struct.error` and `UnicodeDecodeError` for a file that is not sound.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._source, self.size = read, size
        self._left = min(_READS * size, _MAX_WORK) + _MIN_WORK
        self._asked: set[tuple[int, int]] = set()
        self._known: dict[tuple[str, int], Any] = {}
        self.root = self._superblock()

    def read(self, address: int, length: int) -> bytes:
        """Exactly that many, all inside the file."""
        if length > self.size - address or length > _LARGEST:
            raise Damaged(f"a structure of {length} bytes at {address}, in a file of {self.size}")
        if (address, length) not in self._asked:
            self._asked.add((address, length))
            self.spend(length)
        data = self._source(address, length)
        if len(data) != length:
            raise Damaged(f"{len(data)} of {length} bytes at {address}")
        return data

    def spend(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            raise Damaged("structures that overlap, or refer to each other without measure")

    def once(self, kind: str, address: int, read: Callable[[int], T]) -> T:
        """A structure that is read at its first mention."""
        key = kind, address
        if key not in self._known:
            self._known[key] = read(address)
        found: T = self._known[key]
        return found

    def header(self, address: int) -> tuple[Message, ...]:
        """The messages of an object."""
        messages = self.once("header", address, self._read_header)
        self.spend(_MESSAGE_WORK * len(messages))
        return messages

    def is_group(self, address: int) -> bool:
        """Decides by the object's header alone."""
        return any(message.kind in (SYMBOL_TABLE, LINK_INFO, GROUP_INFO) for message in self.header(address))

    def table_links(self, tree: int, heap: int) -> Mapping[str, Link]:
        """The links of a group of the older layout: III.A.1, III.B, III.D."""
        names: bytes | None = None
        missed = False
        try:
            names = self.once("heap", heap, self._read_heap)
        except NotFetched:
            missed = True
        nodes: list[bytes] = []
        for node in self._leaves(tree):
            try:
                nodes += [] if node is None else [self.once("symbols", node, self._read_symbols)]
            except NotFetched:
                node = None
            missed = missed or node is None
        if missed or names is None:
            raise NotFetched
        self.spend(sum(map(len, nodes)))
        found: dict[str, Link] = {}
        # The name's place, the header, what is cached of it, and the first two words of that.
        for at, address, cached, first, second in struct.iter_unpack("<QQI4xQQ", b"".join(nodes)):
            name = unique_name(self._name(names, at), found)
            if cached == 2:
                found[name] = Link(None, "a soft link")
            else:
                found[name] = Link(address, table=(first, second) if cached == 1 else None)
        return found

    def texts(self, address: int) -> Mapping[int, bytes]:
        """The objects of a collection of the global heap by their number: III.E."""
        return self.once("texts", address, self._read_collection)

    def _superblock(self) -> int:
        """II.A: the address of the root's header."""
        head = self.read(0, min(self.size, _SUPERBLOCK_BYTES))
        if head[:8] != SIGNATURE or len(head) < _SUPERBLOCK_BYTES:
            raise Damaged(f"{self.size} bytes that begin with {head[:8]!r}")
        version = head[8]
        if version in (0, 1):
            widths, at = head[13:15], 24 + 4 * version
            base, _, end, driver, _, root = struct.unpack_from("<6Q", head, at)
        elif version in (2, 3):
            widths, driver = head[9:11], UNDEFINED
            base, _, end, root = struct.unpack_from("<4Q", head, 12)
        else:
            raise NotSupported(f"superblock version {version}")
        if widths != b"\x08\x08" or base or driver != UNDEFINED:
            raise NotSupported("addresses of another width, or a file in several parts")
        if end > self.size:
            raise Damaged(f"{self.size} of {end} bytes")
        return int(root)

    def _read_header(self, address: int) -> tuple[Message, ...]:
        start = self.read(address, 16)
        if start[:4] == b"OHDR":
            return self._read_header_2(address)
        version, length = struct.unpack_from("<B7xI", start)
        if version != 1:
            raise Damaged(f"no object's header at {address}")
        return _in_blocks((address + 16, length), lambda block: _messages(self.read(*block), "<HHB", 8))

    def _read_header_2(self, address: int) -> tuple[Message, ...]:
        """IV.A.1.b."""
        start = self.read(address, min(34, self.size - address))
        version, flags = start[4], start[5]
        if version != 2:
            raise NotSupported(f"object header version {version}")
        at, width = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10), 1 << (flags & 3)
        length = int.from_bytes(start[at : at + width], "little")
        first = at + width

        def read(block: tuple[int, int]) -> Iterator[Message]:
            if block[1] > _LARGEST_HEADER:
                raise Damaged(f"a header of {block[1]} bytes at {block[0]}")
            data, continues = self.read(*block), block[0] != address
            if continues and data[:4] != b"OCHK":
                raise Damaged(f"no continuation of a header at {block[0]}")
            check(data)
            return _messages(data[4 if continues else first : -4], "<BHB", 6 if flags & 4 else 4)

        return _in_blocks((address, first + length + 4), read)

    def _leaves(self, tree: int) -> Iterator[int | None]:
        """The addresses below the lowest nodes of a group's tree; None for a node that is not here yet."""
        level: int | None = None
        nodes, seen = [(tree, level)], {tree}
        while nodes:
            address, level = nodes.pop()
            try:
                found, children = self.once("tree", address, self._read_tree)
            except NotFetched:
                yield None
                continue
            if level is not None and found != level:
                raise Damaged(f"a tree's node at {address} of level {found} below level {level + 1}")
            self.spend(16 * len(children))
            for child in reversed(children) if found else children:
                if child in seen:
                    raise Damaged(f"a tree that leads twice to {child}")
                seen.add(child)
                if found:
                    nodes.append((child, found - 1))
                else:
                    yield child

    def _read_tree(self, address: int) -> tuple[int, tuple[int, ...]]:
        signature, kind, level, used = struct.unpack("<4sBBH16x", self.read(address, 24))
        if signature != b"TREE" or kind != 0:
            raise Damaged(f"no node of a group's tree at {address}")
        return level, struct.unpack("<" + "8xQ" * used, self.read(address + 24, 16 * used))

    def _read_symbols(self, address: int) -> bytes:
        signature, version, used = struct.unpack("<4sBxH", self.read(address, 8))
        if signature != b"SNOD" or version != 1:
            raise Damaged(f"no node of a symbol table at {address}")
        return self.read(address + 8, 40 * used)

    def _read_heap(self, address: int) -> bytes:
        signature, version, length, _, data = struct.unpack("<4sB3xQQQ", self.read(address, 32))
        if signature != b"HEAP" or version != 0:
            raise Damaged(f"no local heap at {address}")
        return self.read(data, length)

    def _read_collection(self, address: int) -> Mapping[int, bytes]:
        signature, version, length = struct.unpack("<4sB3xQ", self.read(address, 16))
        if signature != b"GCOL" or version != 1 or length < 16:
            raise Damaged(f"no collection of the global heap at {address}")
        data = self.read(address, length)
        found: dict[int, bytes] = {}
        at = 16
        while at + 16 <= len(data):
            number, size = struct.unpack_from("<H6xQ", data, at)
            if number == 0:  # free space, to the end
                break
            if number in found or size > len(data) - at - 16:
                raise Damaged(
                    f"an object of {size} bytes in the global heap's collection at {address} of {length} bytes"
                )
            found[number] = data[at + 16 : at + 16 + size]
            at += 16 + (size + 7) // 8 * 8
        return found

    def _name(self, names: bytes, at: int) -> str:
        end = names.find(b"\0", at, at + _LONGEST_NAME)
        if end < 0:
            raise Damaged(f"a name without an end at byte {at} of a heap of {len(names)}")
        self.spend(end - at)
        return names[at:end].decode()


def _in_blocks(first: tuple[int, int], read: Callable[[tuple[int, int]], Iterable[Message]]) -> tuple[Message, ...]:
    """The messages of a header's blocks, to which they add: each is an address and a length."""
    messages, blocks, seen = [], [first], set[int]()
    for block in blocks:
        if len(seen) >= _MAX_BLOCKS or block[0] in seen:
            raise Damaged(f"a header that continues without end, at {block[0]}")
        seen.add(block[0])
        for message in read(block):
            if message.kind == CONTINUATION:
                blocks.append(struct.unpack_from("<QQ", message.body))
            elif message.kind:
                messages.append(message)
    return tuple(messages)


def _messages(data: bytes, head: str, step: int) -> Iterator[Message]:
    at = 0
    while at + step <= len(data):
        kind, size, flags = struct.unpack_from(head, data, at)
        at += step
        if size > len(data) - at:
            raise Damaged(f"a message of {size} bytes in the last {len(data) - at} of a header's block")
        yield Message(kind, flags, data[at : at + size])
        at += size


def unique_name(name: str, others: Mapping[str, Link]) -> str:
    if name in others or name in ("", ".", "..") or "/" in name:
        raise Damaged(f"a link of the name {name[:200]!r}, {'twice' if name in others else 'which leads elsewhere'}")
    return name


def link_of(body: bytes) -> tuple[str, Link]:
    """IV.A.2.g."""
    version, flags = struct.unpack_from("<BB", body)
    if version != 1:
        raise NotSupported(f"link version {version}")
    at = 2
    kind = body[at] if flags & 8 else 0
    at += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 0x10)
    width = 1 << (flags & 3)
    length = int.from_bytes(body[at : at + width], "little")
    at += width
    if length > len(body) - at:
        raise Damaged(f"a link's name of {length} bytes in {len(body) - at}")
    name = body[at : at + length].decode()
    if kind:
        return name, Link(None, {1: "a soft link", 64: "an external link"}.get(kind, f"a link of kind {kind}"))
    return name, Link(*struct.unpack_from("<Q", body, at + length))


def check(data: bytes) -> None:
    """Raises `Damaged` where the last four bytes are not the checksum of those before them."""
    if struct.unpack_from("<I", data, len(data) - 4)[0] != lookup3(data[:-4]):
        raise Damaged("a structure that does not match its checksum")


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash of that name with an initial value of 0, as the format's newer structures are checked by: VIII.B."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask
    triples = max(0, (len(data) - 1) // 12)
    for x, y, z in struct.iter_unpack("<III", data[: 12 * triples]):
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        a = (a - c) & mask ^ ((c << 4 | c >> 28) & mask)
        c = (c + b) & mask
        b = (b - a) & mask ^ ((a << 6 | a >> 26) & mask)
        a = (a + c) & mask
        c = (c - b) & mask ^ ((b << 8 | b >> 24) & mask)
        b = (b + a) & mask
        a = (a - c) & mask ^ ((c << 16 | c >> 16) & mask)
        c = (c + b) & mask
        b = (b - a) & mask ^ ((a << 19 | a >> 13) & mask)
        a = (a + c) & mask
        c = (c - b) & mask ^ ((b << 4 | b >> 28) & mask)
        b = (b + a) & mask
    if not data:
        return c
    x, y, z = struct.unpack("<III", data[12 * triples :].ljust(12, b"\0"))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    for first, second, third in ((14, 11, 25), (16, 4, 14), (24, 0, 0)):
        c = ((c ^ b) - (b << first | b >> 32 - first)) & mask
        if not second:
            break
        a = ((a ^ c) - (c << second | c >> 32 - second)) & mask
        b = ((b ^ a) - (a << third | a >> 32 - third)) & mask
    return c
