"""Parsers that do what the fuzz harness is there to find."""

from __future__ import annotations

import os

from tests.support.fuzzing import Target


def _seeds() -> list[bytes]:
    return [b"sound", b"hang", b"abort", b"leak", b"recursion", b"key", b"exit", b"sound"]


def _sound(data: bytes) -> None:
    from headrace.transforms.errors import CorruptModel

    if data != b"sound":
        raise CorruptModel("refused")


def _faulty(data: bytes) -> None:
    if data == b"hang":
        # In C code, which looks at no exception raised by a signal.
        sum(iter(int, 1))
    elif data == b"abort":
        os.abort()
    elif data == b"leak":
        bytes(2 << 30)
    elif data == b"recursion":
        _faulty(data)
    elif data == b"key":
        dict[bytes, int]()[data]
    elif data == b"exit":
        os._exit(0)


TARGETS = [Target("sound", _seeds, _sound), Target("faulty", _seeds, _faulty)]
