"""--processes: worker processes of this machine give what threads give; a process that dies, or a signal, ends the job."""

from __future__ import annotations

import _thread
import json
import logging
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pytest

from headrace.pipeline.cli import main
from headrace.pipeline.flags.beam_options import PredictOptions, parse_flags
from headrace.pipeline.runners.local_processes import local_runner, run_in_processes
from headrace.transforms import progress
from headrace.transforms.container_limits import usable_cores
from headrace.transforms.errors import JobError
from headrace.transforms.predicting.devices import cores, share_cores
from headrace.transforms.steps.shard_log import name_running_of_processes, running
from tests.support.front import Front
from tests.support.jobs import put_inputs, put_model, read_output
from tests.support.machines import served

COUNTS = (30, 20, 40, 10, 50, 30)


def warned(batch: Any) -> Any:
    if 175 in batch["id"].to_pylist():
        logging.getLogger("a.function").warning("at row 175 of process %d", os.getpid())
    return batch


def test_processes_give_what_threads_give(
    bucket: str,
    emulator: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_model("saved_model", f"{bucket}/m")
    put_inputs(f"{bucket}/in", COUNTS)
    job = [f"--model={bucket}/m", f"--input={bucket}/in/*.parquet", "--shard_bytes=1", "--json"]
    job += ["--preprocess=tests.pipeline.runners.test_local_processes:warned"]
    with served(Front(emulator)) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        assert main([*job, f"--output={bucket}/out", "--processes=2"]) == 0
        reads = Counter(
            (path, headers.get("Range"))
            for method, path, headers in front.seen
            if method == "GET" and "variables.data" in path and "alt=media" in path
        )
    # The checkpoint's object graph, which names the weights, is read by each.
    assert len(reads) == 2
    assert min(reads.values()) == 1
    told = capfd.readouterr()
    assert f"{sum(COUNTS)} of {sum(COUNTS)} rows" in told.err
    assert "Traceback" not in told.err
    summary = json.loads(told.out)
    assert (summary["rows"], summary["rows_computed"]) == (sum(COUNTS), sum(COUNTS))
    (record,) = [record for record in caplog.records if record.name == "a.function"]
    assert re.fullmatch(r"\[shard part-00005-\S+, attempt 1, step .*\] at row 175 of process \d+", record.getMessage())
    assert not record.getMessage().endswith(f" {os.getpid()}")

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    assert main([*job, f"--output={bucket}/threads"]) == 0
    assert read_output(f"{bucket}/out").equals(read_output(f"{bucket}/threads"))


@pytest.fixture
def processes() -> Iterator[tuple[PredictOptions, Callable[[], object]]]:
    """Flags for two processes, and a pipeline with them that is ready to run."""
    options = parse_flags(["--processes=2"])
    pipeline = beam.Pipeline(runner=local_runner(options), options=options)
    pipeline | beam.Create([1, 2, 3])
    yield options, pipeline.run
    progress.reset()


def worker_processes() -> list[int]:
    """Of this process, as the kernel knows them."""
    here = os.getpid()
    found = []
    for thread in os.listdir(f"/proc/{here}/task"):
        found += [int(child) for child in _text_of(f"/proc/{here}/task/{thread}/children").split()]
    return [child for child in found if "local_worker" in _text_of(f"/proc/{child}/cmdline")]


def _text_of(path: str) -> str:
    """A file under /proc of a thread or process; empty if that has ended in the meantime."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def once_they_run(what: Callable[[int], object]) -> None:
    """`what` is done, in a thread, with one of the two."""

    def wait() -> None:
        while len(found := worker_processes()) < 2:
            pass
        what(found[0])

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.timeout(60)
def test_a_process_that_dies_ends_the_job(
    processes: tuple[PredictOptions, Callable[[], object]], caplog: pytest.LogCaptureFixture
) -> None:
    once_they_run(lambda process: os.kill(process, signal.SIGKILL))
    with pytest.raises(
        JobError, match=r"^A worker process ended before its work was done\. Found: process \d+: SIGKILL\."
    ):
        run_in_processes(*processes)
    assert worker_processes() == []
    assert "direct_num_workers" not in caplog.text, "Beam's warning about its own flags"


@pytest.mark.timeout(60)
def test_what_interrupts_the_launcher_ends_its_processes(
    processes: tuple[PredictOptions, Callable[[], object]],
) -> None:
    once_they_run(lambda _: _thread.interrupt_main())
    with pytest.raises(KeyboardInterrupt):
        run_in_processes(*processes)
    assert worker_processes() == []


def test_what_processes_count_is_added_and_their_shards_are_named() -> None:
    progress.reset()
    progress.add(rows_planned=40, rows_done=3)
    there = progress.Snapshot(rows_done=4, storage_retries=2, model_ready=True)
    progress.count_processes(lambda: [there, progress.Snapshot(rows_done=1)])
    try:
        assert progress.snapshot() == progress.Snapshot(
            rows_planned=40, rows_done=8, storage_retries=2, model_ready=True
        )
        name_running_of_processes(lambda: ["b", "a"])
        assert running() == ["a", "b"]
    finally:
        name_running_of_processes(tuple)
        progress.reset()
    assert progress.snapshot() == progress.Snapshot()


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_processes_divide_the_cores(count: int) -> None:
    share_cores(count)
    try:
        assert cores() >= 1
        assert (cores() - 1) * count < usable_cores() <= cores() * count
    finally:
        share_cores(1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--processes=0"], "--processes=0 is out of range. Expected: 1 or more"),
        (["--processes=2", "--runner=DaskRunner"], "--processes=2 is for jobs on this machine alone"),
        (
            ["--processes=2", "--direct_running_mode=multi_processing"],
            "--processes=2 and Beam's own flags for local workers contradict each other",
        ),
    ],
)
def test_flags_that_contradict_it_are_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model=m", "--input=in", "--output=out", *flags]) == 2
    assert said in capsys.readouterr().err
