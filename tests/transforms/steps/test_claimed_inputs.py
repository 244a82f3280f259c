"""A job plans the files that its claim names: what appears, changes or vanishes since is left for later, or an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.transforms.errors import ObjectChanged
from headrace.transforms.jobs.input_files import survey_inputs
from headrace.transforms.jobs.job import Job
from headrace.transforms.output.claims import create_claim
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from headrace.transforms.storage import StoreOptions, open_store
from tests.support.jobs import put_table, rows
from tests.support.plans import plain_job


@pytest.fixture(params=[False, True], ids=["each", "joined"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    """Of three files, with a claim that names them."""
    for i in range(3):
        put_table(f"memory://{tmp_path.name}/in/{i}/a.parquet", rows(10 * i, 3))
    made = plain_job(f"memory://{tmp_path.name}/in/**", output=f"memory://{tmp_path.name}/out", compact=request.param)
    inputs = survey_inputs(made.inputs, StoreOptions(), lambda _: None, made.joined_bytes)
    store = open_store(made.output)
    create_claim(store, made.output, 1, made.record(), inputs.sources, clears=False, overwrites=False)
    return replace(made, claim=1)


def test_a_file_that_appeared_since_is_left_for_the_next_run(job: Job) -> None:
    before = list(plan_shards(job, input_files(job)))
    put_table(f"{job.folder}9/a.parquet", rows(100, 3))
    assert list(plan_shards(job, input_files(job))) == before
    assert len(before) == 3
    unclaimed = replace(job, claim=0)
    assert len(list(plan_shards(unclaimed, input_files(unclaimed)))) == 4


@pytest.mark.parametrize("again", [True, False], ids=["rewritten", "vanished"])
def test_one_that_was_rewritten_or_vanished_is_named_with_the_fix(job: Job, again: bool) -> None:
    uri = f"{job.folder}1/a.parquet"
    store = open_store(uri)
    store.delete(store.stat(uri))
    if again:
        put_table(uri, rows(50, 3))
    with pytest.raises(ObjectChanged) as raised:
        list(plan_shards(job, input_files(job)))
    assert "Expected: the 3 that were listed then" in str(raised.value)
    assert "1 of them missing" in str(raised.value)
    assert (uri in str(raised.value)) == again
    assert "--incremental" in str(raised.value)
