"""Flink on this machine: a JobManager and two TaskManagers, each a process of its own, from the jars that PyPI serves.

Their launch is what bin/jobmanager.sh and bin/taskmanager.sh of Flink's distribution do, which that package has not; since
these compute a TaskManager's memory, it is said here in full.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.machines import await_port, end, free_port

FLINK = "1.20"  # of those that Beam publishes a job server for; --flink_version says the same
_LIBRARIES = "apache-flink-libraries==1.20.5"
_JOB_SERVER = "org.apache.beam:beam-runners-flink-{flink}-job-server:{beam}"
_TASK_MANAGERS = 2
_UP_S = 120.0
# Java 17 hides these from Flink's serialisers; from conf/config.yaml of its distribution.
_OPENED = tuple(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        *("java.lang", "java.lang.reflect", "java.net", "java.text", "java.time", "java.util"),
        *("java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks"),
    )
)
# As many restarts of a job as `attempts`, ten seconds apart: one lost TaskManager takes several until its slots are gone.
# What is done is in the output, and is passed over.
CONFIGURATION = """\
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc}
jobmanager.bind-host: 127.0.0.1
jobmanager.memory.process.size: 1g
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: {rest}
taskmanager.bind-host: 127.0.0.1
taskmanager.host: 127.0.0.1
taskmanager.numberOfTaskSlots: 1
taskmanager.cpu.cores: 1.0
taskmanager.memory.task.heap.size: 384m
taskmanager.memory.task.off-heap.size: 128m
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.network.min: 128m
taskmanager.memory.network.max: 128m
taskmanager.memory.managed.size: 128m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
heartbeat.interval: 1000
heartbeat.timeout: 10000
parallelism.default: {parallelism}
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 10
restart-strategy.fixed-delay.delay: 10 s
io.tmp.dirs: {work}/tmp
"""
_LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss,SSS} %-5p %c - %m%n
"""


class Missing(Exception):
    """What a runner needs and this machine has not, and how to get it."""


@dataclass(frozen=True)
class Cluster:
    """`master` is host and port of its REST service, which Beam's flag --flink_master takes."""

    master: str
    task_managers: list[subprocess.Popen[bytes]]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.master}/{path}", timeout=10) as answer:
            return json.load(answer)

    def registered(self) -> int:
        """TaskManagers that have offered their slot, one each."""
        try:
            return int(self.get("overview")["slots-total"])
        except (urllib.error.URLError, ConnectionError):
            return 0


def libraries(folder: Path) -> Path:
    """Flink's jars, fetched with pip once; `folder` keeps them. Raises `Missing`."""
    lib = folder / f"flink-{_LIBRARIES.partition('==')[2]}"
    if lib.exists():
        return lib
    if shutil.which("java") is None:
        raise Missing("java, 11 or 17, is not on the PATH: apt-get install openjdk-17-jre-headless")
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={folder}", _LIBRARIES]
    run = subprocess.run(pip, capture_output=True, text=True)
    archives = sorted(folder.glob("apache_flink_libraries-*.tar.gz"))
    if run.returncode or not archives:
        raise Missing(f"Flink's jars: pip cannot fetch {_LIBRARIES}: {(run.stderr.strip().splitlines() or [''])[-1]}")
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with tarfile.open(archives[-1]) as archive:
        for member in archive:
            if "/deps/lib/" in member.name and member.name.endswith(".jar"):
                member.name = Path(member.name).name
                archive.extract(member, partial, filter="data")
    archives[-1].unlink()
    partial.rename(lib)
    return lib


def job_server_jar(folder: Path) -> Path:
    """Beam's, fetched with Maven once, or the one that JOB_SERVER names. Raises `Missing`."""
    from apache_beam.version import __version__ as beam

    if given := os.environ.get("JOB_SERVER"):
        if not Path(given).exists():
            raise Missing(f"JOB_SERVER={given} is not there")
        return Path(given)
    artifact = _JOB_SERVER.format(flink=FLINK, beam=beam)
    jar = folder / f"{'-'.join(artifact.split(':')[1:])}.jar"
    if jar.exists():
        return jar
    if shutil.which("mvn") is None:
        raise Missing(f"mvn is not on the PATH, which fetches {artifact}: apt-get install maven, or JOB_SERVER=the jar")
    fetch = [
        "mvn",
        "--batch-mode",
        "--quiet",
        "dependency:copy",
        f"-Dartifact={artifact}",
        f"-DoutputDirectory={folder}",
    ]
    run = subprocess.run(fetch, capture_output=True, text=True)
    if run.returncode or not jar.exists():
        said = re.search(r"(Unable to find|Could not find|Could not transfer)[^.]*", run.stdout + run.stderr)
        reason = f"Maven cannot fetch {artifact}{f' ({said[0]})' if said else ''}"
        raise Missing(f"Beam's Flink job server: {reason}; JOB_SERVER=the jar names one")
    return jar


@contextmanager
def flink_cluster(lib: Path, work: Path) -> Iterator[Cluster]:
    """Configuration and logs lie in `work`. All processes end with the context. Raises `RuntimeError` where none starts."""
    rpc, rest = free_port(), free_port()
    (work / "tmp").mkdir(parents=True, exist_ok=True)
    (work / "config.yaml").write_text(
        CONFIGURATION.format(rpc=rpc, rest=rest, work=work, parallelism=_TASK_MANAGERS), encoding="utf-8"
    )
    (work / "log4j.properties").write_text(_LOGGING, encoding="utf-8")
    runtime = "org.apache.flink.runtime"
    with ExitStack() as ends:

        def start(name: str, heap: str, main: str) -> subprocess.Popen[bytes]:
            log = ends.enter_context((work / f"{name}.log").open("ab"))
            logging = f"-Dlog4j.configurationFile=file:{work}/log4j.properties"
            java = ["java", f"-Xmx{heap}", *_OPENED, logging, "-cp", f"{lib}/*", main, f"--configDir={work}"]
            process = subprocess.Popen(java, stdout=log, stderr=log, start_new_session=True)
            ends.callback(end, process)
            return process

        manager = start("jobmanager", "512m", f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint")
        await_port(f"127.0.0.1:{rest}", manager, _UP_S)
        workers = [
            start(f"taskmanager-{number}", "512m", f"{runtime}.taskexecutor.TaskManagerRunner")
            for number in range(_TASK_MANAGERS)
        ]
        cluster = Cluster(f"127.0.0.1:{rest}", workers)
        deadline = time.monotonic() + _UP_S
        while cluster.registered() < _TASK_MANAGERS:
            if time.monotonic() > deadline or any(worker.poll() is not None for worker in workers):
                raise RuntimeError(f"Flink's TaskManagers do not register; their logs lie in {work}")
            time.sleep(0.2)
        yield cluster
