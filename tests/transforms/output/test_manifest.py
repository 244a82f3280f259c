"""The manifest in parts, held against the output folder; a finished job run again."""

import hashlib
import json
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.checks.output_folder import write_record
from headrace.pipeline.checks.preflight import prepare
from headrace.pipeline.cli import main
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.transforms.beam.finalize import Finalize, PartBegins
from headrace.transforms.errors import NotParquet, OutputConflict, OutputIncomplete
from headrace.transforms.jobs.job import Job
from headrace.transforms.output.manifest import add_name, manifest_outputs, part_claim
from headrace.transforms.shards.column_statistics import Column
from headrace.transforms.shards.measuring import ShardMeasurements
from headrace.transforms.shards.shard import Shard, ShardResult, output_name
from headrace.transforms.steps.finish import finish, held_bytes, write_part
from headrace.transforms.steps.plan_shards import input_files, plan_shards
from headrace.transforms.storage import ObjectRef, open_store
from headrace.transforms.storage.memory import MemoryStore
from tests.support.finishing import finalize
from tests.support.jobs import model_folder, put, put_inputs
from tests.support.plans import plain_job

Capture = pytest.CaptureFixture[str]


def written(job: Job, count: int) -> list[ShardResult]:
    """Results of so many shards, and objects of their names, in no order."""
    results = []
    for i in sorted(range(count), key=lambda i: i * 7919 % 1009):
        source = ObjectRef(f"memory://b/{i % 3}/{i}.parquet", 10, str(i))
        name = output_name(f"{i % 3}/{i}", source, 0, i, job.fingerprint)
        ref = put(f"{job.output}/{name}", b"anything")
        shard = Shard(name, source, 0, i, (0, 1), 10)
        results.append(ShardResult(shard, ref.size, ref.version, ref.crc32c, computed=False, predicted_rows=i))
    return results


def job_in(tmp_path: Path) -> Job:
    return plain_job(f"memory://{tmp_path.name}/in/*.parquet", output=f"memory://{tmp_path.name}/out")


def test_a_damaged_page_of_a_part_is_told(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    name = write_part(job, 0, written(job, 600)).name
    store = open_store(job.output)
    damaged = bytearray(store.read(store.stat(f"{job.output}/{name}")))
    damaged[60:400] = bytes(340)
    ref = put(f"{job.output}/other.parquet", bytes(damaged))
    with pytest.raises(NotParquet, match=r"other\.parquet cannot be read"):
        list(manifest_outputs(store, [ref]))


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    names = pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<3i", 0, 1, 2)), pa.py_buffer(b"a\xff"))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"output": names}), sink)
    ref = put(f"{job_in(tmp_path).output}/other.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(NotParquet, match=r"other\.parquet cannot be read as a part of the manifest"):
        list(manifest_outputs(open_store(ref.uri), [ref]))


@given(st.lists(st.text(max_size=3), max_size=3), st.lists(st.text(max_size=3), max_size=3))
def test_digests_are_equal_for_the_same_names_alone(names: list[str], others: list[str]) -> None:
    def digest(some: list[str]) -> bytes:
        made = hashlib.sha256()
        for name in some:
            add_name(made, name.replace("\0", ""))  # no object's name has it
        return made.digest()

    assert digest(names) == digest(names)
    assert (digest(names) == digest(others)) == (
        [n.replace("\0", "") for n in names] == [n.replace("\0", "") for n in others]
    )
    assert digest(names) != digest([*names, "more"])
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def finalized(job: Job, results: list[ShardResult], **bounds: int) -> dict[str, Any]:
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        given = pipeline | beam.Create(results)
        (given | beam.Map(lambda result: result.shard), given) | Finalize(job, **bounds)
    store = open_store(job.output)
    return dict(json.loads(store.read(store.stat(f"{job.output}/_SUCCESS"))))


@pytest.mark.parametrize("part_rows", [50, 1000])
def test_parts_are_bounded_and_sort_as_the_outputs_do(tmp_path: Path, part_rows: int) -> None:
    job = job_in(tmp_path)
    results = written(job, 600)
    mark, store = finalized(job, results, part_bytes=part_rows * held_bytes(results[0])), open_store(job.output)
    assert (mark["shards"], mark["rows"]) == (600, sum(range(600)))
    assert len(mark["manifest"]) == -(-600 // part_rows)
    parts = [store.stat(f"{job.output}/{part}") for part in mark["manifest"]]
    names = list(manifest_outputs(store, parts))
    assert names == sorted(result.shard.output for result in results)
    assert all(pq.read_metadata(store.open_arrow(part)).num_rows <= part_rows for part in parts)


def test_the_manifest_is_the_same_to_the_byte_whatever_the_order(tmp_path: Path) -> None:
    """And whatever each result tells for the report, which is no part of it."""
    job = job_in(tmp_path)
    results = written(job, 300)
    first = finalized(job, results, part_bytes=100 * held_bytes(results[0]))
    store = open_store(job.output)
    store.delete(store.stat(f"{job.output}/_SUCCESS"))
    told = [
        replace(result, measurements=ShardMeasurements((Column(f"{i}", "double"),)))
        for i, result in enumerate(reversed(results))
    ]
    assert len(first["manifest"]) == 3
    assert finalized(job, told, part_bytes=100 * held_bytes(results[0])) == first


def test_a_result_of_many_joined_files_counts_as_many_bytes(tmp_path: Path) -> None:
    (result,) = written(job_in(tmp_path), 1)
    joined = replace(result.shard, joined=(result.shard,) * 1000)
    assert held_bytes(replace(result, shard=joined)) > 100 * held_bytes(result)
    halved = replace(result, of_parts=((0, 0, ((0, 8), (8, 4))),) * 1000)
    assert held_bytes(halved) > 100 * held_bytes(result)


SIZES = st.integers(1, 9)


@given(st.lists(st.tuples(st.text(max_size=3), SIZES), min_size=1, max_size=80), st.integers(9, 90), st.integers(1, 5))
def test_part_begins_do_not_depend_on_how_names_are_bundled(
    names: list[tuple[str, int]], part_bytes: int, bundles: int
) -> None:
    combine = PartBegins(part_bytes)
    split: list[Any] = [combine.create_accumulator() for _ in range(bundles)]
    whole = combine.create_accumulator()
    for i, named in enumerate(names):
        split[i % bundles] = combine.add_input(split[i % bundles], named)
        whole = combine.add_input(whole, named)
    begins = combine.extract_output(combine.merge_accumulators(split))
    assert begins == combine.extract_output(whole) == sorted(begins)
    assert len(begins) < -(-sum(nbytes for _, nbytes in names) // part_bytes)
    if len({name for name, _ in names}) == len(names):
        sizes: Counter[int] = Counter()
        for name, nbytes in names:
            sizes[sum(begin <= name for begin in begins)] += nbytes
        assert max(sizes.values()) < part_bytes + 9


@pytest.mark.parametrize("number", [0, 57, 99])
def test_a_file_that_has_vanished_is_named(tmp_path: Path, number: int) -> None:
    job = job_in(tmp_path)
    results = sorted(written(job, 100), key=lambda result: result.shard)
    gone = results[number].shard.output
    store = open_store(job.output)
    store.delete(store.stat(f"{job.output}/{gone}"))
    with pytest.raises(OutputIncomplete, match=rf"{gone} has vanished.*100 prediction files.*Found: 99"):
        finalize(job, results)


def test_a_file_that_is_no_part_of_the_plan_is_named(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    *results, stray = sorted(written(job, 100), key=lambda result: result.shard)
    with pytest.raises(OutputConflict, match=rf"{stray.shard.output} is not part of this job.*the 99 files.*1 more"):
        finalize(job, results)
    assert not [ref for ref in open_store(job.output).list(f"{job.output}/") if "_SUCCESS" in ref.uri]


def test_an_equal_job_that_was_first_may_have_removed_our_parts(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    results = written(job, 20)
    store, late = open_store(job.output), [write_part(job, 0, results)]
    first = finish(job, [write_part(job, 1, results)])
    assert finish(job, late) == first
    (part,) = store.list(f"{job.output}/_manifest/")
    assert part.uri.endswith(first["manifest"][0])
    store.delete(store.stat(f"{job.output}/_SUCCESS"))
    store.delete(part)
    with pytest.raises(OutputIncomplete, match=r"A part of the manifest has vanished.*part-00000"):
        finish(job, late)


def test_a_finished_job_run_again_lists_twice_and_opens_no_input(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs are no Parquet files at all here: nothing but their names is looked at."""
    folder, shards = f"memory://{tmp_path.name}", 2000
    (first,) = put_inputs(f"{folder}/in", [3])
    store = open_store(folder)
    content = store.read(store.stat(first))
    for i in range(1, shards):
        put(f"{folder}/in/part-{i:05d}.parquet", content)
    argv = [f"--model={model_folder()}/saved_model", f"--input={folder}/in/*", f"--output={folder}/out"]
    job = prepare(parse_request(parse_flags(argv), "run")).job
    results = []
    for shard in plan_shards(job, input_files(job)):
        ref = put(f"{job.output}/{shard.output}", b"")
        results.append(ShardResult(shard, ref.size, ref.version, ref.crc32c, computed=False, predicted_rows=3))
    write_record(store, job)
    finish(job, [write_part(job, 0, results[:700]), write_part(job, 1, results[700:])])

    listed: Counter[str] = Counter()
    read: Counter[str] = Counter()
    plain_list, plain_read = MemoryStore.list, MemoryStore.read_into
    monkeypatch.setattr(MemoryStore, "list", lambda self, of: (listed.update([of]), plain_list(self, of))[1])
    monkeypatch.setattr(
        MemoryStore, "read_into", lambda self, ref, *where: (read.update([ref.uri]), plain_read(self, ref, *where))[1]
    )
    assert main(argv) == 0
    assert f"Nothing to do: all {shards:,} shards are" in capfd.readouterr().out
    assert listed == {f"{folder}/in/": 1, f"{folder}/out/": 1}
    assert not [uri for uri in read if "/in/" in uri]
    assert {uri.split("/out/")[1].split("/")[0] for uri in read if "/out/" in uri} == {
        "_SUCCESS",
        "_manifest",
        "_headrace",
    }


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("part-00003-00000012-0123456789abcdef.pq", 12),
        ("failed-00000007-0123456789abcdef.pq", 7),
        ("part-00003-0123456789abcdef.parquet", 0),  # of an earlier version
        ("part-of-another-program.pq", 0),
    ],
)
def test_a_part_of_the_manifest_says_by_its_name_which_claim_it_is_of(name: str, claim: int) -> None:
    assert part_claim(f"_manifest/{name}") == claim
