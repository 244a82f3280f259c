"""A local file for pyarrow, read without the GIL; separate from `local`, because it loads pyarrow."""

from __future__ import annotations

import os
from collections.abc import Callable

import pyarrow as pa


class PinnedFile(pa.OSFile):
    """A local file that is compared with its pinned version once more when it is closed."""

    _fd = -1

    def pin(self, fd: int, check: Callable[[], None]) -> None:
        """Takes `fd` over, which keeps the file's inode from being given to another; `check` raises if it changed."""
        self._fd, self._check = fd, check

    def close(self) -> None:
        super().close()
        if self._fd >= 0:
            try:
                self._check()
            finally:
                self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self._release()
