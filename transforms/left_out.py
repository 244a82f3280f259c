"""Parts of other libraries that an import may do without.

TensorFlow and Beam import much only in case a program uses it, and go on where it is not installed. While they are imported, it
looks so here; afterwards, everything can be imported.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def leave_out(*modules: str) -> None:
    """This thread cannot import these modules, until `put_back`; one that is imported already stays."""
    _until_put_back.append(_Finder(modules))
    sys.meta_path.insert(0, _until_put_back[-1])


def is_left_out(module: str) -> bool:
    """By `leave_out`, until `put_back`."""
    return any(module in finder.modules for finder in _until_put_back)


def put_back() -> None:
    while _until_put_back:
        sys.meta_path.remove(_until_put_back.pop())


@contextmanager
def left_out(*modules: str) -> Iterator[None]:
    """As `leave_out`, within the block."""
    finder = _Finder(modules)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    def __init__(self, modules: Sequence[str]) -> None:
        self.modules, self._thread = frozenset(modules), threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.modules or threading.get_ident() != self._thread:
            return None
        # Who only asks where it is gets the answer: TensorFlow makes `tensorflow.keras` from it.
        if spec := PathFinder.find_spec(name, path, target):
            spec.loader = _NotNow()
        return spec


class _NotNow(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise ModuleNotFoundError(f"{spec.name} is left out while others are imported", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        raise AssertionError(f"{module} was never created")


_until_put_back: list[_Finder] = []
