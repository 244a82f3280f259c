"""A zip archive in an object store, read by ranges. Format: PKWARE APPNOTE.TXT 6.3.10.

`zipfile` parses the directory. This file checks what it leaves to its caller: where a member really is, that it is inside the
archive, and that its recorded sizes are true.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import pairwise

from ...errors import CorruptModel, NotAModel, UnsupportedModel
from ..first_bytes import FIRST_BYTES, other_file
from ..streaming.composed_crc import CheckedSpan
from ..streaming.ranges import RangeFile, Ranges
from .refusals import damaged

# Fetched at once when an archive is opened: the end, with the directory, and the start, where Keras puts config.json. Either
# is less than what one round trip costs.
_HEAD, _TAIL = 64 << 10, 64 << 10
_INFLATE_PIECE = 8 << 20
# The bytes before a member's data: its local header, and Keras' padding.
_HEADER = 1 << 10
# As Keras' own guard: deflate reaches 1032:1, weights 3:1.
_BOMB_RATIO, _BOMB_BYTES = 100, 256 << 20
_MAX_MEMBERS, _DIRECTORY_BYTES = 100_000, 16 << 20
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_SAVE_AGAIN = "Save the model again with model.save(…)."


class _Bounded(RangeFile):
    """`zipfile` reads the whole directory at once and makes an object of each entry, before it says how many."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _DIRECTORY_BYTES:
            raise ValueError(f"a directory of {size} bytes, more than {_DIRECTORY_BYTES}")
        return super().read(size)


class Archive:
    """`members` are the files of the archive by name. Raises `NotAModel` or `CorruptModel`."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges, self._uri = ranges, ranges.ref.uri
        size = ranges.ref.size
        ranges.fetch([(0, _HEAD), (max(0, size - _TAIL), _TAIL)])
        try:
            with zipfile.ZipFile(_Bounded(ranges, 0, size)) as archive:
                infos, self._directory = archive.infolist(), archive.start_dir
        # On hostile bytes, zipfile raises more than BadZipFile: struct.error, ValueError, UnicodeDecodeError, …
        except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, OSError) as error:
            if (other := other_file(self._uri, size, ranges.read(0, FIRST_BYTES))) is not None:
                raise other from error
            if ranges.read(0, 2) != b"PK":
                raise NotAModel(
                    f"{self._uri} is not a Keras archive",
                    expected="a zip file, as model.save('….keras') writes it",
                    found=f"{size} bytes that begin with {ranges.read(0, 8)!r}",
                    cure="Name the .keras file or the SavedModel folder.",
                ) from error
            what = "is a zip archive that is truncated or damaged"
            found = f"{size} bytes without one ({error})"
            raise self._corrupt(what, "a zip directory at its end", found) from error
        if len(infos) > _MAX_MEMBERS:
            raise self._corrupt("holds too many members", f"at most {_MAX_MEMBERS}", str(len(infos)))
        self.members: dict[str, zipfile.ZipInfo] = {}
        self._inflated = 0
        for info in infos:
            self._check(info)
            self.members[info.filename] = info
        for before, after in pairwise(sorted(infos, key=lambda info: info.header_offset)):
            if before.header_offset + _LOCAL_HEADER.size + before.compress_size > after.header_offset:
                raise self._corrupt(
                    f"holds members {before.filename!r} and {after.filename!r} in the same bytes",
                    "bytes of its own for each member",
                    f"one at byte {before.header_offset}, the other at {after.header_offset}",
                )

    def fetch_starts(self, lengths: Mapping[str, int]) -> None:
        """Fetches the first bytes, up to so many, of members that will be read; all in one round trip."""
        infos = [(self.members[name], length) for name, length in lengths.items() if name in self.members]
        self._ranges.fetch((info.header_offset, _HEADER + min(info.compress_size, n)) for info, n in infos)

    def locate(self, name: str) -> tuple[int, int] | None:
        """Offset and length in bytes of a stored member's data within the object; None for a deflated member."""
        info = self.members[name]
        if info.compress_type == zipfile.ZIP_DEFLATED:
            return None
        if info.compress_type != zipfile.ZIP_STORED:
            raise UnsupportedModel(
                f"Member {name!r} of {self._uri} is compressed in a way that headrace does not read",
                expected="stored or deflated",
                found=f"zip method {info.compress_type}",
                cure=_SAVE_AGAIN,
            )
        if info.compress_size != info.file_size:
            raise self._corrupt(
                f"contradicts itself about member {name!r}, which is stored",
                f"{info.file_size} bytes",
                f"{info.compress_size} bytes",
            )
        return self._data_offset(info), info.file_size

    def checksum(self, name: str) -> CheckedSpan:
        """That of a stored member's data, as the directory has it."""
        info = self.members[name]
        start = self._data_offset(info)
        return CheckedSpan(self._ranges.ref, start, start + info.file_size, info.CRC, "CRC-32")

    def read(self, name: str, limit: int) -> bytearray:
        """A whole member of at most `limit` bytes, checked against the archive's CRC-32."""
        info = self.members[name]
        if info.file_size > limit:
            raise self._corrupt(f"holds a member {name!r} that is too large", f"at most {limit} bytes", info.file_size)
        if info.file_size > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
            raise self._corrupt(
                f"holds a member {name!r} that expands beyond measure",
                f"at most {_BOMB_RATIO}:1",
                f"{info.file_size} bytes from {info.compress_size}",
            )
        located = self.locate(name)
        self._inflated += info.file_size if located is None else 0
        if self._inflated > max(_BOMB_BYTES, _BOMB_RATIO * self._ranges.ref.size):
            raise self._corrupt(
                "holds members that expand beyond measure",
                f"at most {_BOMB_RATIO}:1 in all",
                f"{self._inflated} bytes so far from an archive of {self._ranges.ref.size}",
            )
        data = bytearray()
        for piece in self._pieces(info) if located is None else self._stored(*located):
            data += piece
            if len(data) > info.file_size:
                break
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise self._corrupt(
                f"holds a damaged member {name!r}",
                f"{info.file_size} bytes with CRC-32 {info.CRC:08x}",
                f"{len(data)} bytes with {zlib.crc32(data):08x}",
            )
        return data

    def _stored(self, offset: int, length: int) -> Iterator[bytes]:
        for at in range(0, length, _INFLATE_PIECE):
            yield self._ranges.read(offset + at, min(_INFLATE_PIECE, length - at))

    def _pieces(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for packed in self._stored(self._data_offset(info), info.compress_size):
                while packed:
                    yield inflate.decompress(packed, _INFLATE_PIECE)
                    packed = inflate.unconsumed_tail
            yield inflate.flush()
        except zlib.error as error:
            raise self._corrupt(f"holds a damaged member {info.filename!r}", "a deflate stream", str(error)) from error

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        # The lengths of name and extra field in the local header may differ from the directory's: Keras pads there.
        header = self._ranges.read(info.header_offset, _LOCAL_HEADER.size)
        fields = _LOCAL_HEADER.unpack(header) if len(header) == _LOCAL_HEADER.size else None
        if fields is None or fields[0] != b"PK\x03\x04":
            raise self._corrupt(
                f"has no member {info.filename!r} where its directory puts it",
                f"a local header at byte {info.header_offset}",
                repr(header[:4]),
            )
        start = info.header_offset + _LOCAL_HEADER.size + fields[9] + fields[10]
        if start + info.compress_size > self._directory:
            raise self._corrupt(
                f"holds a member {info.filename!r} that reaches beyond it",
                f"its end at or before byte {self._directory}",
                f"byte {start + info.compress_size}",
            )
        return start

    def _check(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        if name in self.members:
            raise self._corrupt("is ambiguous", "each name once", f"two members named {name!r}")
        # orig_filename: zipfile cuts a name at its first NUL.
        if name.startswith("/") or "\\" in info.orig_filename or "\0" in info.orig_filename or ".." in name.split("/"):
            raise self._corrupt("holds a name that leaves it", "names inside the archive", repr(info.orig_filename))
        if info.flag_bits & 0x1:
            raise UnsupportedModel(
                f"Member {name!r} of {self._uri} is encrypted",
                expected="a plain zip archive",
                cure="Save the model again without a password.",
            )
        if not 0 <= info.header_offset < self._directory:
            raise self._corrupt(
                f"puts member {name!r} outside itself",
                f"an offset below {self._directory}",
                f"byte {info.header_offset}",
            )

    def _corrupt(self, what: str, expected: str, found: object) -> CorruptModel:
        return damaged(f"{self._uri} {what}", expected, str(found))
