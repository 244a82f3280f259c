"""The demo's job on one runner after another, held against the Direct runner's output: `python -m tests.support.runners
[NAME …]`.

Every runner is told by flags alone. What one needs is fetched once into --work; what cannot be had is named, and the others
run. Exit code 0: the outputs of all that ran are the same rows in the same order, and every machine computed some. 1: one
differs or failed. 2: a runner that was asked for by name could not run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa

from headrace.pipeline.demo import BUCKET, emulated_bucket, fill
from headrace.transforms.storage import open_store
from tests.support.dask_cluster import dask_cluster
from tests.support.flink_cluster import FLINK, Missing, flink_cluster, job_server_jar, libraries
from tests.support.front import Front, Gate
from tests.support.jobs import read_output
from tests.support.machines import can_be_apart, machines, one_endpoint, python_job_service, served, worker_environment
from tests.support.warm import Warm

ROOT = f"gs://{BUCKET}"
TWO, THREE = 2, 3
_PRISM = "github.com/apache/beam/sdks/v2/go/cmd/prism"


@dataclass(frozen=True)
class Place:
    """Flags that name a runner, and the stores its machines ask; none where the launcher itself predicts."""

    flags: list[str]
    stores: list[Front]


@dataclass(frozen=True)
class Ran:
    """`fetched` and `computed` are the model's fetches and the shards' outputs of each machine; none where one alone runs."""

    seconds: float
    fetched: list[int]
    output: pa.Table | None
    computed: list[int] = field(default_factory=list)


@contextmanager
def direct(work: Path, store: str) -> Iterator[Place]:
    yield Place([], [])


@contextmanager
def processes(work: Path, store: str) -> Iterator[Place]:
    """Two of this machine, which fetch the model once."""
    yield Place([f"--processes={TWO}"], [])


@contextmanager
def portable(work: Path, store: str) -> Iterator[Place]:
    with _pools(TWO, work, store) as (pool, stores), python_job_service(TWO, work) as endpoint:
        yield Place(["--runner=PortableRunner", f"--job_endpoint={endpoint}", *_external(pool)], stores)


@contextmanager
def prism(work: Path, store: str) -> Iterator[Place]:
    """Prism asks for one worker."""
    with _pools(1, work, store) as (pool, stores):
        yield Place(["--runner=PrismRunner", f"--prism_location={_prism_binary(work)}", *_external(pool)], stores)


@contextmanager
def flink(work: Path, store: str) -> Iterator[Place]:
    """Each TaskManager asks for a worker."""
    lib, jar = libraries(work), job_server_jar(work)
    with _pools(TWO, work, store) as (pool, stores), flink_cluster(lib, work / "cluster") as cluster:
        print(f"Flink's page: http://{cluster.master}, until the job is done.", flush=True)
        told = [f"--flink_master={cluster.master}", f"--flink_version={FLINK}", f"--flink_job_server_jar={jar}"]
        yield Place(["--runner=FlinkRunner", *told, f"--parallelism={TWO}", *_external(pool)], stores)


@contextmanager
def dask(work: Path, store: str) -> Iterator[Place]:
    """Three worker processes of one machine, which fetches the model once."""
    if find_spec("distributed") is None:
        raise Missing("Dask: pip install 'headrace[dask]'")
    folder = work / "dask"
    with served(Front(store)) as front, Warm() as warm:
        environment = {**worker_environment(), "STORAGE_EMULATOR_HOST": front.url}
        with dask_cluster(warm, folder, [environment] * THREE) as cluster:
            yield Place(["--runner=DaskRunner", f"--dask_client_address={cluster.address}"], [front])


RUNNERS: dict[str, Callable[..., object]] = {
    "direct": direct,
    "processes": processes,
    "portable": portable,
    "prism": prism,
    "flink": flink,
    "dask": dask,
}


@contextmanager
def _pools(count: int, work: Path, store: str) -> Iterator[tuple[str, list[Front]]]:
    if reason := can_be_apart():
        raise Missing(f"machines apart: {reason}")
    with machines(count, store, work) as pools, one_endpoint([one.endpoint for one in pools]) as pool:
        yield pool, [one.store for one in pools]


def _external(pool: str) -> list[str]:
    return ["--environment_type=EXTERNAL", f"--environment_config={pool}"]


def _prism_binary(work: Path) -> Path:
    """Built with Go once, or the one that PRISM names. Raises `Missing`."""
    from apache_beam.version import __version__ as beam

    if given := os.environ.get("PRISM"):
        if not Path(given).exists():
            raise Missing(f"PRISM={given} is not there")
        return Path(given)
    binary = work / f"prism-{beam}"
    if binary.exists():
        return binary
    if shutil.which("go") is None:
        raise Missing("go is not on the PATH, which builds prism: https://go.dev/doc/install, or PRISM=the binary")
    print(f"Building {_PRISM}@v{beam}, once: this takes some minutes.", flush=True)
    env = {**os.environ, "GOBIN": str(work)}
    run = subprocess.run(["go", "install", f"{_PRISM}@v{beam}"], env=env, capture_output=True, text=True)
    if run.returncode:
        raise Missing(
            f"prism: go install says {(run.stderr.strip().splitlines() or [''])[-1]}; PRISM=the binary names one"
        )
    (work / "prism").rename(binary)
    return binary


def run(name: str, work: Path, behind: str) -> Ran:
    """Raises `Missing`."""
    output = f"{ROOT}/out-{name}"
    # As many units of work as shards: the demo's files are so small that one machine would get them all in one.
    job = [f"--model={ROOT}/models/digits", f"--input={ROOT}/in/*.parquet", f"--output={output}", "--shard_bytes=1"]
    with ExitStack() as ends:
        place: Place = ends.enter_context(RUNNERS[name](work, behind))  # type: ignore[arg-type]
        front = ends.enter_context(served(Front(behind)))
        uploads = [Uploads(one) for one in place.stores]
        command = [sys.executable, "-m", "headrace", *job, *place.flags]
        print(f"\n  $ {' '.join(['python', *command[1:]])}\n", flush=True)
        started = time.monotonic()
        code = subprocess.run(command, env={**worker_environment(), "STORAGE_EMULATOR_HOST": front.url}).returncode
        seconds = time.monotonic() - started
        fetched = [_fetched(one) for one in place.stores or [front]]
        return Ran(seconds, fetched, None if code else read_output(output), [len(one.names) for one in uploads])


class Uploads:
    """The shards' outputs that a machine hands to its store."""

    def __init__(self, store: Front) -> None:
        self.names: set[bytes] = set()
        store.faults.append(self)

    def __call__(self, gate: Gate) -> bool:
        if gate.command == "POST" and "/upload/" in gate.path:
            # In the path, or in the first part of the body.
            self.names.update(re.findall(rb"part-[^\"&?%/]+", gate.path.encode() + gate.body[:4096]))
        return False


def _fetched(store: Front) -> int:
    """How often the machine behind it asked for the largest range of the model's weights; a small one, of names, is read by
    whoever describes the model too.
    """
    ranges = Counter(
        tuple(map(int, headers["Range"].removeprefix("bytes=").split("-")))
        for method, path, headers in store.seen
        if method == "GET" and "variables.data" in path and "alt=media" in path
    )
    return ranges[max(ranges, key=lambda span: span[1] - span[0])] if ranges else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.runners", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("name", nargs="*", help=f"some of {', '.join(RUNNERS)} (default: all)")
    parser.add_argument("--work", type=Path, default=Path("build/runners"), help="folder for what is fetched, and logs")
    asked = parser.parse_args(argv)
    if unknown := set(asked.name) - RUNNERS.keys():
        parser.error(f"there is no runner {', '.join(sorted(unknown))}: choose from {', '.join(RUNNERS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    ran: dict[str, Ran | Missing] = {}
    with emulated_bucket(BUCKET) as address:
        fill(open_store(ROOT), ROOT)
        # The first is what the others are held against.
        for name in dict.fromkeys(["direct", *(asked.name or RUNNERS)]):
            try:
                ran[name] = run(name, work, address)
            except Missing as missing:
                print(f"\n{name} is left out. Missing: {missing}", file=sys.stderr)
                ran[name] = missing
    print(f"\n{table(ran)}")
    if any(isinstance(ran[name], Missing) for name in asked.name):
        return 2
    return 1 if any(isinstance(one, Ran) and not same(one, ran) for one in ran.values()) else 0


def same(one: Ran, ran: dict[str, Ran | Missing]) -> bool:
    reference = ran["direct"]
    if one.output is None or not isinstance(reference, Ran) or reference.output is None:
        return False
    return bool(one.output.num_rows > 0 and one.output.equals(reference.output) and all(one.computed))


def table(ran: dict[str, Ran | Missing]) -> str:
    lines = [
        "| runner | rows | seconds | rows and order | times each machine fetched the model | shards each machine computed |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in ran.items():
        if isinstance(one, Missing):
            lines.append(f"| {name} | - | - | not run: {one} | - | - |")
            continue
        rows = "failed" if one.output is None else f"{one.output.num_rows:,}"
        told = "the reference" if name == "direct" else "identical" if same(one, ran) else "DIFFER"
        if not all(one.computed):
            told = "A MACHINE COMPUTED NOTHING"
        fetched, computed = (", ".join(map(str, each)) for each in (one.fetched, one.computed))
        lines.append(f"| {name} | {rows} | {one.seconds:.0f} | {told} | {fetched} | {computed or 'all'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
