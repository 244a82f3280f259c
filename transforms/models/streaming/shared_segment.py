"""One copy of a model's weights for many processes: a sealed memfd (memfd_create(2)), and the place of each tensor in it.

A memfd has no name in any file system, the size of /dev/shm does not bound it, and the kernel frees it with its last user. Once
it is sealed against writing, no process can change it; a process may write to its own private mapping, page by page.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .dlpack import ALIGNMENT
from .tensor_stream import TensorSlot

# A large tensor that its process writes must not copy pages of its neighbours; for a small one a page is too dear.
_LARGE, _PAGE = 1 << 20, 4096


class Unshared(Exception):
    """Why the weights of this process are its own; never leaves the package."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`offsets` of the slots in their order, in a segment of `nbytes`; equal `digest`s mean equal bytes everywhere."""

    offsets: tuple[int, ...]
    nbytes: int
    digest: bytes

    @property
    def name(self) -> bytes:
        """The abstract socket address (unix(7)) under which processes of one user meet over this segment."""
        return f"\0headrace-{os.geteuid()}-{self.digest.hex()}".encode()


def lay_out(slots: Sequence[TensorSlot], identity: str) -> Layout:
    """Every process computes it from its own graph, and does not trust a description from another.

    `identity` distinguishes models; so do the slots' names, types, shapes, sources and checksums.
    """
    offsets, rows, end = [0] * len(slots), [], 0
    for i in sorted(range(len(slots)), key=lambda i: slots[i].name):
        slot = slots[i]
        end += -end % (_PAGE if slot.nbytes >= _LARGE else ALIGNMENT)
        offsets[i] = end
        end += slot.nbytes
        source = [slot.source.uri, slot.offset, slot.nbytes, slot.masked_crc32c]
        rows.append([slot.name, slot.dtype, list(slot.shape), *source, offsets[i]])
    end += -end % _PAGE
    digest = hashlib.sha256(json.dumps(["headrace segment 1", identity, end, rows]).encode()).digest()
    return Layout(tuple(offsets), end, digest)


def create(nbytes: int) -> int:
    """A new segment's descriptor. Raises `Unshared`, saying why, where the system gives none."""
    if not hasattr(os, "memfd_create"):
        raise Unshared("this system has no memfd")
    try:
        descriptor = os.memfd_create("headrace-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, nbytes)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise Unshared(f"no memfd of {nbytes} bytes: {error}") from error
    return descriptor


def map_shared(descriptor: int, nbytes: int) -> mmap.mmap:
    """Writes here go to the segment. A child process does not inherit it, which would keep it from being sealed."""
    mapping = mmap.mmap(descriptor, nbytes)
    mapping.madvise(mmap.MADV_DONTFORK)
    return mapping


def map_private(descriptor: int, nbytes: int) -> mmap.mmap:
    """Sees the segment's bytes; a page that is written becomes this process's own.

    Writable, since DLPack cannot say that memory is not. Nothing is reserved for the pages, as hardly one is ever written.
    """
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
    flags = mmap.MAP_PRIVATE | no_reserve
    return mmap.mmap(descriptor, nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def seal(descriptor: int) -> None:
    """Nobody can write it or change its size any more. Raises `OSError` while a shared mapping of it exists."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _seals())


def check_sealed(descriptor: int, nbytes: int) -> None:
    """Raises `Unshared` unless it is a segment of `nbytes` that no process can write, shrink or grow.

    A segment that could shrink would kill its readers (SIGBUS); one that could be written would change under them.
    """
    try:
        # In this order: the size cannot change after sealing.
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise Unshared(f"what was handed over is no memfd: {error}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or seals & _seals() != _seals():
        raise Unshared(f"what was handed over is not sealed against change (seals {seals:#x})")
    if status.st_size != nbytes:
        raise Unshared(f"what was handed over holds {status.st_size} bytes, and the weights {nbytes}")


def _seals() -> Any:
    return fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
