"""TensorFlow's C++ writes to standard error during its import, before it applies any log level."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .log import log_raw


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what is written to file descriptor 2 in the block; an exception brings it out again."""
    sys.stderr.flush()
    kept, real = os.memfd_create("stderr"), os.dup(2)
    os.dup2(kept, 2)
    try:
        yield
    except BaseException:
        os.dup2(real, 2)
        os.lseek(kept, 0, os.SEEK_SET)
        with open(kept, "rb", closefd=False) as held:
            log_raw(held.read())
        raise
    finally:
        os.dup2(real, 2)
        os.close(real)
        os.close(kept)
