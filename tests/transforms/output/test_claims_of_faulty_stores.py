"""Stores whose listings lag, or that replace what they were asked to create only: a job fails with the reason, or is whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace.transforms.errors import StorageError
from headrace.transforms.storage import memory
from tests.support import claim_schedules
from tests.support.claim_schedules import command, lie_in, lie_of, mark_of, new_folder, put_inputs, standing_outputs
from tests.support.lagging_store import LaggingStore, ReplacingStore


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    kept = dict(memory.OBJECTS)
    memory.OBJECTS.clear()
    yield new_folder()
    claim_schedules.clear()
    memory.OBJECTS.update(kept)


def in_output(folder: str) -> dict[str, str]:
    return {uri: ref.version for uri, (ref, _) in memory.OBJECTS.items() if uri.startswith(f"{folder}/out/")}


@pytest.mark.parametrize("flags", [("overwrite", "other"), ("incremental",)])
def test_where_a_listing_lacks_the_claim_nothing_of_the_earlier_output_goes(
    folder: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark that an older run has prepared may be as invisible: what it would publish later cannot be told."""
    put_inputs(folder, "aa")
    command(folder, ())
    before = in_output(folder)
    monkeypatch.setattr(memory, "MemoryStore", LaggingStore)
    LaggingStore.hide(lambda uri: "/out/" in uri)
    put_inputs(folder, "ab")
    with pytest.raises(StorageError, match=r"does not list what it holds.*00000002.claim"):
        command(folder, flags)
    assert before.items() <= in_output(folder).items()
    assert lie_in(f"{folder}/out", ["aa"], crashed=True) == ""
    LaggingStore.hide(lambda uri: False)  # it has caught up
    assert lie_of(command(folder, flags)) == ""
    assert lie_in(f"{folder}/out", ["ab"], crashed=False) == ""


@pytest.mark.parametrize("late", ["/out/", "/out/in/", "/out/0-", "_manifest", ".parquet", "_SUCCESS"])
@pytest.mark.parametrize("flags", [(), ("overwrite", "other"), ("incremental",)])
def test_where_other_objects_are_listed_late_a_mark_says_nothing_that_is_not_so(
    folder: str, late: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that came are not listed, and those that went still are."""
    put_inputs(folder, "aa")
    monkeypatch.setattr(memory, "MemoryStore", LaggingStore)
    LaggingStore.hide(lambda uri: False)
    command(folder, ())
    LaggingStore.hide(lambda uri: late in uri and "/out/" in uri)
    seen = "aa" if not flags else "ab"
    put_inputs(folder, seen)
    try:
        assert lie_of(command(folder, flags)) == ""
    except StorageError:
        assert late == "/out/"
    LaggingStore.hide(lambda uri: False)
    assert lie_in(f"{folder}/out", ["aa", seen], crashed=True) == ""


def test_a_first_run_ends_well_where_its_own_files_are_not_listed_yet(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MemoryStore", LaggingStore)
    LaggingStore.hide(lambda uri: uri.endswith((".parquet", ".pq")) and "/out/" in uri)
    put_inputs(folder, "aa")
    assert lie_of(command(folder, ())) == ""
    LaggingStore.hide(lambda uri: False)
    assert lie_in(f"{folder}/out", ["aa"], crashed=False) == ""


@pytest.mark.parametrize("before", [False, True])
def test_a_store_that_replaces_what_it_was_to_create_is_refused_before_anything_else_is_written(
    folder: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_inputs(folder, "aa")
    if before:
        command(folder, ())
    there, mark = in_output(folder), mark_of(f"{folder}/out")
    monkeypatch.setattr(memory, "MemoryStore", ReplacingStore)
    with pytest.raises(StorageError, match=r"replaced an object.*a store that honours If-None-Match.*written twice"):
        command(folder, ("overwrite", "other"))
    written = in_output(folder).keys() - there.keys()
    assert {uri.rpartition("/")[2] for uri in written} == {f"{1 + before:08d}.claim"}
    assert mark_of(f"{folder}/out") == mark
    assert len(standing_outputs(f"{folder}/out")) == 2 * before
