"""Cores and memory are the container's. The files of control groups are real ones, in a root of the test's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from headrace.transforms import container_limits
from headrace.transforms.container_limits import usable_cores, usable_memory

SEEN = len(os.sched_getaffinity(0))


def limits(root: Path, files: dict[str, str], code: str, cores: int = 64) -> str:
    """What `code` prints in a process that sees `files` below /sys/fs/cgroup and in /proc/self, and so many cores."""
    import subprocess
    import sys

    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    # The module reads by `open`, which is pointed at the test's root; nothing of the module itself is changed.
    program = f"""
import builtins, os
real = open
def open_(path, *given, **how):
    text = str(path)
    for prefix in ("/sys/fs/cgroup", "/proc/self"):
        if text.startswith(prefix):
            return real({str(root)!r} + text, *given, **how)
    return real(path, *given, **how)
os.sched_getaffinity = lambda _: set(range({cores}))
from headrace.transforms.container_limits import usable_cores, usable_memory
builtins.open = open_
print({code})
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return run.stdout.strip()


V2 = "sys/fs/cgroup/cpu.max"
GROUP = "proc/self/cgroup"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({V2: "100000 100000\n"}, 1),
        ({V2: "150000 100000\n"}, 2),
        ({V2: "20000 100000\n"}, 1),
        ({V2: "max 100000\n"}, 64),
        ({V2: "800000 50000\n"}, 16),
        ({V2: "100000000 100000\n"}, 64),
        ({V2: "rubbish\n"}, 64),
        ({V2: "100000 0\n"}, 64),
        # The group's own folder, or one above it, is the tightest.
        ({GROUP: "0::/kube/pod/app\n", "sys/fs/cgroup/kube/pod/app/cpu.max": "300000 100000\n"}, 3),
        (
            {
                GROUP: "0::/kube/pod/app\n",
                "sys/fs/cgroup/kube/pod/app/cpu.max": "max 100000\n",
                "sys/fs/cgroup/kube/cpu.max": "200000 100000\n",
            },
            2,
        ),
        # A container whose path is the machine's, but whose folder is the root it sees.
        ({GROUP: "0::/docker/1234\n", V2: "400000 100000\n"}, 4),
        ({GROUP: "0::/../other\n", V2: "400000 100000\n"}, 4),
        # Another group's quota is not ours.
        ({GROUP: "0::/mine\n", "sys/fs/cgroup/other/cpu.max": "100000 100000\n"}, 64),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 64),
        (
            {
                GROUP: "5:memory:/m\n4:cpu,cpuacct:/docker/ab\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        ({GROUP: "0::/a\n", "sys/fs/cgroup/unified/a/cpu.max": "500000 100000\n"}, 5),
    ],
)
def test_cores_are_those_of_the_quota(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert limits(tmp_path, files, "usable_cores()") == str(cores)


def test_a_quota_does_not_give_cores_that_an_affinity_excludes(tmp_path: Path) -> None:
    assert limits(tmp_path, {V2: "800000 100000\n"}, "usable_cores()", cores=3) == "3"


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({"sys/fs/cgroup/memory.max": "268435456\n"}, 1 << 28),
        (
            {GROUP: "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "67108864\n", "sys/fs/cgroup/a/b/memory.max": "max\n"},
            1 << 26,
        ),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "134217728\n"}, 1 << 27),
        ({GROUP: "4:memory:/d\n", "sys/fs/cgroup/memory/d/memory.limit_in_bytes": "33554432\n"}, 1 << 25),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_memory_is_that_of_the_limit(tmp_path: Path, files: dict[str, str], memory: int | None) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limits(tmp_path, files, "usable_memory()") == str(memory or machine)


def test_here_they_are_within_the_machine() -> None:
    assert 1 <= usable_cores() <= SEEN
    assert 0 < usable_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_nothing_else_asks_the_system_for_cores_or_memory() -> None:
    root = Path(container_limits.__file__).resolve().parent.parent
    asking = re.compile(r"cpu_count\(|sched_getaffinity|SC_PHYS_PAGES|SC_NPROCESSORS|virtual_memory\(|/proc/meminfo")
    found = [
        str(path.relative_to(root))
        for folder in ("transforms", "pipeline")
        for path in (root / folder).rglob("*.py")
        if asking.search(path.read_text("utf-8"))
    ]
    assert found == ["transforms/container_limits.py"]


def test_a_model_that_memory_cannot_hold_is_noted_before_it_loads(tmp_path: Path) -> None:
    from dataclasses import replace

    from headrace.pipeline.checks.preflight import prepare
    from headrace.pipeline.commands.summary import little_memory
    from headrace.pipeline.flags.beam_options import parse_flags
    from headrace.pipeline.flags.request import parse_request
    from tests.support.jobs import model_folder, put_inputs

    put_inputs(f"{tmp_path}/in", [10])
    argv = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*", f"--output={tmp_path}/out"]
    prepared = prepare(parse_request(parse_flags(argv), "run"))
    assert little_memory(prepared) == ""
    huge = replace(prepared.specs[0], nbytes=usable_memory() + 1)
    assert f"takes {huge.nbytes:,} bytes" in little_memory(replace(prepared, specs=(huge,)))
