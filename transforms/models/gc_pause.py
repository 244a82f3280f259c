"""Python's garbage collector while a model loads.

A process that has imported TensorFlow, Keras and Beam holds half a million objects that stay. Building a model's graph makes
enough new ones to set off a full collection, which looks at all of them: a third of a second in which the interpreter's lock
is held and no thread receives a byte. What stood there before is set aside meanwhile, and put back.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_set_aside = False


@contextmanager
def old_objects_set_aside() -> Iterator[None]:
    """Full collections look at what is made inside the block alone; blocks of several threads are one, until the last ends.

    Nothing is lost: garbage among the old is found afterwards. Where the process has frozen objects itself, or collects
    nothing, that is left as it is.
    """
    global _inside, _set_aside
    with _lock:
        _inside += 1
        if _inside == 1 and gc.isenabled() and not gc.get_freeze_count():
            gc.freeze()
            _set_aside = True
    try:
        yield
    finally:
        with _lock:
            _inside = max(0, _inside - 1)  # a child forked within the block counts none
            if not _inside and _set_aside:
                gc.unfreeze()
                _set_aside = False


def modules_are_loaded() -> None:
    """Modules are loaded; what there is now stays, and need not be looked through again."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _forked() -> None:
    """No block of the parent's threads ends in a forked child, where none of them goes on."""
    global _lock, _inside, _set_aside
    _lock, _inside = threading.Lock(), 0
    if _set_aside:
        gc.unfreeze()
        _set_aside = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
