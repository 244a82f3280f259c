"""What benchmarks/scale.py runs, each in a process of its own: `python -m benchmarks.scale_programs PROGRAM FILES`.

Files are made up: a listing of as many names as asked for, and one real footer of ten row groups that all of them share.
The last line that a program prints is JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from statistics import median
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

import headrace.transforms.storage.memory
from benchmarks import measure
from headrace.pipeline import demo
from headrace.pipeline.checks.output_folder import examine_output, write_record
from headrace.pipeline.checks.preflight import Prepared
from headrace.transforms.beam.plan import PlanShards
from headrace.transforms.columns.plan import ColumnChoice, ColumnPlan
from headrace.transforms.jobs.input_files import expand_lists, survey_inputs
from headrace.transforms.jobs.job import Job, JobModel
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.nested_arrow import schema_of
from headrace.transforms.shards.shard import ShardResult, common_folder
from headrace.transforms.steps.finish import finish, write_part
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from headrace.transforms.storage import ObjectRef, StoreOptions, open_store
from headrace.transforms.storage.memory import MemoryStore

GROUPS = 10
SCHEMA = schema_of({"id": pa.int64(), "label": pa.string(), "features": pa.list_(pa.float32(), 64)})
FOLDER, OUTPUT = "memory://bench/in/", "memory://bench/out"


@cache
def content() -> bytes:
    rows = 100 * GROUPS
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 64, np.float32)), 64)
    columns: list[pa.Array[Any]] = [pa.array(range(rows)), pa.array(["a"] * rows), values]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), sink, row_group_size=100)
    return bytes(sink.getvalue().to_pybytes())


class MadeUpStore(MemoryStore):
    """Lists `files` objects below FOLDER, a thousand in each folder `dt=…`; other objects are a MemoryStore's."""

    files = 0

    def list(self, folder: str) -> Iterator[ObjectRef]:
        if not folder.startswith(FOLDER):
            yield from super().list(folder)
            return
        size = len(content())
        for i in range(self.files):
            yield ObjectRef(f"{FOLDER}dt={i // 1000:05d}/part-{i % 1000:05d}.parquet", size, str(i), 7)

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        if not ref.uri.startswith(FOLDER):
            super().read_into(ref, offset, buffers)
            return
        for buffer in buffers:
            buffer[:] = content()[offset : offset + buffer.nbytes]
            offset += buffer.nbytes


def job(folder: str = FOLDER) -> Job:
    inputs = (f"{folder}**/*.parquet",)
    return Job(
        models=(JobModel(ModelRef("memory://bench/model", "keras", ()), "serving_default", ColumnChoice()),),
        inputs=inputs,
        folder=common_folder(inputs),
        partitions=("dt",),
        output=OUTPUT,
        keep=(),
        input_schema=SCHEMA.append(pa.field("dt", pa.string())).serialize().to_pybytes(),
        batch_rows=1024,
        batch_rule="given",
        shard_bytes=128 << 20,
        limit=None,
        versions=(),
    )


def prepared() -> Prepared:
    patterns = expand_lists(job().inputs, StoreOptions())
    inputs = survey_inputs(patterns, StoreOptions(), lambda _: None)
    return Prepared(job(), (), inputs, ColumnPlan((), (), (), SCHEMA), SCHEMA)


def launcher(files: int) -> None:
    """What the launcher does with a listing: surveys it, and compares it with an empty output."""
    found = prepared()
    examine_output(found, overwrite=False)
    assert found.inputs.files == files


def planning(files: int) -> None:
    """What the workers do, on one worker."""
    count = sum(1 for _ in plan_shards(job(), input_files(job())))
    assert count == files


def transform(_: int) -> None:
    """The same by Beam's local runner, which holds all elements in memory."""
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    _ = pipeline | PlanShards(job())
    pipeline.run().wait_until_finish()


def finished(files: int) -> Callable[[], None]:
    """A job that is done, run again: what its output holds is written before the clock starts."""
    store, results = open_store(OUTPUT), []
    for shard in plan_shards(job(), input_files(job())):
        with store.create(f"{OUTPUT}/{shard.output}") as writer:
            ref = writer.commit()
        results.append(ShardResult(shard, ref.size, ref.version, ref.crc32c, computed=False, predicted_rows=shard.rows))
    write_record(store, job())
    finish(job(), [write_part(job(), 0, results)])

    def again() -> None:
        state = examine_output(prepared(), overwrite=False)
        assert state.complete
        assert state.done == files

    return again


def emulator(files: int) -> dict[str, float]:
    """Real files in a bucket over HTTP, which answers as fast as it can: planned, and by a bare loop, in turn."""
    with demo.emulated_bucket("bench"), ThreadPoolExecutor(16) as threads:
        store = open_store("gs://bench/in/")

        def put(i: int) -> None:
            with store.create(f"gs://bench/{_name(i)}") as writer:
                writer.write(content())
                writer.commit()

        list(threads.map(put, range(files)))
        return _beside_a_bare_loop(files)


def bucket(files: int) -> dict[str, float]:
    """As `emulator`, in a bucket that takes as long to the first byte as a real one does."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        for i in range(files):
            path = f"{folder}/{_name(i)}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content())
        command = measure.python("benchmarks.bucket", folder, "--latency_ms=30")
        with subprocess.Popen(command, cwd=measure.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as served:
            assert served.stdout is not None
            os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{int(served.stdout.readline())}"
            results = _beside_a_bare_loop(files)
            assert served.stdin is not None
            served.stdin.close()
        return results


def _name(i: int) -> str:
    return f"in/dt={i // 1000:05d}/part-{i % 1000:05d}.parquet"


def _beside_a_bare_loop(files: int) -> dict[str, float]:
    """Medians of three, of planning and of a loop that makes the same requests over as many connections."""
    folder = "gs://bench/in/"
    store = open_store(folder)
    spent: dict[str, list[float]] = {"plan": [], "bare": []}
    with ThreadPoolExecutor(16) as threads:
        for _ in range(3):
            start = time.perf_counter()
            assert sum(1 for _ in plan_shards(job(folder), input_files(job(folder)))) == files
            spent["plan"].append(time.perf_counter() - start)
            start = time.perf_counter()
            assert all(threads.map(lambda ref: bool(store.read(ref)), list(store.list(folder))))
            spent["bare"].append(time.perf_counter() - start)
    return {f"{name}_seconds": median(times) for name, times in spent.items()}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(program: str, files: int) -> None:
    if real := {"emulator": emulator, "bucket": bucket}.get(program):
        results = real(files)
        print(json.dumps({"seconds": results["plan_seconds"], "peak": peak(), **results}))
        return
    MadeUpStore.files = files
    headrace.transforms.storage.memory.MemoryStore = MadeUpStore  # type: ignore[misc]  # `open_store` finds it there
    content()
    work = {"launcher": launcher, "planning": planning, "transform": transform}.get(program)
    run = finished(files) if work is None else lambda: work(files)
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak": peak(), "before": before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
