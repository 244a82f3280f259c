"""libjpeg's own lines kept off standard error: it writes "Corrupt JPEG data: …" there for each damaged image.

TensorFlow decodes with libjpeg, whose default message handler calls `fprintf(stderr, …)` (jerror.c), past every log level. What
is wrong with an image is in the row's error. C's `stderr` is a variable: while images are decoded it names /dev/null. File
descriptor 2 stays as it is, and so do Python's own standard error and faulthandler.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_decoding = 0
_real: int | None = None
_null: int | None = None


@contextmanager
def quiet_libjpeg() -> Iterator[None]:
    """For the time of the block, from any number of threads. Where C's library has no such variable, nothing changes."""
    global _decoding, _real, _null
    if not sys.platform.startswith("linux"):
        yield
        return
    library = ctypes.CDLL(None)
    stderr = ctypes.c_void_p.in_dll(library, "stderr")
    with _lock:
        _decoding += 1
        if _decoding == 1:
            if _null is None:
                library.fopen.restype = ctypes.c_void_p
                _null = library.fopen(b"/dev/null", b"we")
            if _null is not None:
                _real, stderr.value = stderr.value, _null
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if not _decoding and _real is not None:
                stderr.value, _real = _real, None
