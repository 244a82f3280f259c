"""What benchmarks/edges.py runs, each in a process of its own: `python -m benchmarks.edges_programs PROGRAM SHARDS FOLDER`.

Inputs and outputs are made up: listings of as many names as asked for. What runs over them is the product's own code. FOLDER
holds what one program leaves to the next. The last line that a program prints is JSON.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

import headrace.transforms.storage.memory
from benchmarks.scale_programs import FOLDER, OUTPUT, MadeUpStore, content, job, peak, prepared
from headrace.pipeline.checks.output_folder import examine_output, write_record
from headrace.pipeline.runners.graph import _DropDone, _ListOutput
from headrace.transforms.beam.finalize import PART_BYTES, Accounts, Finalize, PartBegins, _AddUp
from headrace.transforms.beam.plan import PlanShards
from headrace.transforms.jobs.job import Job
from headrace.transforms.nested_arrow import schema_of
from headrace.transforms.output.manifest import manifest_outputs
from headrace.transforms.report.account import Account
from headrace.transforms.shards.measuring import Process, ShardMeasurements, ShardMeasuring
from headrace.transforms.shards.shard import Shard, ShardResult, output_name
from headrace.transforms.steps.finish import ManifestPart, finish, held_bytes, write_part
from headrace.transforms.storage import ObjectRef, open_store

COLUMNS, ROWS, BUNDLE, WORKERS = 50, 1000, 1000, 10


def shards(count: int) -> Iterator[Shard]:
    """The planned shards in the order of their names, as `PlanShards` makes them of the made-up listing."""
    fingerprint, size = job().fingerprint, len(content())
    for i in range(count):
        stem = f"dt={i // 1000:05d}/part-{i % 1000:05d}"
        source = ObjectRef(f"{FOLDER}{stem}.parquet", size, str(i), 7)
        name = output_name(stem, source, 0, ROWS, fingerprint)
        yield Shard(name, source, 0, ROWS, (0, 10), size, partitions=(("dt", f"{i // 1000:05d}"),))


class MadeUpOutput(MadeUpStore):
    """Lists an output for each shard, too; all other objects are in memory."""

    outputs = 0

    def list(self, folder: str) -> Iterator[ObjectRef]:
        if folder != f"{OUTPUT}/":
            yield from super().list(folder)
            return
        others = list(super().list(folder))
        yield from (ref for ref in others if ref.uri < f"{OUTPUT}/dt")
        for shard in shards(self.outputs):
            yield ObjectRef(f"{OUTPUT}/{shard.output}", 5000, "1", 7)
        yield from (ref for ref in others if ref.uri > f"{OUTPUT}/dt")


@cache
def measurements_of_ten() -> tuple[ShardMeasurements, ...]:
    """Measurements of shards of 50 columns, with ten different contents."""
    schema = schema_of({f"c{i:02d}": pa.float32() for i in range(COLUMNS)})
    made = []
    for seed in range(10):
        draw, measuring = np.random.default_rng(seed), ShardMeasuring(schema, schema.names)
        arrays = [pa.array(draw.normal(i, 1, 8192).astype(np.float32)) for i in range(COLUMNS)]
        measuring.add(pa.RecordBatch.from_arrays(arrays, schema=schema), 0.1)
        measuring.key_values()
        made.append(measuring.measurements())
    return tuple(made)


def result(i: int, shard: Shard, *, with_columns: bool) -> ShardResult:
    seconds = {"read": 0.5, "predict": 2.0, "write": 0.25}
    done = ShardResult(
        shard, 5000, "1", 7, computed=True, predicted_rows=ROWS, batches=1, seconds=seconds, device="cpu"
    )
    if not with_columns:
        return done
    process = Process(f"worker-{i % 100}:7", 1e9, 2.5, 0)
    began = 1e9 + i // 100 * 2.75
    mine = measurements_of_ten()[i % 10]
    return replace(
        done, measurements=ShardMeasurements(mine.columns, began, began + 2.75, mine.batch_seconds, process, 1)
    )


def resume(count: int, _: str) -> None:
    """One worker alone: lists the output, and drops the existing half of a plan."""
    MadeUpOutput.outputs = count // 2
    listed = sum(1 for _ in _ListOutput().process(b"", job()))
    assert listed == count // 2
    drop, asked = _DropDone(), job()
    drop.start_bundle()
    done = 0
    for i, shard in enumerate(shards(count)):
        there: list[Any] = [(5000, "1", 7)] if i % 2 else []
        done += sum(
            isinstance(item, beam.pvalue.TaggedOutput) for item in drop.process((shard.output, [shard, *there]), asked)
        )
    assert done == count // 2


def bundle_account(count: int, first: int = 0) -> Account:
    """What a worker sends on for a bundle of so many shards."""
    adding = _AddUp()
    adding.start_bundle()
    for i, shard in enumerate(shards(count)):
        for _ in adding.process(result(first + i, shard, with_columns=True)):
            """It has no columns any more."""
    (sent,) = adding.finish_bundle()
    account: Account = sent.value.value[1]
    return account


def add_up(count: int, folder: str) -> None:
    """One worker of ten: adds up the measurements of its shards, bundle by bundle."""
    account = Account()
    for first in range(0, count // WORKERS, BUNDLE):
        account = bundle_account(min(BUNDLE, count // WORKERS), first)
    with open(f"{folder}/account", "wb") as file:
        pickle.dump(account, file, protocol=5)


def combine(count: int, folder: str) -> None:
    """One worker, all by itself: the accounts of all bundles, as they come from other machines."""
    with open(f"{folder}/account", "rb") as file:
        sent = file.read()
    adding = Accounts()
    total = adding.create_accumulator()
    for _ in range(max(1, count // BUNDLE)):
        total = adding.add_input(total, pickle.loads(sent))
    total = adding.extract_output(total)
    with open(f"{folder}/whole", "wb") as file:
        pickle.dump(total, file, protocol=5)


def parts(count: int, folder: str) -> None:
    """One worker, all by itself: where the manifest's parts begin, and each part, one after the other."""
    sizes, nbytes = PartBegins(PART_BYTES), held_bytes(result(0, next(shards(1)), with_columns=False))
    drawn = sizes.create_accumulator()
    for shard in shards(count):
        drawn = sizes.add_input(drawn, (shard.output, nbytes))
    begins = [*sizes.extract_output(drawn), "~"]
    written, number = [], 0
    held: list[ShardResult] = []
    for i, shard in enumerate(shards(count)):
        if shard.output >= begins[number]:
            written.append(write_part(asked(), number, held))
            number, held = number + 1, []
        held.append(result(i, shard, with_columns=False))
    written.append(write_part(asked(), number, held))
    _keep(folder, "parts", written)


def last(count: int, folder: str) -> None:
    """The worker of the last step: compares the manifest with the listing, writes `_SUCCESS` and the report."""
    written: list[ManifestPart] = _kept(folder, "parts")
    with open(f"{folder}/whole", "rb") as file:
        accounts = [pickle.load(file)] * 16
    MadeUpOutput.outputs = count
    assert finish(asked(), written, accounts)["shards"] == count
    write_record(open_store(OUTPUT), asked())
    _keep(folder, "done", None)


def again(count: int, folder: str) -> None:
    """The launcher: the same command again, when all is done."""
    _kept(folder, "done")
    MadeUpOutput.files = MadeUpOutput.outputs = count
    state = examine_output(prepared(), overwrite=False)
    assert state.complete
    assert state.done == count


def local(count: int, _: str) -> None:
    """The whole graph but for predicting, on Beam's local runner, which holds all elements in this process."""
    MadeUpOutput.files = count

    def predicted(shard: Shard) -> ShardResult:
        return result(int(shard.source.version), shard, with_columns=True)

    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    planned = pipeline | "Plan" >> PlanShards(asked())
    named = planned | "Name" >> beam.Map(lambda shard: (shard.output, shard))
    listed = pipeline | "Output" >> beam.Impulse() | "ListOutput" >> beam.ParDo(_ListOutput(), asked())
    joined = (named, listed) | "Both" >> beam.Flatten() | "JoinByName" >> beam.GroupByKey()
    split = joined | "Resume" >> beam.ParDo(_DropDone(), asked()).with_outputs("done", main="todo")
    computed = split.todo | beam.Reshuffle() | beam.FlatMap(lambda unit: [predicted(shard) for shard in unit])

    def then_all_stand(result: ShardResult) -> ShardResult:
        MadeUpOutput.outputs = count
        return result

    (planned, split.done, computed | beam.Map(then_all_stand)) | "Finalize" >> Finalize(asked())
    pipeline.run().wait_until_finish()
    store = open_store(OUTPUT)
    manifest = [ref for ref in store.list(f"{OUTPUT}/") if "/_manifest/" in ref.uri]
    assert sum(1 for _ in manifest_outputs(store, manifest)) == count


@cache
def asked() -> Job:
    return replace(job(), report="memory://bench/report.html")


def _keep(folder: str, name: str, value: Any) -> None:
    with open(f"{folder}/{name}", "wb") as file:
        pickle.dump((value, headrace.transforms.storage.memory.OBJECTS), file, protocol=5)


def _kept(folder: str, name: str) -> Any:
    with open(f"{folder}/{name}", "rb") as file:
        value, objects = pickle.load(file)
    headrace.transforms.storage.memory.OBJECTS.update(objects)
    return value


PROGRAMS: dict[str, Callable[[int, str], None]] = {
    program.__name__: program for program in (resume, add_up, combine, parts, last, again, local)
}


def main(program: str, count: int, folder: str) -> None:
    headrace.transforms.storage.memory.MemoryStore = MadeUpOutput  # type: ignore[misc]  # `open_store` finds it there
    content()
    if program in ("add_up", "local"):
        measurements_of_ten()
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    PROGRAMS[program](count, folder)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak": peak(), "before": before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
