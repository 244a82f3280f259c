"""What a shard's thread logs says which shard it is about, and what is given back is named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline.cli import main
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.runners.portable import timeout_note
from headrace.pipeline.terminal.signals import _given_back_text
from headrace.transforms.read_ahead import read_ahead
from headrace.transforms.steps.shard_log import mark_log_lines, running, working_on
from tests.support.jobs import model_folder, put_inputs

_log = logging.getLogger("of.a.user")


def talkative(batch: Any) -> Any:
    if batch.num_rows:
        _log.warning("%d rows, 100 %% of them", batch.num_rows)
        _log.warning("50% done")
    return batch


def test_every_line_of_a_shards_thread_names_shard_attempt_and_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_inputs(f"{tmp_path}/in", [10, 20])
    command = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*", f"--output={tmp_path}/out"]
    assert main([*command, "--preprocess=tests.transforms.steps.test_shard_log:talkative"]) == 0
    lines = [record for record in caplog.records if record.name == "of.a.user"]
    assert len(lines) == 4
    for record in lines:
        assert record.getMessage().startswith(f"[shard {record.shard}, attempt 1, step Predict/Predict] ")  # type: ignore[attr-defined]
        assert (tmp_path / "out" / record.shard).exists()  # type: ignore[attr-defined]
    assert sorted(record.getMessage().partition("] ")[2] for record in lines) == [
        "10 rows, 100 % of them",
        "20 rows, 100 % of them",
        "50% done",
        "50% done",
    ]


def test_attempts_count_and_names_with_percents_and_readers_are_right(caplog: pytest.LogCaptureFixture) -> None:
    mark_log_lines()
    mark_log_lines()  # once is enough
    for attempt in (1, 2):
        with pytest.raises(KeyError):
            _fail("part-50%d")
        assert caplog.records[-1].getMessage() == f"[shard part-50%d, attempt {attempt}, step S] among ['part-50%d']"
    assert running() == []

    def items() -> Any:
        _log.warning("read")
        yield 1

    with working_on("part-7", "S"), read_ahead(items(), 1) as found:
        assert list(found) == [1]
    assert caplog.records[-1].getMessage() == "[shard part-7, attempt 1, step S] read"
    _log.warning("outside")
    assert caplog.records[-1].getMessage() == "outside"


def _fail(shard: str) -> None:
    with working_on(shard, "S"):
        _log.warning("among %s", running())
        raise KeyError(shard)


def test_what_is_given_back_is_named_up_to_a_few() -> None:
    assert _given_back_text([]) == ""
    assert _given_back_text(["a", "b"]) == " Given back unfinished: a, b."
    assert _given_back_text([str(k) for k in range(9)]) == " Given back unfinished: 0, 1, 2, 3, 4 and 4 more."


def test_a_bound_on_an_elements_time_is_warned_of() -> None:
    told = timeout_note(parse_flags(["--runner=DataflowRunner", "--element_processing_timeout_minutes=10"]))
    assert "--element_processing_timeout_minutes=10" in told
    assert "--shard_bytes" in told
    assert timeout_note(parse_flags(["--runner=DataflowRunner"])) == ""
    # In this process nobody heeds it.
    assert timeout_note(parse_flags(["--element_processing_timeout_minutes=10"])) == ""
