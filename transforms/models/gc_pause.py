"""Python's garbage collector while a model loads.

A process that has imported TensorFlow, Keras and Beam holds half a million objects that stay. Building a model's graph makes
enough new ones to start a full collection, which visits all of them: for a third of a second it holds the interpreter's lock
and no thread receives a byte. Objects that existed before are set aside meanwhile, and put back.
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
_modules_frozen = False


@contextmanager
def old_objects_set_aside() -> Iterator[None]:
    """Full collections visit only what is made inside the block; blocks of several threads are one, until the last ends.

    Nothing is lost: garbage among the old objects is found afterwards. If the process has frozen objects itself, or has turned
    collection off, that stays as it is.
    """
    global _inside, _set_aside
    with _lock:
        _inside += 1
        # Counting takes as long as a collection of all that is frozen.
        if _inside == 1 and gc.isenabled() and not _modules_frozen and not gc.get_freeze_count():
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
    """Modules are loaded; objects that exist now stay, and full collections need not visit them again."""
    global _modules_frozen
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
        _modules_frozen = True


@contextmanager
def while_modules_load() -> Iterator[None]:
    """The same for modules that are imported within the block."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if _modules_frozen:
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
