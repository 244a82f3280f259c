"""Each parser on mutations of sound files, for seconds; `make fuzz` tries them for minutes."""

from __future__ import annotations

import os

import pytest

from tests.support import fuzzing

INPUTS = int(os.environ.get("HEADRACE_FUZZ_INPUTS", "150"))


@pytest.mark.parametrize("target", [target.name for target in fuzzing.all_targets()])
@pytest.mark.timeout(900)
def test_no_input_hangs_aborts_or_ends_in_a_raw_error(target: str) -> None:
    outcome = fuzzing.fuzz(target, seconds=60, count=INPUTS)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.tried == INPUTS
    assert outcome.read > 0
    assert outcome.refused > INPUTS // 10


@pytest.mark.timeout(900)
def test_the_harness_finds_what_it_is_there_for() -> None:
    sound = fuzzing.fuzz("tests.support.faulty_parsers:sound", seconds=60, count=8)
    assert (sound.read, sound.refused, sound.failures) == (2, 6, [])
    outcome = fuzzing.fuzz("tests.support.faulty_parsers:faulty", seconds=60, count=8)
    assert outcome.read == 2
    said = [failure.partition(": ")[2] for failure in outcome.failures]
    assert said[0] == "hangs for 10 s"
    assert said[1].startswith("ends the process with -6")
    assert [one.partition(":")[0] for one in said[2:5]] == ["MemoryError", "RecursionError", "KeyError"]
    assert said[5].startswith("ends the process with 0")


def test_an_input_is_made_from_its_number_alone() -> None:
    target = fuzzing.find_target("job_record")
    assert [fuzzing.make_input(target, i) for i in range(40)] == [fuzzing.make_input(target, i) for i in range(40)]
    assert len({fuzzing.make_input(target, i) for i in range(40)}) > 30
