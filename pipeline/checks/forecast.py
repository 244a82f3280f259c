"""Forecasts what a whole plan will take from a trial of some of its rows: plain arithmetic.

Core hours are the plan's rows divided by the trial's rows per second and core. A worker's memory is what the process had once
its models were loaded, plus what each core added while it predicted, and at least what a job asks Dataflow for. A vCPU of a
machine type counts as one of the measured cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .trial import Trial

DEFAULT_WITHIN = 3600.0
# https://cloud.google.com/compute/docs/general-purpose-machines#n2_series: vCPUs, and GiB of memory for each.
_CORES = (2, 4, 8, 16, 32, 48, 64, 80)
_FAMILIES = {"n2-standard": 4, "n2-highmem": 8}
# One process serves up to some twenty cores; a job uses at most so many smaller machines where larger ones are available.
_MOST_CHOSEN, _FEW_MACHINES = 16, 8


@dataclass(frozen=True, slots=True)
class Forecast:
    """`rows` in `shards` take `seconds`, loading included, on `workers` machines of `machine_type`, `cores_per_worker`
    each. `within` is the requested time, and `in_time` says whether the forecast keeps it. `cost` is None where no price was
    given.

    It excludes starting machines, uploading to a store, and what a job does before its first shard and after its last.
    """

    trial: Trial
    rows: int
    shards: int
    input_bytes_per_row: float
    core_hours: float
    within: float
    in_time: bool
    machine_type: str | None
    cores_per_worker: int
    workers: int
    memory_bytes_per_worker: int
    seconds: float
    cost: float | None

    def fields(self) -> dict[str, Any]:
        document = asdict(self)
        document["trial"] |= {"rows_per_second_per_core": self.trial.rows_per_second_per_core}
        return document


def forecast(
    trial: Trial,
    *,
    rows: int,
    shards: int,
    input_bytes: int,
    min_memory: int,
    within: float | None = None,
    price_per_core_hour: float | None = None,
) -> Forecast:
    """`min_memory` is what a worker needs at least, in bytes; `within` in seconds."""
    core_seconds, wanted = rows / trial.rows_per_second_per_core, within or DEFAULT_WITHIN
    left = wanted - trial.load_seconds
    # A shard keeps one core busy: more cores than shards do nothing.
    needed = min(shards, math.ceil(core_seconds / left)) if left > 0 else shards
    machine, cores, memory = next(_machines(trial, needed, min_memory), (None, trial.cores, min_memory))
    workers = -(-needed // cores)
    seconds = core_seconds / min(shards, workers * cores) + trial.load_seconds
    core_hours = core_seconds / 3600
    paid = core_hours + workers * cores * trial.load_seconds / 3600
    return Forecast(
        trial,
        rows,
        shards,
        input_bytes / max(1, rows),
        core_hours,
        wanted,
        seconds <= wanted,
        machine,
        cores,
        workers,
        memory,
        seconds,
        None if price_per_core_hour is None else paid * price_per_core_hour,
    )


def _machines(trial: Trial, needed: int, min_memory: int) -> Iterator[tuple[str, int, int]]:
    """Machine types that suffice, best first: few machines, no larger than necessary, with enough memory for their cores."""
    by_core = (trial.peak_bytes - trial.loaded_bytes) / trial.cores
    least = next((cores for cores in _CORES if needed <= cores * _FEW_MACHINES), _MOST_CHOSEN)
    for cores in _CORES:
        if cores < min(least, _MOST_CHOSEN):
            continue
        memory = max(min_memory, math.ceil(trial.loaded_bytes + by_core * cores))
        for family, gib in _FAMILIES.items():
            if memory <= cores * gib << 30:
                yield f"{family}-{cores}", cores, memory
