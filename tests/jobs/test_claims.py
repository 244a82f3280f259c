"""Claims: whatever runs do to one output folder at once, paused or ended at any point, no mark and no exit code 0 says what is
not so. A few of the schedules in the normal run; all of them with HEADRACE_SCHEDULES=all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence

import pytest

from headrace.transforms.storage import memory
from tests.support import claim_schedules
from tests.support.claim_schedules import Run, Schedule, SteppedStore, check

ALL = os.environ.get("HEADRACE_SCHEDULES") == "all"
SEED = int(os.environ.get("HEADRACE_SCHEDULES_SEED", "20261130"))
# How far apart the points are that are tried, and how many schedules of three runs.
EVERY = int(os.environ.get("HEADRACE_SCHEDULES_EVERY", "1" if ALL else "23"))
OF_THREE = int(os.environ.get("HEADRACE_SCHEDULES_OF_THREE", "3000" if ALL else "60"))

Command = tuple[str, tuple[str, ...]]
PLAIN, INCREMENTAL, OVERWRITE, OTHER = (), ("incremental",), ("overwrite",), ("overwrite", "other")
FIRST: Command = ("aa", PLAIN)
# What ran before, and the two runs that meet. Letters are versions of the two inputs.
PAIRS: dict[str, tuple[list[Command], list[Command]]] = {
    "equal": ([], [("aa", PLAIN), ("aa", PLAIN)]),
    "overwritten": ([], [("aa", PLAIN), ("aa", OTHER)]),
    "incremental beside plain": ([], [("aa", PLAIN), ("ab", INCREMENTAL)]),
    "late incremental": ([FIRST], [("ab", INCREMENTAL), ("ac", INCREMENTAL)]),
    "back again": ([FIRST], [("ab", INCREMENTAL), ("aa", INCREMENTAL)]),
    "vanished": ([FIRST], [("a-", INCREMENTAL), ("aa", PLAIN)]),
    "both overwrite": ([FIRST], [("aa", OTHER), ("aa", ("overwrite",))]),
    "overwrites its own": ([FIRST], [("aa", OVERWRITE), ("aa", PLAIN)]),
    "clean": ([], [("aa", PLAIN), ("ab", ("incremental", "clean"))]),
}
THREE: list[Command] = [
    ("aa", PLAIN),
    ("ab", INCREMENTAL),
    ("aa", INCREMENTAL),
    ("a-", INCREMENTAL),
    ("ab", OTHER),
    ("aa", OVERWRITE),
    ("aa", ("incremental", "clean")),
]


@pytest.fixture(params=["digests", *(["generations"] if ALL else [])], autouse=True)
def stepped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kept = dict(memory.OBJECTS)
    monkeypatch.setattr(memory, "MemoryStore", SteppedStore)
    monkeypatch.setattr(SteppedStore, "by_content", request.param == "digests")
    yield
    claim_schedules.clear()
    memory.OBJECTS.update(kept)


def schedules(points: int, publishes: int) -> Iterator[Schedule]:
    """The first run stops at each point, then the second at each; then one goes on, or crashes at once or soon after, and
    the other, too. However far apart the points are, one is where the first run is about to publish its mark.
    """
    for i in sorted({*range(0, points + 2, EVERY), publishes}):
        for j in range(0, points + 2, EVERY):
            for more, first_ends, second_ends in (
                (0, True, True),
                (0, False, True),
                (0, True, False),
                (0, False, False),
                (1, False, True),
                (1, False, False),
                (2, False, True),
                (3, False, True),
            ):
                yield _paused(i, j, more, first_ends=first_ends, second_ends=second_ends)


def _paused(i: int, j: int, more: int, *, first_ends: bool, second_ends: bool) -> Schedule:
    def do(runs: Sequence[Run]) -> None:
        first, second = runs
        first.advance(i)
        second.advance(j)
        first.advance(more)
        first.advance(None) if first_ends else first.crash()
        second.advance(None) if second_ends else second.crash()

    return do


def in_turn(runs: Sequence[Run]) -> None:
    for run in runs:
        run.advance(None)


@pytest.mark.timeout(3 * 3600 if ALL else 240)
@pytest.mark.parametrize("name", PAIRS)
def test_two_runs_that_are_paused_and_crash_at_every_point(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, pair = PAIRS[name]
    lengths: list[int] = []
    codes: list[int | None] = []
    publishes: list[int] = []

    def measure(runs: Sequence[Run]) -> None:
        in_turn(runs)
        codes.extend(run.code for run in runs)
        lengths.extend(len(run.steps) for run in runs)
        publishes.append(runs[0].steps.index("publish /out/_SUCCESS"))

    assert check(before, pair, measure) == ""
    assert codes == [0, 0]
    count, lies = 1, []
    for number, do in enumerate(schedules(max(lengths), publishes[0])):
        count += 1
        if lie := check(before, pair, do):
            lies.append((number, lie))
    with capsys.disabled():
        print(f"\n{name}: {count:,} schedules of {lengths} operations, {len(lies)} lies", end="")
    assert not lies, lies[0]


@pytest.mark.timeout(3 * 3600 if ALL else 240)
def test_three_runs_in_random_orders(capsys: pytest.CaptureFixture[str]) -> None:
    rng, lies = random.Random(SEED), []
    for number in range(OF_THREE):
        commands = [rng.choice(THREE) for _ in range(3)]
        turns = [(rng.randrange(3), rng.choice((1, 2, 5, 12, 30))) for _ in range(rng.randrange(2, 9))]
        crash = rng.randrange(6)
        order = rng.sample(range(3), 3)

        def do(
            runs: Sequence[Run],
            turns: list[tuple[int, int]] = turns,
            crash: int = crash,
            order: list[int] = order,
        ) -> None:
            for which, steps in turns:
                runs[which].advance(steps)
            if crash < len(runs):
                runs[crash].crash()
            for which in order:
                runs[which].advance(None)

        if lie := check([FIRST] if number % 2 else [], commands, do):
            lies.append((number, commands, turns, crash, order, lie))
    with capsys.disabled():
        print(f"\nthree runs: {OF_THREE:,} schedules, {len(lies)} lies", end="")
    assert not lies, lies[0]


def test_equal_runs_at_once_both_end_well() -> None:
    """They share a claim, wherever the first one is when the second comes."""
    for i in range(0, 60, 1 if ALL else 4):
        ended: list[Run] = []

        def do(runs: Sequence[Run], i: int = i, ended: list[Run] = ended) -> None:
            runs[0].advance(i)
            runs[1].advance(None)
            runs[0].advance(None)
            ended.extend(runs)

        assert check([], [("aa", PLAIN), ("aa", PLAIN)], do) == ""
        assert [run.code for run in ended] == [0, 0], (i, [run.said for run in ended])


def test_the_loser_names_the_winner() -> None:
    ended: list[Run] = []

    def do(runs: Sequence[Run]) -> None:
        runs[0].advance(20)
        runs[1].advance(None)
        runs[0].advance(None)
        ended.extend(runs)

    assert check([], [("aa", PLAIN), ("aa", OTHER)], do) == ""
    assert [run.code for run in ended] == [1, 0]
    assert "was claimed by another run" in ended[0].said
    assert "Found: claim 2 of job" in ended[0].said
