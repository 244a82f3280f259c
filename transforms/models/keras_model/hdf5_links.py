"""The links of an HDF5 group, in either layout: a symbol table, or link messages and a fractal heap of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import partial

from .hdf5_dense import dense_objects
from .hdf5_format import (
    GROUP_INFO,
    LINK,
    LINK_INFO,
    SYMBOL_TABLE,
    UNDEFINED,
    Link,
    NotSupported,
    Structures,
    link_of,
    unique_name,
)


def links(structures: Structures, address: int) -> Mapping[str, Link] | None:
    """Links by name; None where the object is not a group."""
    return structures.once("links", address, partial(_read_links, structures))


def _read_links(structures: Structures, address: int) -> Mapping[str, Link] | None:
    messages = structures.header(address)
    first = {message.kind: message.body for message in reversed(messages)}
    if SYMBOL_TABLE in first:
        return structures.table_links(*struct.unpack_from("<QQ", first[SYMBOL_TABLE]))
    if LINK_INFO not in first:
        return {} if GROUP_INFO in first else None
    version, flags = struct.unpack_from("<BB", first[LINK_INFO])
    heap, tree = struct.unpack_from("<QQ", first[LINK_INFO], 10 if flags & 1 else 2)
    if version != 0:
        raise NotSupported(f"link info version {version}")
    stored: Iterable[bytes] = (message.body for message in messages if message.kind == LINK)
    if heap != UNDEFINED:
        stored = dense_objects(structures, heap, tree, 5)
    found: dict[str, Link] = {}
    for body in stored:
        name, link = link_of(body)
        found[unique_name(name, found)] = link
    return dict(sorted(found.items()))
