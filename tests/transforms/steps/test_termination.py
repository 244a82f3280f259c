"""SIGTERM to a worker: what it can finish it commits, the rest it gives back by name, and then it ends by that signal."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WORKER = """
import logging, os, signal, threading
from headrace.transforms.steps.shard_log import running, working_on
from headrace.transforms.steps.termination import Cancelled, cancel_event, check_not_ending, end_on_sigterm

logging.basicConfig(format="%(message)s")

def say(text):
    os.write(1, (text + "\\n").encode())  # at once: what threads print may get mixed up

def work(name, seconds):
    with working_on(name, "Predict"):
        say(name + (" aborted" if cancel_event().wait(seconds) else " finished"))

# As a DoFn's setup does, which the runner calls in a thread of its own.
setup = threading.Thread(target=end_on_sigterm, args=(0.2,))
setup.start()
setup.join()
for shard in {shards}:
    threading.Thread(target=work, args=shard, daemon=True).start()
while len(running()) < len({shards}):
    pass
os.kill(os.getpid(), signal.SIGTERM)
while True:
    try:
        check_not_ending()
    except Cancelled:
        break
say("no more begin")
threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("shards", "printed", "logged"),
    [
        (
            [("short", 0.05), ("long", 60.0), ("longer", 70.0)],
            ["long aborted", "longer aborted", "no more begin", "short finished"],
            [
                "SIGTERM: this worker ends. It works on long, longer, short, for 0.2 s more at most",
                "SIGTERM: given back unfinished: long, longer",
            ],
        ),
        (
            [("short", 0.05)],
            ["no more begin", "short finished"],
            [
                "SIGTERM: this worker ends. It works on short, for 0.2 s more at most",
                "SIGTERM: what it worked on is finished",
            ],
        ),
        ([], ["no more begin"], ["SIGTERM: this worker ends. It works on no shard"]),
    ],
    ids=["some", "all-finished", "idle"],
)
def test_a_worker_gives_back_what_it_cannot_finish(
    shards: list[tuple[str, float]], printed: list[str], logged: list[str]
) -> None:
    program = WORKER.format(shards=shards)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGTERM, ended.stderr
    assert sorted(ended.stdout.splitlines()) == printed
    assert [line for line in ended.stderr.splitlines() if line.startswith("SIGTERM")] == logged


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "lambda *_: print('its own', flush=True)"])
def test_a_process_with_a_handler_of_its_own_keeps_it(handler: str) -> None:
    program = f"""
import os, signal
from headrace.transforms.steps.termination import check_not_ending, end_on_sigterm
signal.signal(signal.SIGTERM, {handler})
end_on_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
check_not_ending()
print("goes on")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [*(["its own"] if "own" in handler else []), "goes on"]
