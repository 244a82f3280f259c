"""The attributes of HDF5 objects that hold names and configurations: strings in place, or references to the global heap."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping

from .hdf5_dense import dense_objects
from .hdf5_format import ATTRIBUTE, ATTRIBUTE_INFO, UNDEFINED, Damaged, NotSupported, Structures
from .hdf5_types import Attribute, attribute_name, attribute_of, unshared
from .refusals import damaged

# Keras splits a list of names that does not fit an object header, which holds 64 KiB: 4,096 references to strings.
_MAX_TEXTS, _TEXT_BYTES = 65_536, 1 << 20
# For the texts behind all references of a file; they may lead to one text over and over.
_ALL_TEXT_BYTES = 64 << 20
_SHORT = 64


class Texts:
    def __init__(self, structures: Structures) -> None:
        self._structures, self._left = structures, _ALL_TEXT_BYTES
        self._read: dict[tuple[int, str], tuple[str, ...]] = {}

    def read(self, address: int, wanted: re.Pattern[str], where: str) -> Mapping[str, tuple[str, ...]]:
        """The attributes of an object whose names are wanted; a scalar is a tuple of one. `where` names it in errors.

        Raises `CorruptModel`, and what `Structures` does.
        """
        found: dict[str, tuple[str, ...]] = {}
        for name, body in self._bodies(address):
            if wanted.fullmatch(name):
                if (address, name) not in self._read:
                    self._read[address, name] = self._list(attribute_of(body), f"{name!r} {where}")
                found[name] = self._read[address, name]
        return found

    def short(self, address: int, wanted: str) -> str:
        """A short scalar string, or nothing: a hostile one may declare any size."""
        for name, body in self._bodies(address):
            if name == wanted:
                attribute = attribute_of(body)
                if attribute.shape == () and len(attribute.data) <= _SHORT:
                    if attribute.type.kind == "text":
                        return _text(attribute.data)
                    if attribute.type.kind == "reference" and _lengths(attribute)[0] <= _SHORT:
                        return self._referred(attribute)[0]
        return ""

    def _bodies(self, address: int) -> Iterator[tuple[str, bytes]]:
        for message in self._structures.header(address):  # which pays for another look
            if message.kind == ATTRIBUTE:
                yield attribute_name(body := unshared(message)), body
            elif message.kind == ATTRIBUTE_INFO:
                version, flags = struct.unpack_from("<BB", message.body)
                heap, tree = struct.unpack_from("<QQ", message.body, 4 if flags & 1 else 2)
                if version != 0:
                    raise NotSupported(f"attribute info version {version}")
                for body in dense_objects(self._structures, heap, tree, 8) if heap != UNDEFINED else ():
                    yield attribute_name(body), body

    def _list(self, attribute: Attribute, what: str) -> tuple[str, ...]:
        kind, shape = attribute.type, attribute.shape
        # numpy makes floats of an empty list.
        empty = shape is not None and not math.prod(shape) and kind.kind == "number"
        if shape is None or len(shape) > 1 or (kind.kind not in ("text", "reference") and not empty):
            raise damaged(f"There is no text in {what}", "strings", f"{kind.name} {shape}")
        count = math.prod(shape)
        if count > _MAX_TEXTS or len(attribute.data) > _TEXT_BYTES:
            raise damaged(
                f"There is no list of names in {what}",
                f"at most {_MAX_TEXTS} strings in {_TEXT_BYTES} bytes",
                f"{count} in {len(attribute.data)} bytes",
            )
        if not count:
            return ()
        if kind.kind == "text":
            return tuple(_text(attribute.data[i * kind.size : (i + 1) * kind.size]) for i in range(count))
        self._left -= (nbytes := sum(_lengths(attribute)))
        if self._left < 0:
            raise damaged(
                f"There is too much text in {what}",
                f"at most {_ALL_TEXT_BYTES} bytes",
                f"{count} strings of {nbytes} bytes in all",
            )
        return self._referred(attribute)

    def _referred(self, attribute: Attribute) -> tuple[str, ...]:
        """III.E: each reference is a length, the address of a collection, and the number of an object in it."""
        found = []
        for length, address, number in struct.iter_unpack("<IQI", attribute.data):
            data = self._structures.texts(address).get(number, b"")[:length] if length else b""
            if len(data) < length:
                raise Damaged(
                    f"a text of {length} bytes, of which object {number} of the heap at {address} has {len(data)}"
                )
            found.append(_text(data))
        return tuple(found)


def _lengths(attribute: Attribute) -> list[int]:
    return [length for (length,) in struct.iter_unpack("<I12x", attribute.data)]


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode()
