"""Jobs that are killed, that share an output, or whose store is faulty: the output is that of an undisturbed run.

Few runs of each in the normal run; `make chaos RUNS=200` for as many as asked, and then the table in docs/faults.md.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from tests.front import Front, Gate, served
from tests.jobs import put_inputs, put_model, read_output, rows
from tests.warm import Warm
from transforms.storage import open_store

RUNS = int(os.environ.get("HEADRACE_CHAOS_RUNS", "3"))
# Each waits for its retries, by the second.
FAULTY_RUNS = int(os.environ.get("HEADRACE_CHAOS_RUNS", "1"))
SEED = int(os.environ.get("HEADRACE_CHAOS_SEED", "20261123"))
TABLE = os.environ.get("HEADRACE_CHAOS_TABLE")
COUNTS = (900, 0, 1100, 700, 1300, 400)
FAULTS = {
    "503": "503 Service Unavailable",
    "429": "429 Too Many Requests",
    "reset": "connection reset in mid-body; of an upload: after the store has taken it",
    "truncated": "body cut short, the connection closed in order",
}

pytestmark = pytest.mark.timeout(60 + 60 * RUNS)


@dataclass
class Told:
    """What the table in docs/faults.md says: fault, how often, and what came of it."""

    lines: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, fault: str, times: int, outcome: str) -> None:
        self.lines.append((fault, times, outcome))


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    one = Told()
    yield one
    if TABLE and one.lines:
        text = ["# Faults tried, and what came of them", "", f"Made by `make chaos RUNS={RUNS}`.", ""]
        text += ["| fault | times | outcome |", "|---|---|---|"]
        text += [f"| {fault} | {times:,} | {outcome} |" for fault, times, outcome in one.lines]
        Path(TABLE).write_text("\n".join(text) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as one:
        yield one


@dataclass
class Place:
    """Model and input below `folder`, and the output and the seconds of an undisturbed run of the same job there."""

    folder: str
    warm: Warm
    log: str
    env: dict[str, str]
    undisturbed: pa.Table
    names: list[str]
    seconds: float

    def argv(self, out: str) -> list[str]:
        return argv(self.folder, out)

    def start(self, out: str) -> int:
        return self.warm.start(self.argv(out), self.log, self.env)

    def run(self, out: str) -> int:
        return self.warm.wait(self.start(out))

    def said(self) -> str:
        return Path(self.log).read_text(encoding="utf-8")[-3000:]

    def assert_whole(self, out: str) -> None:
        folder = f"{self.folder}/{out}"
        assert files(folder) == self.names
        assert read_output(folder).equals(self.undisturbed)
        assert self.warm.wait(self.warm.start(["verify", f"--output={folder}"], self.log, self.env)) == 0, self.said()


def argv(folder: str, out: str) -> list[str]:
    flags = ("--batch_size=50", "--shard_bytes=6000", "--connections=4")
    return [f"--model={folder}/model", f"--input={folder}/in/*.parquet", f"--output={folder}/{out}", *flags]


def files(folder: str) -> list[str]:
    """The prediction files' names."""
    found = (ref.uri.removeprefix(f"{folder}/") for ref in open_store(folder).list(f"{folder}/"))
    return sorted(name for name in found if name.endswith(".parquet") and not name.startswith("_"))


def prepare(folder: str, warm: Warm, log: str, env: dict[str, str]) -> Place:
    put_model("saved_model", f"{folder}/model")
    put_inputs(f"{folder}/in", COUNTS, row_group_size=100)
    for out in ("warm-up", "undisturbed"):
        started = time.monotonic()
        assert warm.wait(warm.start(argv(folder, out), log, env)) == 0, Path(log).read_text(encoding="utf-8")
        seconds = time.monotonic() - started
    found = read_output(f"{folder}/undisturbed")
    assert found.select(["id", "name"]).equals(rows(0, sum(COUNTS)).select(["id", "name"]))
    return Place(folder, warm, log, env, found, files(f"{folder}/undisturbed"), seconds)


@pytest.fixture
def place(request: pytest.FixtureRequest, warm: Warm, tmp_path: Path, bucket: str) -> Place:
    folder = str(tmp_path) if request.param == "local" else bucket
    return prepare(folder, warm, str(tmp_path / "log.txt"), dict(os.environ))


@pytest.mark.parametrize("place", ["local", "gs"], indirect=True)
def test_killed_at_any_instant_then_run_again_nothing_is_lost_or_twice(place: Place, told: Told) -> None:
    rng = random.Random(SEED)
    killed = 0
    for number in range(RUNS):
        out = f"out-{number}"
        code = 1
        while code != 0:
            store = open_store(place.folder)
            before = {ref.uri: ref for ref in store.list(f"{place.folder}/{out}/")}
            running = place.start(out)
            if rng.random() < (0.9 if not before else 0.4):
                code = place.warm.kill_after(running, rng.uniform(0, place.seconds), signal.SIGKILL)
                killed += code == -signal.SIGKILL
            else:
                code = place.warm.wait(running)
                assert code == 0, place.said()
            after = {ref.uri: ref for ref in store.list(f"{place.folder}/{out}/")}
            done = [uri for uri in before if uri.endswith(".parquet") and "/_" not in uri]
            assert all(after[uri] == before[uri] for uri in done), "what was done is not done again"
            assert code in (0, -signal.SIGKILL), place.said()
        place.assert_whole(out)
    assert killed
    kind = "local files" if not place.folder.startswith("gs") else "a bucket"
    told.add(
        f"`kill -9` of launcher and worker at a random instant ({kind})", killed, "the same command finished; exact"
    )


@pytest.mark.parametrize("place", ["local", "gs"], indirect=True)
def test_two_jobs_started_at_once_on_one_output_give_one_result(place: Place, told: Told) -> None:
    for number in range(max(1, RUNS // 10)):
        out = f"out-{number}"
        running = [place.start(out), place.start(out)]
        codes = [place.warm.wait(one) for one in running]
        assert codes == [0, 0], place.said()
        place.assert_whole(out)
    kind = "local files" if not place.folder.startswith("gs") else "a bucket"
    told.add(
        f"two equal jobs started at once on one output ({kind})", max(1, RUNS // 10), "one result, whole; both end well"
    )


@dataclass
class Faulty:
    """Fails a request with probability `rate`, in a way drawn from `FAULTS`."""

    rng: random.Random
    rate: float = 0.05
    on: bool = False
    met: Counter[str] = field(default_factory=Counter)

    def __call__(self, gate: Gate) -> bool:
        if not self.on or self.rng.random() >= self.rate:
            return False
        kind, part = self.rng.choice(list(FAULTS)), self.rng.random()
        self.met[kind] += 1
        if kind in ("503", "429"):
            gate.answer(int(kind), {"Retry-After": "0"}, b"not now")
            return True
        status, headers, body = gate.ask()
        gate.answer(status, headers, body, only=int(part * len(body)))
        if kind == "reset":
            gate.reset()
        gate.close_connection = True
        return True


def test_with_faults_on_model_input_and_output_the_output_is_the_same(
    warm: Warm, tmp_path: Path, bucket: str, emulator: str, told: Told
) -> None:
    faulty = Faulty(random.Random(SEED))
    for front in served(Front(emulator)):
        front.faults.append(faulty)
        place = prepare(bucket, warm, str(tmp_path / "log.txt"), {**os.environ, "STORAGE_EMULATOR_HOST": front.url})
        again = 0
        for number in range(FAULTY_RUNS):
            out = f"out-{number}"
            faulty.on = True
            code = place.run(out)
            faulty.on = False
            if code != 0:
                # Retries are bounded: the job may end, with a reason; then the same command goes on.
                assert code in (1, 2), place.said()
                again += 1
                assert place.run(out) == 0, place.said()
            place.assert_whole(out)
    assert faulty.met.total() >= FAULTY_RUNS
    for kind, what in FAULTS.items():
        told.add(f"{what}, 5 % of the requests on model, input and output", faulty.met[kind], "retried; exact")
    if again:
        told.add("retries spent in such a run", again, "an error, exit code 1 or 2; the same command finished; exact")
