"""Footers and pages that were changed as Thrift are read, or refused by an error of ours: no hang, no abort, no raw exception.

Seconds each time; `HEADRACE_FUZZ_MINUTES=10` tries other files for that long, and says how many.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

MEMORY = 4 << 30
HANG_SECONDS = 10
INPUTS, AT_ONCE = 400, 2_000
MINUTES = float(os.environ.get("HEADRACE_FUZZ_MINUTES", "0"))


def failures(folder: Path, first: int, end: int) -> tuple[dict[int, str], int]:
    """What is wrong, by the number of the input, and how many were tried; after a hang or an abort it goes on behind it."""
    found: dict[int, str] = {}
    refused = 0
    while first < end:
        argv = [sys.executable, "-m", "tests.support.parquet_fuzz", str(folder), str(first), str(end), str(MEMORY)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            lines: queue.Queue[str] = queue.Queue()
            reading = threading.Thread(target=_read_lines, args=(process.stdout, lines))
            reading.start()
            began, wait = False, 60.0  # it imports first
            while line := _next(lines, wait):
                wait = HANG_SECONDS
                if began:
                    if line.startswith("raw "):
                        found[first] = line.strip()
                    refused += not line.strip().endswith(" rows")
                    first += 1
                began = not began
            if line is None:
                found[first] = f"hang of {HANG_SECONDS} s"
                process.kill()
            reading.join()
            if line == "" and first < end:
                assert process.stderr is not None
                found[first] = f"abort: {process.stderr.read()[-500:]}"
            first += first < end
    return found, refused


def _read_lines(out: Iterable[str], lines: queue.Queue[str]) -> None:
    """And an empty one at their end."""
    for line in out:
        lines.put(line)
    lines.put("")


def _next(lines: queue.Queue[str], seconds: float) -> str | None:
    try:
        return lines.get(timeout=seconds)
    except queue.Empty:
        return None


@pytest.mark.timeout(240)
def test_changed_footers_and_pages_are_read_or_refused(tmp_path: Path) -> None:
    found, refused = failures(tmp_path, 0, INPUTS)
    assert not found
    assert INPUTS // 3 < refused < INPUTS  # some are harmless, or the changes would be none of interest


@pytest.mark.skipif(not MINUTES, reason="HEADRACE_FUZZ_MINUTES is not set")
@pytest.mark.timeout(int(MINUTES * 60 + 300))
def test_many_more_for_as_long_as_was_asked_for(tmp_path: Path) -> None:
    end, tried = time.monotonic() + 60 * MINUTES, INPUTS
    while time.monotonic() < end:
        found, _ = failures(tmp_path, tried, tried + AT_ONCE)
        tried += AT_ONCE
        assert not found
    print(f"{tried:,} changed files read or refused in {MINUTES:g} minutes")
