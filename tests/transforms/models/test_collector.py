from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.transforms.models.gc_pause import old_objects_set_aside, while_modules_load
from headrace.transforms.models.load import load_model
from tests.support import model_zoo


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    yield
    gc.unfreeze()
    if frozen:
        gc.freeze()


class Ring:
    def __init__(self) -> None:
        self.ring = self


def test_a_load_sets_aside_what_was_there_and_puts_it_back(tmp_path: Path) -> None:
    model_zoo.keras_export(tmp_path / "model")
    during: list[int] = []
    load_model(str(tmp_path / "model"), progress=lambda *_: during.append(gc.get_freeze_count()))
    assert min(during) > 100_000
    assert gc.get_freeze_count() == 0


def test_the_last_of_several_threads_puts_it_back_whatever_ends_the_others() -> None:
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with old_objects_set_aside():
            entered.set()
            leave.wait()

    @old_objects_set_aside()
    def fail() -> None:
        thread.start()
        entered.wait()
        raise KeyError

    thread = threading.Thread(target=stay)
    with pytest.raises(KeyError):
        fail()
    assert gc.get_freeze_count() > 0
    leave.set()
    thread.join()
    assert gc.get_freeze_count() == 0


def test_garbage_is_found_within_and_old_garbage_afterwards() -> None:
    old = weakref.ref(Ring())
    with old_objects_set_aside():
        new = weakref.ref(Ring())
        gc.collect()
        assert new() is None
        assert old() is not None
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("own", ["frozen", "disabled"])
def test_what_the_process_has_set_itself_is_left_alone(own: str) -> None:
    try:
        gc.freeze() if own == "frozen" else gc.disable()
        before = gc.get_freeze_count()
        with old_objects_set_aside():
            Ring()
        # Objects that die in between leave it.
        assert (gc.get_freeze_count() > 0) == (before > 0) == (own == "frozen")
        assert gc.isenabled() == (own == "frozen")
    finally:
        gc.enable()


def test_a_child_forked_meanwhile_collects_as_ever() -> None:
    with old_objects_set_aside():
        child = os.fork()
        if not child:
            os._exit(0 if gc.get_freeze_count() == 0 else 1)
        assert gc.get_freeze_count()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert gc.get_freeze_count() == 0


def test_modules_load_without_collections() -> None:
    def fail() -> None:
        with while_modules_load():
            seen.append(gc.isenabled())
            raise ImportError

    seen: list[bool] = []
    with pytest.raises(ImportError):
        fail()
    assert (seen, gc.isenabled()) == ([False], True)
    gc.disable()
    try:
        with while_modules_load():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
