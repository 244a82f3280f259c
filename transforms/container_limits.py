"""The cores and the memory that this process may use: a container's limits, where there are any, and not the machine's.

Linux control groups, version 2 (`cpu.max`, `memory.max`) and 1 (`cpu.cfs_quota_us`, `memory.limit_in_bytes`); their formats are
in the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/. Every limit on the way to the root counts. A container
sees its own group either at the root of /sys/fs/cgroup, or below it at the path that /proc/self/cgroup names.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

_ROOT = "/sys/fs/cgroup"
# systemd's hybrid layout has version 2 in a folder of its own.
_V2_ROOTS = (_ROOT, f"{_ROOT}/unified")
_V1_CPU_ROOTS = (f"{_ROOT}/cpu", f"{_ROOT}/cpu,cpuacct", f"{_ROOT}/cpuacct,cpu")
_V1_MEMORY_ROOTS = (f"{_ROOT}/memory",)


def usable_cores() -> int:
    """At least 1: the cores that the scheduler may use for this process, or the quota's, rounded up, where that is smaller."""
    # Not cpu_count, which includes cores that an affinity mask or a cpuset excludes.
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min([*_v2_quotas(), *_v1_quotas()], default=None)
    return seen if quota is None else max(1, min(seen, math.ceil(quota)))


def usable_memory() -> int:
    """Bytes: the machine's memory, or the limit of a container where that is smaller."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        *_numbers(_V2_ROOTS, _group(""), "memory.max"),
        *_numbers(_V1_MEMORY_ROOTS, _group("memory"), "memory.limit_in_bytes"),
    ]
    # Version 1 writes "no limit" as a number near 2^63.
    return min([machine, *(int(limit) for limit in limits if limit > 0)])


def _v2_quotas() -> Iterator[float]:
    """Cores from `QUOTA PERIOD`, in microseconds; a quota of "max" is no limit."""
    for text in _texts(_V2_ROOTS, _group(""), "cpu.max"):
        quota, _, period = text.partition(" ")
        # The kernel takes a period that is left out for 100 ms.
        if (found := _ratio(quota, period or "100000")) is not None:
            yield found


def _v1_quotas() -> Iterator[float]:
    """A quota of -1 is none. Each folder's quota belongs to that folder's period."""
    for folder in _folders(_V1_CPU_ROOTS, _group("cpu")):
        quota, period = (_read(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota is not None and (found := _ratio(quota, period or "100000")) is not None:
            yield found


def _ratio(quota: str, period: str) -> float | None:
    try:
        found = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return found if found > 0 else None


def _group(controller: str) -> str:
    """This process's group in the hierarchy of that controller of version 1, or of version 2, whose line names none."""
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return path
    return "/"


def _folders(roots: tuple[str, ...], group: str) -> Iterator[str]:
    """The group's folder below each root, and all those above it, to the root itself."""
    # "/.." leads out of a namespace; what it names cannot be seen from within.
    parts = [part for part in group.split("/") if part and part != ".."]
    for root in roots:
        for count in range(len(parts), -1, -1):
            yield "/".join([root, *parts[:count]])


def _texts(roots: tuple[str, ...], group: str, name: str) -> Iterator[str]:
    for folder in _folders(roots, group):
        if (text := _read(f"{folder}/{name}")) is not None:
            yield text


def _numbers(roots: tuple[str, ...], group: str, name: str) -> Iterator[float]:
    for text in _texts(roots, group, name):
        try:
            yield int(text)
        except ValueError:  # "max"
            continue


def _read(path: str) -> str | None:
    """None where there is no such file, as on other systems, or a sandbox forbids it: then no limit is known."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return None
