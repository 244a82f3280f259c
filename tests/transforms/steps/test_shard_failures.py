"""How long a job goes on after a shard failed, and which errors are of a shard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.transforms.errors import (
    ClaimLost,
    ColumnError,
    CorruptModel,
    DataError,
    HeadraceError,
    JobError,
    NotParquet,
    NullFeature,
    StoreUnavailable,
    TooManyFailedShards,
)
from headrace.transforms.jobs.job import Job, OnError
from headrace.transforms.output.claims import claim_uri
from headrace.transforms.predicting.row_failures import blames_rows
from headrace.transforms.shards.shard import FailedShard
from headrace.transforms.steps.finish_failed import fail_for_shards
from headrace.transforms.steps.shard_failures import GO_ON_SECONDS, MOST_FAILED, ShardFailures
from tests.support.jobs import put, put_inputs
from tests.transforms.beam.test_predict import prepared_job, shard_of


@pytest.fixture
def job(tmp_path: Path) -> Job:
    put_inputs(f"{tmp_path}/in", [30])
    return prepared_job(tmp_path)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def caused(error: HeadraceError, *causes: BaseException) -> HeadraceError:
    chain: BaseException = error
    for cause in causes:
        chain.__cause__ = cause
        chain = cause
    return error


@pytest.mark.parametrize(("worked", "goes_on"), [(0.0, GO_ON_SECONDS), (300.0, 300.0)])
def test_a_job_that_a_row_fails_goes_on_for_as_long_again_and_no_longer(
    job: Job, worked: float, goes_on: float
) -> None:
    clock = Clock()
    failures = ShardFailures(clock)
    failures.check(job)
    clock.now = worked
    first = NullFeature("a null in row 3")
    failed = failures.add(job, shard_of(job), first)
    assert (failed.shard, str(failed.error), type(failed.error)) == (shard_of(job), str(first), NullFeature)
    assert failed.error.__traceback__ is None
    clock.now = worked + goes_on
    failures.check(job)
    failures.add(job, shard_of(job), DataError("another"))
    clock.now += 1
    with pytest.raises(NullFeature, match="row 3"):
        failures.check(job)


def test_a_job_that_a_row_fails_ends_with_the_tenth_failed_shard(job: Job) -> None:
    failures = ShardFailures(Clock())
    for i in range(MOST_FAILED - 1):
        failures.add(job, shard_of(job), DataError(f"row {i}"))
    with pytest.raises(DataError, match="row 0"):
        failures.add(job, shard_of(job), DataError("one more"))


def test_a_job_that_skips_shards_goes_on_for_any_time_and_up_to_its_bound(job: Job) -> None:
    job = with_policy(job, OnError(skip_shards=True, most_shards=12))
    clock = Clock()
    failures = ShardFailures(clock)
    for _ in range(12):
        failures.add(job, shard_of(job), DataError("a row"))
        clock.now += 10 * GO_ON_SECONDS
        failures.check(job)
    with pytest.raises(TooManyFailedShards, match=r"12 at most.*13 in one worker process; one of them: the last"):
        failures.add(job, shard_of(job), DataError("the last"))


def with_policy(job: Job, policy: OnError) -> Job:
    return replace(job, on_error=policy)


def tensorflow_says(kind: str) -> BaseException:
    import tensorflow as tf

    error: BaseException = getattr(tf.errors, kind)(None, None, "said by TensorFlow")
    return error


@pytest.mark.parametrize(
    "error",
    [
        NullFeature("a null"),
        NotParquet("a damaged page"),
        caused(NotParquet("a damaged page"), OSError("CRC checksum verification failed")),
        caused(ColumnError("a value"), pa.ArrowInvalid("would lose data")),
        caused(DataError("the model"), tensorflow_says("InvalidArgumentError")),
        caused(DataError("row 3"), DataError("rows 0 to 8"), tensorflow_says("ResourceExhaustedError")),
        caused(DataError("a function"), KeyError("x")),
        caused(DataError("TFLite's interpreter"), RuntimeError("index out of bounds")),
    ],
    ids=repr,
)
def test_errors_of_a_shard(error: HeadraceError) -> None:
    assert blames_rows(error)


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("no answer"),
        ClaimLost("another run"),
        CorruptModel("a model"),
        JobError("memory"),
        caused(DataError("the model"), tensorflow_says("InternalError")),
        caused(DataError("the model"), tensorflow_says("UnavailableError")),
        caused(DataError("a function"), ConnectionRefusedError("a service")),
        caused(DataError("a function"), ValueError("no answer"), TimeoutError("a service")),
        caused(DataError("a function"), ModuleNotFoundError("no module")),
        caused(DataError("a function"), SystemExit(1)),
        caused(NotParquet("a page"), StoreUnavailable("no answer")),
        caused(NotParquet("a page"), OSError(5, "Input/output error")),
        ValueError("a mistake of ours"),
        MemoryError(),
    ],
    ids=repr,
)
def test_errors_that_are_not_of_a_shard(job: Job, error: Any) -> None:
    assert not blames_rows(error)
    with pytest.raises(type(error)):
        ShardFailures().add(with_policy(job, OnError(skip_shards=True, most_shards=9)), shard_of(job), error)


@pytest.mark.parametrize("policy", [OnError(), OnError(skip_shards=True, most_shards=9)])
def test_a_run_that_lost_its_claim_says_that_and_lists_nothing(job: Job, policy: OnError) -> None:
    put(
        claim_uri(job.output, job.claim + 1),
        b'{"record": {"fingerprint": "f"}, "clears": false, "overwrites": false, "by": "the winner"}\n',
    )
    failed = FailedShard(shard_of(job), DataError("row 3"))
    with pytest.raises(ClaimLost, match="the winner"):
        fail_for_shards(with_policy(job, policy), [], [failed], [])
    assert not list(Path(job.output).glob("_manifest/*"))
