"""A terminal that a program runs on, and what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Callable
from typing import Any, Self

import pyte


class Terminal:
    """A context. `path` is the terminal's device, for a program to open; `screen` is what has been drawn so far."""

    def __init__(self, columns: int = 80, lines: int = 40) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.path = os.ttyname(self._theirs)
        self.settings = termios.tcgetattr(self._theirs)
        self.screen = pyte.Screen(columns, lines)
        self.screen.set_mode(pyte.modes.LNM)
        self.written = b""
        self._stream, self._lock = pyte.ByteStream(self.screen), threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        # The last who has it open: the reader ends.
        os.close(self._theirs)
        self._reader.join(10)
        os.close(self._ours)

    def text(self) -> str:
        with self._lock:
            return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def look(self, at: Callable[[pyte.Screen], Any]) -> Any:
        """What `at` finds on the screen, which nothing is drawn on meanwhile."""
        with self._lock:
            return at(self.screen)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 1 << 16)
            except OSError:
                return
            with self._lock:
                self.written += data
                self._stream.feed(data)

    def is_sane(self) -> bool:
        """Whether the cursor shows and the line discipline is as it was before."""
        return not self.look(lambda screen: screen.cursor.hidden) and termios.tcgetattr(self._theirs) == self.settings
