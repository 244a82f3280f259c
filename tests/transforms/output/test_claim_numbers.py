"""Claims by themselves: which is the newest, what a new one may keep, and whose a mark is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headrace.transforms.output.claims import Adoptable, create_claim, mark_claim, newest_claim, note_started
from headrace.transforms.shards.shard import OutputName
from headrace.transforms.storage import Store
from headrace.transforms.storage.memory import MemoryStore

OUTPUT = "memory://claims/out"
RECORD = {"fingerprint": "0123abcd" * 8}
A, B = 7, 1 << 60


def claim(store: Store, number: int, *sources: int, overwrites: bool = False) -> None:
    some = np.array(sorted(sources), np.uint64)
    create_claim(store, OUTPUT, number, RECORD, some, clears=overwrites, overwrites=overwrites)


def made(source: int) -> OutputName:
    return OutputName("part-00000", 0, 9, "0123abcd", source)


@pytest.fixture
def store() -> Store:
    store = MemoryStore()
    for ref in list(store.list(f"{OUTPUT}/")):
        store.delete(ref)
    return store


@pytest.mark.parametrize("count", range(5))
def test_the_newest_claim_is_found_from_any_that_is_known(count: int, store: Store) -> None:
    for number in range(1, count + 1):
        claim(store, number, A)
    assert [newest_claim(store, OUTPUT, known) for known in range(count + 1)] == [count] * (count + 1)


def test_a_new_claim_keeps_what_each_claim_before_it_owned_since_the_last_that_had_started(store: Store) -> None:
    claim(store, 1, B)
    claim(store, 2, A, B)
    claim(store, 3, A)
    kept = {source for source in (A, B, 9) if made(source) in Adoptable(store, OUTPUT, 4)}
    assert kept == set()
    note_started(store, OUTPUT, 2)
    kept = {source for source in (A, B, 9) if made(source) in Adoptable(store, OUTPUT, 4)}
    assert kept == {A}
    note_started(store, OUTPUT, 3)
    note_started(store, OUTPUT, 3)  # by an equal run
    assert made(A) in Adoptable(store, OUTPUT, 4)


def test_what_an_overwriting_run_may_still_remove_is_not_kept(store: Store) -> None:
    claim(store, 1, A)
    claim(store, 2, A, overwrites=True)
    assert made(A) not in Adoptable(store, OUTPUT, 3)
    note_started(store, OUTPUT, 2)
    assert made(A) in Adoptable(store, OUTPUT, 3)


@pytest.mark.parametrize("mark", [{}, {"claim": None}, {"claim": "1"}, [], 1])
def test_a_mark_of_somebody_else_is_of_no_claim(mark: object) -> None:
    assert mark_claim(json.dumps(mark).encode()) == 0
    assert mark_claim(b"no JSON") == 0
    assert mark_claim(b'{"claim": 3}') == 3
