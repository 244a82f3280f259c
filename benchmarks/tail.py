"""How long a job's slowest worker makes it, by what a worker holds out of its runner's reach: `python -m benchmarks.tail`.

A simulation, event by event; nothing is read or predicted. 200 shards of uneven sizes, four workers of so many cores, one of
which is five times slower. The runner deals the shards out in equal numbers and, as Dataflow does, has a worker split its
bundle whenever another idles: the idle one gets half of what its owner has not taken. What a worker has taken, it finishes.
The ideal is all work on all cores, with nothing indivisible.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SHARDS, WORKERS, SLOWER = 200, 4, 5.0
_SEEDS = 20
# A shard of average size has this overhead: its footer and the output's, measured as 15 ms of a shard of 5 s.
_START = 0.003


@dataclass
class Worker:
    """`queue` is within the runner's reach, `waiting` is not. Work is in units of an average shard on a fast core."""

    cores: int
    speed: float
    queue: deque[float]
    waiting: deque[float] = field(default_factory=deque)
    running: int = 0

    def take(self, holds: int) -> None:
        while self.queue and self.running + len(self.waiting) < holds:
            self.waiting.append(self.queue.popleft())

    def left(self) -> float:
        return sum(self.queue) / self.speed


@dataclass(frozen=True)
class Way:
    """`holds`: shards that a worker of so many cores keeps out of reach. `pieces`: of how many a planned shard is made.
    `splits`: whether a shard that runs is given up, too, from its next row group on; it has eight.
    """

    name: str
    holds: Callable[[int], int]
    pieces: int = 1
    splits: bool = False


# Beam hands an element over before its `process` waits for a place: one more than are accepted.
WAYS = (
    Way("2 x cores + 1 shards held, as until 2026-11", lambda cores: 2 * cores + 1),
    Way("cores + 1 held", lambda cores: cores + 2),
    Way("cores + 1 held, shards of half the size", lambda cores: cores + 2, pieces=2),
    Way("cores + 1 held, shards of a quarter of the size", lambda cores: cores + 2, pieces=4),
    Way("cores + 1 held, shards of an eighth of the size", lambda cores: cores + 2, pieces=8),
    Way("cores + 1 held, running shards split by row groups", lambda cores: cores + 2, splits=True),
)
_ROW_GROUPS = 8


def sizes(seed: int) -> list[float]:
    """The sizes of planned shards, 1 on average. The planner splits shards over --shard_bytes: twice the average here."""
    drawn = [min(2.0, random.Random(f"{seed} {k}").lognormvariate(0, 0.8)) for k in range(SHARDS)]
    return [size * SHARDS / sum(drawn) for size in drawn]


def makespan(way: Way, cores: int, seed: int, slower: float = SLOWER) -> float:
    """Time until the last shard is done, in those of an average shard on a fast core."""
    work = [size / way.pieces + _START for size in sizes(seed) for _ in range(way.pieces)]
    share = len(work) // WORKERS
    workers = [
        Worker(cores, 1 / slower if i == 0 else 1.0, deque(work[i * share : (i + 1) * share])) for i in range(WORKERS)
    ]
    now, ends, started = 0.0, list[tuple[float, int, int]](), dict[int, tuple[int, float]]()
    number = 0
    holds = way.holds(cores)

    def fill(i: int) -> None:
        nonlocal number
        worker = workers[i]
        worker.take(holds)
        while worker.waiting and worker.running < worker.cores:
            size = worker.waiting.popleft()
            number += 1
            started[number] = (i, now + size / worker.speed)
            heapq.heappush(ends, (now + size / worker.speed, number, i))
            worker.running += 1
            worker.take(holds)

    def steal(i: int) -> bool:
        """Half of what the worker that has most left has not taken; else, if shards split, half of a running one's rest."""
        victim = max(workers, key=Worker.left)
        if victim.queue:
            stolen = [victim.queue.pop() for _ in range((len(victim.queue) + 1) // 2)]
            workers[i].queue.extend(reversed(stolen))
            return True
        if not way.splits or not started:
            return False
        longest = max(started, key=lambda n: started[n][1])
        owner, end = started[longest]
        # Its current row group is finished where it began; half of the others goes.
        gone = ((end - now) - _row_group(workers[owner].speed)) / 2
        if gone < _row_group(workers[owner].speed) / 2:
            return False
        started[longest] = (owner, end - gone)
        heapq.heappush(ends, (end - gone, longest, owner))
        workers[i].queue.append(gone * workers[owner].speed + _START)
        return True

    def settle() -> None:
        for i in sorted(range(WORKERS), key=lambda i: -workers[i].speed):
            fill(i)
            while workers[i].running < workers[i].cores and steal(i):
                fill(i)

    settle()
    while ends:
        end, shard, i = heapq.heappop(ends)
        if shard not in started or started[shard][1] != end:  # it ended earlier, since a part of it went elsewhere
            continue
        now = end
        del started[shard]
        workers[i].running -= 1
        settle()
    return now


def _row_group(speed: float) -> float:
    return 1 / _ROW_GROUPS / speed


def ideal(cores: int, slower: float = SLOWER) -> float:
    return SHARDS / (cores * (WORKERS - 1 + 1 / slower))


def table(cores: Sequence[int], seeds: int = _SEEDS) -> str:
    heads = [f"{count} cores each: makespan, over the ideal" for count in cores]
    lines = [f"| way | {' | '.join(heads)} |", f"|---|{'---|' * len(cores)}"]
    best = " | ".join(f"{ideal(count):.1f}" for count in cores)
    lines.append(f"| the ideal | {best} |")
    for way in WAYS:
        cells = []
        for count in cores:
            mean = sum(makespan(way, count, seed) for seed in range(seeds)) / seeds
            cells.append(f"{mean:.1f}, {mean / ideal(count):.2f} x")
        lines.append(f"| {way.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tail", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few draws, to see that it runs")
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 4, 16], help="of each worker (default: 2 4 16)")
    asked = parser.parse_args(argv)
    print(
        f"{SHARDS} uneven shards, {WORKERS} workers, one {SLOWER:.0f} x slower; unit: an average shard on a fast core.\n"
    )
    print(table(asked.cores, 2 if asked.quick else _SEEDS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
