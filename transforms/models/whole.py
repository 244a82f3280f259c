"""Objects that are read whole."""

from __future__ import annotations

import logging
from functools import cache

from transforms.errors import CorruptModel
from transforms.storage import ObjectRef, Store

_log = logging.getLogger(__name__)


@cache
def say_unchecked(name: str) -> None:
    _log.info("%s: its store knows no checksum of it: TLS and length alone", name)


def read_whole(store: Store, ref: ObjectRef) -> bytes:
    """The object, held against its CRC-32C where the store knows that. Raises `CorruptModel`."""
    import crc32c

    data = store.read(ref)
    found = None if ref.crc32c is None else crc32c.crc32c(data)
    if found != ref.crc32c:
        raise CorruptModel(
            f"{ref.name} arrived damaged",
            expected=f"CRC-32C {ref.crc32c:08x} of {ref.size} bytes",
            found=f"{found:08x}",
            cure="Run again; if that does not help, copy the model again from where it was exported.",
        )
    return data
