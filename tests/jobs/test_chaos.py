"""Jobs that are killed, that share an output, or whose store is faulty: the output is that of an undisturbed run.

Few runs of each in the normal run; `make chaos RUNS=200` for as many as asked, and then the table in docs/faults.md, which
is written anew after every run, so that one that was interrupted tells how far it came.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.transforms.storage import open_store
from tests.support.fault_table import RUNS, SEED, tell
from tests.support.front import Front, Gate, served
from tests.support.jobs import put_inputs, put_model, read_output, rows
from tests.support.warm import Warm

# Local files and a bucket have half of the runs each.
HALF = -(-RUNS // 2)
PAIRS = -(-RUNS // 10)
# Each starts processes that import everything.
WORKER_RUNS = RUNS // 10
# Each waits for its retries, by the second.
FAULTY_RUNS = int(os.environ.get("HEADRACE_CHAOS_RUNS", "1"))
FAULTY_AT_ONCE = 4
COUNTS = (900, 0, 1100, 700, 1300, 400)
FAULTS = {
    "503": "503 Service Unavailable",
    "429": "429 Too Many Requests",
    "reset": "connection reset in mid-body; of an upload: after the store has taken it",
    "truncated": "body cut short, the connection closed in order",
}

pytestmark = pytest.mark.timeout(60 + 120 * RUNS)


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

    def start(self, out: str, *more: str) -> int:
        return self.warm.start([*self.argv(out), *more], self.log, self.env)

    @property
    def kind(self) -> str:
        return "a bucket" if self.folder.startswith("gs") else "local files"

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
def test_killed_at_any_instant_then_run_again_nothing_is_lost_or_twice(place: Place) -> None:
    rng = random.Random(SEED)
    killed = 0
    for number in range(HALF):
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
        fault = f"`kill -9` of the process that is launcher and worker, at a random instant ({place.kind})"
        tell(fault, HALF, number + 1, killed, "the same command finished, doing nothing again that was done; exact")
    assert killed


@pytest.mark.skipif(not WORKER_RUNS, reason="only where ten runs or more are asked for")
@pytest.mark.parametrize("place", ["local", "gs"], indirect=True)
def test_a_worker_process_killed_at_any_instant_then_run_again_nothing_is_lost_or_twice(
    place: Place,
) -> None:
    """The launcher sees it and fails; then the same command goes on."""
    rng = random.Random(SEED)
    killed = 0
    runs = -(-WORKER_RUNS // 2)
    for number in range(runs):
        out = f"out-{number}"
        running = place.start(out, "--processes=2")
        workers = first_workers(running)
        time.sleep(rng.uniform(0, 4 * place.seconds))
        alive = [worker for worker in workers if is_running(worker)]
        if alive:
            os.kill(rng.choice(alive), signal.SIGKILL)
            killed += 1
        code = place.warm.wait(running)
        assert code in (0, 1), place.said()
        assert place.run(out) == 0, place.said()
        place.assert_whole(out)
        fault = f"`kill -9` of one of two worker processes at a random instant ({place.kind})"
        tell(fault, runs, number + 1, killed, "an error, exit code 1; the same command finished; exact")
    assert killed


def first_workers(launcher: int) -> list[int]:
    """The worker processes below the launcher, as soon as there are any; none where it ends before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and is_running(launcher):
        found = [one for one in descendants(launcher) if b"local_worker" in told_arguments(one)]
        if found:
            return found
        time.sleep(0.05)
    return []


def descendants(process: int) -> list[int]:
    found, left = [], [process]
    while left:
        for threads in Path(f"/proc/{left.pop()}/task").glob("*/children"):
            try:
                below = [int(one) for one in threads.read_text().split()]
            except OSError:  # it has ended meanwhile
                continue
            found += below
            left += below
    return found


def told_arguments(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def is_running(process: int) -> bool:
    """Neither gone nor a zombie: of that, no arguments are left."""
    return told_arguments(process) != b""


@pytest.mark.parametrize("place", ["local", "gs"], indirect=True)
def test_two_jobs_started_at_once_on_one_output_give_one_result(place: Place) -> None:
    for number in range(-(-PAIRS // 2)):
        out = f"out-{number}"
        running = [place.start(out), place.start(out)]
        codes = [place.warm.wait(one) for one in running]
        assert codes == [0, 0], place.said()
        place.assert_whole(out)
        fault = f"two equal jobs started at once on one output ({place.kind})"
        tell(fault, -(-PAIRS // 2), number + 1, number + 1, "one result, whole; both end well")


# Where a run stops, by the name that a file is about to get.
PAUSES = {
    "claim": ".claim",
    "record": "job.json",
    "prediction file": "part-00003-",
    "manifest's part": "part-00000-00000001-",
    "prepared mark": ".mark",
    "mark": "_SUCCESS",
}


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_run_that_was_stopped_while_another_took_its_folder_does_no_harm(place: Place) -> None:
    """SIGSTOP at a file that is about to get its name, another job with --overwrite, SIGCONT."""
    runs = max(1, RUNS // 40)
    rng = random.Random(SEED)
    for number in range(runs):
        for point in PAUSES if RUNS >= 10 else ("prediction file", "mark"):
            part = PAUSES[point]
            out = f"paused-{number}-{list(PAUSES).index(point)}"
            # Else the other job would wait a minute for the weights of the process that is stopped.
            alone = "--model_sharing=process"
            paused = place.warm.start(
                [*place.argv(out), alone], place.log, {**place.env, "HEADRACE_TEST_STOP_AT": part}
            )
            wait_stopped(paused)
            other = ["--overwrite"] if rng.random() < 0.5 else ["--overwrite", "--clean"]
            code = place.warm.wait(place.start(out, "--batch_size=49", alone, *other))
            assert code == 0, place.said()
            os.killpg(paused, signal.SIGCONT)
            late = place.warm.wait(paused)
            folder = f"{place.folder}/{out}"
            found = read_output(folder).sort_by("id")
            assert found["id"].to_pylist() == list(range(sum(COUNTS))), f"paused at {point}: rows twice or missing"
            # Paused before it had claimed anything, it meets the other's finished job and is refused.
            assert late == (2 if point == "claim" else 1), (point, place.said())
            assert "was claimed by another run" in place.said() or point == "claim"
            verified = place.warm.wait(place.warm.start(["verify", f"--output={folder}"], place.log, place.env))
            assert verified == 0, place.said()
            fault = f"SIGSTOP as the {point} gets its name, another job takes the folder with --overwrite, SIGCONT"
            tell(
                fault, runs, number + 1, number + 1, "the other's output whole; the late run ends with exit code 1 or 2"
            )


def wait_stopped(process: int) -> None:
    deadline = time.monotonic() + 100
    while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert is_running(process), "it ended before it came to the place where it is to stop"
        assert time.monotonic() < deadline, "it never came to the place where it is to stop"
        time.sleep(0.02)


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
    warm: Warm, tmp_path: Path, bucket: str, emulator: str
) -> None:
    faulty = Faulty(random.Random(SEED))
    for front in served(Front(emulator)):
        front.faults.append(faulty)
        place = prepare(bucket, warm, str(tmp_path / "log.txt"), {**os.environ, "STORAGE_EMULATOR_HOST": front.url})
        again = done = 0
        for first in range(0, FAULTY_RUNS, FAULTY_AT_ONCE):
            outs = [f"out-{number}" for number in range(first, min(first + FAULTY_AT_ONCE, FAULTY_RUNS))]
            faulty.on = True
            running = [place.start(out) for out in outs]
            codes = [place.warm.wait(one) for one in running]
            faulty.on = False
            for out, code in zip(outs, codes, strict=True):
                if code != 0:
                    # Retries are bounded: the job may end, with a reason; then the same command goes on.
                    assert code in (1, 2), place.said()
                    again += 1
                    assert place.run(out) == 0, place.said()
                place.assert_whole(out)
                done += 1
            for kind, what in FAULTS.items():
                fault = f"{what}; 5 % of the requests on model, input and output drew one of these four"
                tell(fault, FAULTY_RUNS, done, faulty.met[kind], "retried; exact")
            if again:
                tell(
                    "retries spent in such a run",
                    FAULTY_RUNS,
                    done,
                    again,
                    "an error, exit code 1 or 2; the same command finished; exact",
                )
    assert faulty.met.total() >= FAULTY_RUNS
