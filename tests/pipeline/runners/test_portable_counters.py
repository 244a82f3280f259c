"""Counters of a job that another process runs: asked anew each time, and never more than the runner knows."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline.cli import main
from headrace.pipeline.runners import launch
from headrace.pipeline.runners.launch import describe_counts
from tests.support.jobs import model_folder, put_inputs

COUNTS = (30, 20, 40)


def slowly(batch: Any) -> Any:
    if batch.num_rows:
        time.sleep(0.3)
    return batch


def test_a_job_that_outlives_many_polls_tells_its_rows_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beam's job service in Python has no counters before the end, and its client kept the first answer: none."""
    polled: list[Counter[str]] = []
    counters = launch.counters

    def kept(result: Any) -> Counter[str]:
        polled.append(counters(result))
        return polled[-1]

    monkeypatch.setattr(launch, "REMOTE_LINE_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(launch, "counters", kept)
    put_inputs(f"{tmp_path}/in", COUNTS)
    command = [
        f"--model={model_folder()}/saved_model",
        f"--input={tmp_path}/in/*",
        f"--output={tmp_path}/out",
        "--json",
    ]
    command += ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK", "--shard_bytes=1"]
    assert main([*command, "--preprocess=tests.pipeline.runners.test_portable_counters:slowly"]) == 0
    told = capfd.readouterr()
    summary = json.loads(told.out)
    assert (summary["rows"], summary["rows_computed"], summary["rows_found_done"]) == (90, 90, 0)
    assert len(polled) > 2
    assert not polled[0]
    assert "9 shards, 90 rows predicted" in told.err


@pytest.mark.parametrize(
    ("counted", "before", "told"),
    [
        ({}, 0, "no shard is done yet"),
        ({"shards": 2, "rows": 50}, 0, "2 shards, 50 rows predicted"),
        ({"shards": 2, "rows": 50, "shards_found_done": 3}, 3, "2 shards, 50 rows predicted, 3 shards found done"),
        (
            {"shards": 1, "rows": 9, "shards_found_done": 5},
            3,
            "1 shard, 9 rows predicted, 3 shards found done, 2 shards committed by an earlier attempt",
        ),
        ({"shards_found_done": 2}, 0, "0 shards, 0 rows predicted, 2 shards committed by an earlier attempt"),
    ],
)
def test_what_a_repeated_attempt_finds_is_not_told_as_found_before(counted: Any, before: int, told: str) -> None:
    assert describe_counts(Counter(counted), before) == told


def test_counters_that_do_not_account_for_all_rows_claim_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a runner that drops those of an attempt that it repeats."""
    counters = launch.counters

    def lossy(result: Any) -> Counter[str]:
        return counters(result) - Counter({"rows": 40})

    monkeypatch.setattr(launch, "counters", lossy)
    put_inputs(f"{tmp_path}/in", COUNTS)
    command = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*", f"--output={tmp_path}/out"]
    assert main(command) == 0
    out = capfd.readouterr().out
    assert "90 rows" in out
    assert "how many of the rows were computed now is not known" in out
    assert not re.search(r"\b0 rows computed", out)
