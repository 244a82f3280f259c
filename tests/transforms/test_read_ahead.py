import threading
from typing import Any

import pytest

from headrace.transforms.read_ahead import read_ahead


def test_items_come_in_order_and_the_source_is_closed() -> None:
    closed = threading.Event()

    def items() -> Any:
        try:
            yield from range(100)
        finally:
            closed.set()

    with read_ahead(items(), 2) as ahead:
        assert list(ahead) == list(range(100))
    assert closed.is_set()


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Any:
        yield 1
        raise OSError("the disk is gone")

    seen = []
    with read_ahead(items(), 2) as ahead:
        seen.append(next(ahead))
        with pytest.raises(OSError, match="disk is gone"):
            next(ahead)
    assert seen == [1]


def test_it_works_ahead_by_its_depth_and_no_further() -> None:
    taken = []

    def items() -> Any:
        for i in range(100):
            taken.append(i)
            yield i

    with read_ahead(items(), 3) as ahead:
        assert next(ahead) == 0
        for _ in range(200):
            if len(taken) >= 5:
                break
            threading.Event().wait(0.005)
        threading.Event().wait(0.1)
        # one consumed, three waiting, one in the thread's hand
        assert len(taken) == 5


def test_leaving_early_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def items() -> Any:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    with read_ahead(items(), 2) as ahead:
        next(ahead)
    assert closed.is_set()
    assert threading.active_count() == before
