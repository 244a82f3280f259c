"""A fuzz harness for parsers of files that anybody may have written.

A `Target` says what a sound file looks like and what is done with one. Its inputs are mutations of sound files, each made
from a number alone, so that a failure is repeated by its number:

    python -m tests.support.fuzzing hdf5 --first=1234 --count=1     # one input again, with its traceback
    python -m tests.support.fuzzing hdf5 --minutes=10               # CPU minutes; all targets where none is named

Inputs are tried in a child process, many in each. What counts as a failure: an error other than `HeadraceError`, 10 s of CPU
time for one input (a hang), a child that ends by a signal (an abort), and more than 1 GiB of memory besides what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

HANG_SECONDS, MOST_BYTES = 10, 1 << 30
# Wall time, for what hangs without working. On a loaded machine, what works gets some CPU time all the same.
_STUCK_SECONDS, _WORKED_SECONDS = 120, 0.05
TARGETS = ("tests.support.fuzz_targets",)
_INTERESTING = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1)
_LARGE = (2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 16, 2**64 - 8, 2**64 - 1)


@dataclass(frozen=True)
class Target:
    """`seeds` gives sound files, `feed` reads one as the product does. `mutate` changes a file in the form's own way, or is
    the general `mutated`; `repair` makes checksums right again, where they would hide what lies behind them.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    feed: Callable[[bytes], object]
    mutate: Callable[[random.Random, bytes, Sequence[bytes]], bytes] | None = None
    repair: Callable[[bytes], bytes] | None = None


@dataclass
class Outcome:
    """How many inputs were read, and how many refused by a `HeadraceError`; `failures` name the input and what it did. CPU time
    is of making the inputs and reading them.
    """

    read: int = 0
    refused: int = 0
    cpu_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return self.read + self.refused + len(self.failures)

    def describe(self) -> str:
        return (
            f"{self.tried:9,} inputs: {self.read:,} read, {self.refused:,} refused, {len(self.failures)} failures, "
            f"{self.cpu_seconds:.0f} s of CPU time"
        )


def mutated(noise: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """One to six changes: numbers of a field's width, parts cut off, left out, doubled, swapped, or taken from another file."""
    made = bytearray(data)
    for _ in range(noise.choice((1, 1, 1, 2, 3, 6))):
        if not made:
            break
        # Fields lie where something else than zeros lies.
        at = noise.randrange(len(made))
        for _ in range(8):
            if made[at]:
                break
            at = noise.randrange(len(made))
        kind = noise.randrange(12)
        if kind < 5:
            width = noise.choice((1, 2, 4, 8))
            at -= at % noise.choice((1, width))
            number = noise.choice((*_INTERESTING, *_LARGE, noise.randrange(len(made) + 1), noise.getrandbits(64)))
            made[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")[: len(made) - at]
        elif kind == 5:
            width = noise.choice((1, 2, 4, 8))
            old = int.from_bytes(made[at : at + width], "little") + noise.choice((-8, -1, 1, 8))
            made[at : at + width] = (old % (1 << 8 * width)).to_bytes(width, "little")[: len(made) - at]
        elif kind == 6:
            made[at] ^= 1 << noise.randrange(8)
        elif kind == 7:
            del made[at:]
        elif kind == 8:
            del made[at : at + noise.choice((1, 4, 8, 64))]
        elif kind == 9:
            made[at:at] = made[at : at + noise.choice((1, 8, 40, 200))] * noise.choice((1, 1, 2, 50))
        elif kind == 10:
            to, length = noise.randrange(len(made)), noise.choice((4, 8, 16, 64))
            made[to : to + length] = made[at : at + length][: len(made) - to]
        else:
            other = noise.choice(seeds)
            if other:
                start = noise.randrange(len(other))
                part = other[start : start + noise.choice((8, 64, 1000))]
                made[at : at + len(part)] = part
    return bytes(made)


_TOKENS = (
    b"null", b"true", b"[]", b"{}", b'""', b"0", b"-1", b"1e999", b"NaN", b"-Infinity", b"9" * 5000,
    b"[" * 3000, b'{"a":' * 3000,
    b'"\\ud800"', b'"../../x"', b"[[[[]]]]", b'{"a":{"b":[1]}}', b"1.5", b"\xff", b"\0", b"\xef\xbb\xbf",
)  # fmt: skip


def mutated_json(noise: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """Values give way to others, keys to keys, members come twice; else as `mutated`."""
    if noise.random() < 0.3:
        return mutated(noise, data, seeds)
    made = data
    for _ in range(noise.choice((1, 1, 2, 4))):
        spans = _json_values(made)
        if not spans:
            break
        start, end = noise.choice(spans)
        new = noise.choice((*_TOKENS, made[slice(*noise.choice(spans))]))
        if noise.random() < 0.15:
            new = made[start:end] + b"," + made[start:end]
        made = made[:start] + new + made[end:]
    return made


def _json_values(data: bytes) -> list[tuple[int, int]]:
    """Where texts and numbers are, and what is between two brackets that belong together."""
    found: list[tuple[int, int]] = []
    opened: list[int] = []
    at = 0
    while at < len(data) and len(found) < 5000:
        byte = data[at : at + 1]
        start = at
        if byte == b'"':
            at += 1
            while at < len(data) and data[at : at + 1] != b'"':
                at += 2 if data[at : at + 1] == b"\\" else 1
            found.append((start, at + 1))
        elif byte in b"-0123456789tfn":
            while at < len(data) and data[at : at + 1] not in b",]}\n ":
                at += 1
            found.append((start, at))
            continue
        elif byte in b"[{":
            opened.append(at)
        elif byte in b"]}" and opened:
            found.append((opened.pop(), at + 1))
        at += 1
    return found


@cache
def _seeds(target: Target) -> tuple[bytes, ...]:
    return tuple(target.seeds())


def make_input(target: Target, number: int) -> bytes:
    """The input of that number; the first ones are the sound files themselves."""
    seeds = _seeds(target)
    if number < len(seeds):
        return seeds[number]
    noise = random.Random(f"{target.name} {number}")
    data = (target.mutate or mutated)(noise, noise.choice(seeds), seeds)
    return target.repair(data) if target.repair is not None and noise.random() < 0.8 else data


def find_target(name: str) -> Target:
    """By its name, or by `module:name` where it is of another module's `TARGETS`."""
    module, _, own = name.rpartition(":")
    targets = importlib.import_module(module).TARGETS if module else all_targets()
    return next(target for target in targets if target.name == own)


def all_targets() -> list[Target]:
    return [target for module in TARGETS for target in importlib.import_module(module).TARGETS]


def fuzz(name: str, *, seconds: float, first: int = 0, count: int | None = None) -> Outcome:
    """Tries inputs from number `first` on for so many CPU seconds, or `count` of them."""
    outcome, number = Outcome(), first
    end = None if count is None else first + count
    while (
        (end is None or number < end)
        and (end is not None or outcome.cpu_seconds < seconds)
        and len(outcome.failures) < 20
    ):
        number = _one_child(name, number, end, seconds, outcome)
    return outcome


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _one_child(name: str, first: int, end: int | None, seconds: float, outcome: Outcome) -> int:
    """Until all is tried or the child is gone; returns the number to go on with."""
    command = [sys.executable, "-m", "tests.support.fuzzing", name, "--child", f"--first={first}"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    os.set_blocking(child.stderr.fileno(), False)
    trying, pending = first, b""
    try:
        while True:
            before = _cpu_seconds(child.pid)
            if not select.select([child.stdout], [], [], _STUCK_SECONDS)[0]:
                if _cpu_seconds(child.pid) - before > _WORKED_SECONDS:
                    continue
                outcome.failures.append(f"{name} {trying}: stuck for {_STUCK_SECONDS} s")
                return trying + 1
            read = os.read(child.stdout.fileno(), 1 << 16)
            if not read:
                break
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                kind, _, rest = line.decode().partition(" ")
                if kind == "try":
                    trying = int(rest)
                    if (end is not None and trying >= end) or (end is None and outcome.cpu_seconds >= seconds):
                        return trying
                    continue
                used, _, what = rest.partition(" ")
                minute = outcome.cpu_seconds // 60
                outcome.cpu_seconds += float(used)
                if outcome.cpu_seconds // 60 > minute:
                    print(f"{name}: {outcome.describe()} so far", file=sys.stderr, flush=True)
                if kind == "raw":
                    outcome.failures.append(f"{name} {trying}: {what}")
                else:
                    setattr(outcome, kind, getattr(outcome, kind) + 1)
        code = child.wait()
        said = (child.stderr.read() or b"").decode(errors="replace").strip().splitlines()[-1:]
        how = (
            f"hangs for {HANG_SECONDS} s"
            if code == -signal.SIGPROF
            else f"ends the process with {code}: {' '.join(said)}"
        )
        outcome.failures.append(f"{name} {trying}: {how}")
        return trying + 1
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()


def _child(target: Target, number: int) -> None:
    from headrace.transforms.errors import HeadraceError

    with contextlib.suppress(HeadraceError):
        target.feed(_seeds(target)[0])  # imports, and what is made once, count for no input
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    while True:
        print("try", number, flush=True)
        start = time.process_time()
        data = make_input(target, number)
        # Its default action ends the process, wherever that is: C code does not look at exceptions.
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        try:
            target.feed(data)
            kind, what = "read", ""
        except HeadraceError:
            kind, what = "refused", ""
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())[:200]
            kind, what = "raw", f"{type(error).__name__}: {text} in {os.path.basename(place.filename)}:{place.lineno}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(kind, f"{time.process_time() - start:.6f}", what, flush=True)
        number += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _child(find_target(given.names[0]), given.first)
    if given.count == 1:
        find_target(given.names[0]).feed(make_input(find_target(given.names[0]), given.first))
        return 0
    failed = False
    for name in given.names or [target.name for target in all_targets()]:
        outcome = fuzz(name, seconds=60 * given.minutes, first=given.first, count=given.count)
        print(f"{name:12} {outcome.describe()}", flush=True)
        for failure in outcome.failures:
            print(f"  {failure}", flush=True)
        failed = failed or bool(outcome.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
