"""Runs of whole jobs over one in-memory folder, store operation by store operation, in every order that a schedule says.

The real functions examine, claim, plan, commit and finish; the model is left out, so that a prediction is the kept columns.
Each run is a thread that stops before each operation on the output folder until the schedule lets it go on. A run that
crashes does nothing any more.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.pipeline.checks.output_folder import check_overwritten, claim_output, examine_output
from headrace.pipeline.checks.preflight import Prepared
from headrace.transforms.columns.plan import ColumnChoice, ColumnPlan
from headrace.transforms.errors import HeadraceError, StorageError
from headrace.transforms.jobs.input_files import survey_inputs
from headrace.transforms.jobs.job import SUCCESS, Job, JobModel
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.output.claims import check_claim
from headrace.transforms.output.dead_letters import list_dead_letters
from headrace.transforms.output.manifest import each_finished, manifest_versions
from headrace.transforms.predicting.predictor import Predictor
from headrace.transforms.shards.shard import parse_output_name
from headrace.transforms.steps.finish import finish, write_part
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from headrace.transforms.steps.predict_shard import found_result, predict_shard
from headrace.transforms.storage import ObjectRef, StoreOptions, memory, open_store
from tests.support.jobs import put_table, rows
from tests.support.loose import loose
from tests.support.plans import plain_job

# In the job's record alone.
MODEL = JobModel(ModelRef("memory://m.tflite", "tflite", ()), "serving_default", ColumnChoice())
_here = threading.local()
_folders = itertools.count()
_MemoryStore = memory.MemoryStore


class Crash(BaseException):
    """The process is gone."""


class SteppedStore(_MemoryStore):
    """Asks the schedule before each operation below an output folder. With `by_content`, versions are digests, as S3's are."""

    by_content = False

    def stat(self, uri: str) -> ObjectRef:
        _step("stat", uri)
        return super().stat(uri)

    def list(self, folder: str) -> Iterator[ObjectRef]:
        _step("list", folder)
        yield from list(super().list(folder))

    def read_into(self, ref: ObjectRef, offset: int, buffers: Sequence[memoryview]) -> None:
        super().read_into(ref, offset, buffers)

    def publish(self, source: ObjectRef, uri: str) -> ObjectRef:
        _step("publish", uri)
        return _by_content(super().publish(source, uri))

    def delete(self, ref: ObjectRef) -> None:
        _step("delete", ref.uri)
        super().delete(ref)

    def create(self, uri: str) -> Any:
        writer = super().create(uri)
        commit = writer.commit

        def stepped() -> ObjectRef:
            _step("commit", uri)
            return _by_content(commit())

        writer.commit = stepped  # type: ignore[method-assign]
        return writer


def _by_content(ref: ObjectRef) -> ObjectRef:
    if not SteppedStore.by_content:
        return ref
    data = memory.OBJECTS[ref.uri][1]
    ref = replace(ref, version=hashlib.md5(data, usedforsecurity=False).hexdigest())
    memory.OBJECTS[ref.uri] = ref, data
    return ref


def _step(verb: str, uri: str) -> None:
    run = getattr(_here, "run", None)
    if run is not None and "/out" in uri:
        run.step(verb, uri)


@dataclass
class Run:
    """`inputs` name the versions of the two input files that it finds. `code` is None while it runs, and after a crash."""

    folder: str
    inputs: str
    flags: tuple[str, ...] = ()
    code: int | None = None
    lie: str = ""
    said: str = ""
    crashed: bool = False
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._begun = self.ended = False

    def step(self, verb: str, uri: str) -> None:
        if not self.crashed:
            self._stopped.release()
            self._go.acquire()
        if self.crashed:
            raise Crash
        self.steps.append(f"{verb} {uri.removeprefix(self.folder)}")

    def advance(self, steps: int | None) -> None:
        """So many operations, or to its end."""
        if not self._begun:
            self._begun = True
            put_inputs(self.folder, self.inputs)
            self._thread.start()
            self._stopped.acquire()
        while not self.ended and (steps is None or steps > 0):
            self._go.release()
            self._stopped.acquire()
            steps = None if steps is None else steps - 1

    def crash(self) -> None:
        if self._begun and not self.ended:
            self.crashed = True
            self._go.release()
            self._stopped.acquire()

    def _run(self) -> None:
        _here.run = self
        try:
            job = command(self.folder, self.flags)
            self.code = 0
            _here.run = None
            self.lie = lie_of(job)
        except HeadraceError as error:
            self.code, self.said = 1, str(error)
        except Crash:
            pass
        except BaseException as error:
            self.code, self.lie = 70, f"{type(error).__name__}: {error}"
        finally:
            self.ended = True
            self._stopped.release()


_tables: dict[tuple[str, int], tuple[ObjectRef, bytes]] = {}


def put_inputs(folder: str, versions: str) -> None:
    """`versions` has a letter for each file; the same letter is the same object, generation and all. `-` is none."""
    for number, version in enumerate(versions):
        uri = f"{folder}/in/{number}.parquet"
        memory.OBJECTS.pop(uri, None)
        if version == "-":
            continue
        if (version, number) not in _tables:
            put_table("memory://tables/in/x", rows(100 * (ord(version) - ord("a")) + 10 * number, 2))
            _tables[version, number] = memory.OBJECTS.pop("memory://tables/in/x")
        ref, data = _tables[version, number]
        memory.OBJECTS[uri] = replace(ref, uri=uri), data


def prepared_job(folder: str, flags: Sequence[str]) -> Prepared:
    job = plain_job(f"{folder}/in/*.parquet", output=f"{folder}/out", incremental="incremental" in flags)
    job = replace(job, models=(MODEL,), keep=("id",), batch_rule="other" if "other" in flags else "given")
    inputs = survey_inputs(job.inputs, StoreOptions(), lambda _: None)
    nothing: Any = None
    return Prepared(job, (), inputs, nothing, nothing)


def command(folder: str, flags: Sequence[str]) -> Job:
    """What `headrace run` does, without a model and without Beam."""
    prepared, overwrite = prepared_job(folder, flags), "overwrite" in flags
    output = prepared.job.output
    standing = examine_output(prepared, overwrite=overwrite)
    if "clean" in flags:
        open_store(output).clean(f"{output}/")
    if standing.complete:
        return prepared.job
    check_overwritten(prepared, standing, overwrite=overwrite)
    job = claim_output(prepared, standing, overwrite=overwrite)
    sink, source = open_store(output), open_store(job.folder)
    shards = list(plan_shards(job, input_files(job)))
    found = dict(each_finished(output, StoreOptions()))
    letters = {name for name, _ in list_dead_letters(job)}
    predictor = Predictor(plan(), [])
    results = []
    for shard in shards:
        there = found.get(shard.output)
        if there is not None:
            results.append(found_result(job, there, shard, shard.output in letters))
        else:
            results.append(predict_shard(job, predictor, source, sink, shard))
    finish(job, [write_part(job, 0, results)])
    try:
        sink.read(sink.stat(f"{output}/{SUCCESS}"))
    finally:
        check_claim(job, sink)
    return job


def plan() -> ColumnPlan:
    """Of a job that keeps a column and predicts nothing."""
    return ColumnPlan((), ("id",), ("id",), pa.schema([rows(0, 1).schema.field("id")]))


def ids(folder: str, names: Sequence[str]) -> list[int]:
    store = open_store(folder)
    found: list[int] = []
    for name in names:
        table = pq.read_table(store.open_arrow(store.stat(f"{folder}/{name}")), columns=["id"])
        found += loose(table["id"].to_pylist())
    return sorted(found)


def wanted(versions: str) -> list[int]:
    return sorted(
        row
        for number, version in enumerate(versions)
        if version != "-"
        for row in range(
            100 * (ord(version) - ord("a")) + 10 * number, 100 * (ord(version) - ord("a")) + 10 * number + 2
        )
    )


def standing_outputs(output: str) -> list[str]:
    names = [ref.uri.removeprefix(f"{output}/") for ref in open_store(output).list(f"{output}/")]
    return [name for name in names if parse_output_name(name) is not None]


def mark_of(output: str) -> dict[str, Any] | None:
    found = memory.OBJECTS.get(f"{output}/{SUCCESS}")
    return None if found is None else dict(json.loads(found[1]))


def lie_of(job: Job) -> str:
    """Of a run that ends with exit code 0, at that moment."""
    mark = mark_of(job.output)
    if mark is None:
        return "exit code 0 without a mark"
    if mark["fingerprint"] != job.fingerprint:
        return "exit code 0 under another job's mark"
    return ""


def lie_in(output: str, seen: Sequence[str], *, crashed: bool) -> str:
    """What a standing `_SUCCESS` says that is not so: `seen` are the inputs of the runs, of which it must be one's."""
    mark = mark_of(output)
    if mark is None:
        return ""
    store = open_store(output)
    try:
        parts = [store.stat(f"{output}/{part}") for part in mark["manifest"]]
        named = list(manifest_versions(store, parts))
        for name, version in named:
            if store.stat(f"{output}/{name}").version != version:
                return f"{name} is another version than the manifest names"
    except StorageError as error:
        return f"the manifest names what is gone: {error}"
    found = ids(output, [name for name, _ in named])
    if found not in [wanted(versions) for versions in seen]:
        return f"rows {found} are none that a run saw"
    there = standing_outputs(output)
    if not crashed and there != [name for name, _ in named]:
        return f"beside the manifest stand {sorted(set(there) - {name for name, _ in named})}"
    return ""


def new_folder() -> str:
    return f"memory://schedules/{next(_folders)}"


def clear() -> None:
    memory.OBJECTS.clear()


Schedule = Callable[[Sequence[Run]], None]


def check(
    before: Sequence[tuple[str, tuple[str, ...]]], runs: Sequence[tuple[str, tuple[str, ...]]], do: Schedule
) -> str:
    """The lie that a schedule ends with, "" for none. `before` ran to their ends one after the other."""
    folder = new_folder()
    clear()
    for inputs, flags in before:
        one = Run(folder, inputs, flags)
        one.advance(None)
        assert one.code == 0, one.said or one.lie
    started = [Run(folder, inputs, flags) for inputs, flags in runs]
    do(started)
    lies = [f"run {number} {run.flags}: {run.lie}" for number, run in enumerate(started) if run.lie]
    seen = [inputs for inputs, _ in (*before, *runs)]
    if lie := lie_in(f"{folder}/out", seen, crashed=any(run.crashed for run in started)):
        lies.append(lie)
    return "; ".join(lies) + (f" {[(run.code, run.said, run.steps) for run in started]}" if lies else "")
