"""SIGTERM and Ctrl-C: what is done is told, with how to go on; the second ends the process at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.transforms.shards.shard import parse_output_name
from tests.support.front import Front, Gate, served
from tests.support.jobs import names_in, put_inputs, put_model, read_output
from tests.support.warm import Warm

SHARDS, ROWS = 6, 100
pytestmark = pytest.mark.timeout(180)


class Stall:
    """Holds back the bytes of all inputs but the first two, until it is let go."""

    def __init__(self) -> None:
        self.held, self.let_go = threading.Event(), threading.Event()

    def __call__(self, gate: Gate) -> bool:
        late = "alt=media" in gate.path and re.search(r"part-0000[2-9]", gate.path)
        if late and self.footers_are_read(gate):
            self.held.set()
            self.let_go.wait(60)
        return False

    def footers_are_read(self, gate: Gate) -> bool:
        read = [path for _, path, _ in gate.server.seen if "part-" in path and "alt=media" in path]
        return len(read) > SHARDS + 2


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stopped_it_says_what_is_done_and_how_to_go_on(warm: Warm, tmp_path: Path, bucket: str, emulator: str) -> None:
    """By SIGTERM; SIGINT, which the next test sends, has the same handler."""
    put_model("saved_model", f"{bucket}/model")
    put_inputs(f"{bucket}/in", [ROWS] * SHARDS)
    argv = [f"--model={bucket}/model", f"--input={bucket}/in/*.parquet", f"--output={bucket}/out"]
    log, stall = tmp_path / "log.txt", Stall()
    for front in served(Front(emulator)):
        front.faults.append(stall)
        env = {**os.environ, "STORAGE_EMULATOR_HOST": front.url}
        job = warm.start(argv, str(log), env)
        assert stall.held.wait(60), log.read_text()
        done = [name for name in names_in(f"{bucket}/out") if parse_output_name(name)]
        os.kill(job, signal.SIGTERM)
        wait_for(lambda: "Once more ends it at once" in log.read_text())
        stall.let_go.set()
        assert warm.wait(job) == 130
        told = log.read_text()
        found = re.search(
            rf"Stopped\. (\d) of {SHARDS} shards are done\. "
            r"(?:Given back unfinished: \S+\.parquet.*\. )?The same command goes on",
            told,
        )
        assert found, told
        assert int(found[1]) >= len(done)
        assert "Traceback" not in told
        assert "_SUCCESS" not in names_in(f"{bucket}/out")
        assert warm.wait(warm.start(argv, str(log), env)) == 0, log.read_text()
    assert read_output(f"{bucket}/out")["id"].to_pylist() == list(range(SHARDS * ROWS))


def test_the_second_time_it_ends_at_once(warm: Warm, tmp_path: Path, bucket: str, emulator: str) -> None:
    """While a read hangs, for which the first has to wait."""
    put_model("saved_model", f"{bucket}/model")
    put_inputs(f"{bucket}/in", [ROWS] * SHARDS)
    argv = [f"--model={bucket}/model", f"--input={bucket}/in/*.parquet", f"--output={bucket}/out"]
    log, stall = tmp_path / "log.txt", Stall()
    for front in served(Front(emulator)):
        front.faults.append(stall)
        job = warm.start(argv, str(log), {**os.environ, "STORAGE_EMULATOR_HOST": front.url})
        assert stall.held.wait(60), log.read_text()
        os.kill(job, signal.SIGINT)
        wait_for(lambda: "Once more ends it at once" in log.read_text())
        began = time.monotonic()
        os.kill(job, signal.SIGINT)
        assert warm.wait(job) == 130
        assert time.monotonic() - began < 5
        stall.let_go.set()
    assert "_SUCCESS" not in names_in(f"{bucket}/out")


UNHEARD = """
import signal, threading
from headrace.pipeline.terminal.signals import stop_on_signals

stop_on_signals()
threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
other = threading.enumerate()[-1].ident
threading.Timer(0.5, lambda: signal.pthread_kill(other, signal.SIGTERM)).start()
try:
    threading.Event().wait()
except KeyboardInterrupt:
    print("heard")
"""


def test_a_signal_that_finds_another_thread_is_heard_while_the_main_thread_waits() -> None:
    told = subprocess.run([sys.executable, "-c", UNHEARD], capture_output=True, text=True, timeout=60)
    assert told.stdout == "heard\n", told.stderr
