"""Memory made ready before the bytes that it is for arrive.

New memory gets its pages one by one, each at the first byte written to it: while a body is received, that is a fault for every
4 KiB. To ask for all pages of a range at once costs less, and may be done while the first byte is still on its way.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable

# MADV_POPULATE_WRITE of Linux 5.14 (include/uapi/asm-generic/mman-common.h), which Python's mmap does not know. Older kernels
# refuse it, and nothing is lost: the pages come with the bytes.
_POPULATE_WRITE = 23
_WORTH_IT = 256 << 10
# Through ctypes, since mmap.madvise holds the GIL and takes mappings of its own only.
_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
if _madvise is not None:
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def prefault(buffers: Iterable[memoryview]) -> None:
    """Gives the whole pages of large, writable buffers their memory; their content stays as it is."""
    if _madvise is None:
        return
    for buffer in buffers:
        if buffer.nbytes < _WORTH_IT:
            continue
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (start + buffer.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise(first, stop - first, _POPULATE_WRITE)
