"""The job's graph: what crosses from step to step, and how the plan meets what is in the output already."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.runners.graph import _DropDone, _ListOutput, build_graph
from headrace.transforms.jobs.job import OnError
from headrace.transforms.shards.shard import Shard, ShardResult, output_name
from headrace.transforms.storage import ObjectRef
from tests.support.jobs import put
from tests.support.plans import plain_job

LIMIT = 100


class SideInputs(PipelineVisitor):
    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        if transform_node.side_inputs:
            self.found[transform_node.full_label] = len(transform_node.side_inputs)


def test_no_listing_is_a_side_input() -> None:
    """A side input is fetched for every bundle: what is one in this graph does not grow with the number of shards."""
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build_graph(pipeline, plain_job("memory://nowhere/in/*.parquet"))
    seen = SideInputs()
    pipeline.visit(seen)
    assert {label.partition("(")[0]: count for label, count in seen.found.items()} == {
        "Finalize/ToPart": 1,  # names that begin the manifest's parts
        # These parts, each in a few bytes, and as many failed shards as a job may have; without a report no accounts.
        "Finalize/Finish": 2,
    }


def shard_of(number: int, nbytes: int = 10) -> Shard:
    source = ObjectRef(f"memory://b/{number:04d}.parquet", nbytes, "1")
    job = plain_job("memory://b/*.parquet")
    name = output_name(f"{number:04d}", source, 0, 3, job.fingerprint)
    return Shard(name, source, 0, 3, (0, 1), nbytes)


@given(st.lists(st.integers(0, 120), max_size=200), st.sets(st.integers(0, 199)))
def test_what_is_done_is_dropped_and_the_rest_is_put_together(sizes: list[int], done: set[int]) -> None:
    """A unit of work is one shard, or a few that come to no more than --shard_bytes."""
    drop, job = _DropDone(), plain_job("memory://b/*.parquet", shard_bytes=LIMIT)
    shards = [shard_of(number, nbytes) for number, nbytes in enumerate(sizes)]
    drop.start_bundle()
    made: list[Any] = []
    for number, shard in enumerate(shards):
        made += drop.process((shard.output, [(7, "5", None), shard] if number in done else [shard]), job)
    made += [one.value for one in drop.finish_bundle()]
    results = [one.value for one in made if isinstance(one, TaggedOutput)]
    units = [one for one in made if not isinstance(one, TaggedOutput)]
    assert [result.shard for result in results] == [shard for i, shard in enumerate(shards) if i in done]
    assert all(isinstance(one, ShardResult) and (one.output_bytes, one.output_version) == (7, "5") for one in results)
    assert [shard for unit in units for shard in unit] == [shard for i, shard in enumerate(shards) if i not in done]
    assert all(len(unit) == 1 or sum(shard.nbytes for shard in unit) <= LIMIT for unit in units)
    assert all(0 < len(unit) <= 64 for unit in units)


def test_what_is_in_the_output_and_not_planned_is_nothing_to_do() -> None:
    drop, job = _DropDone(), plain_job("memory://b/*.parquet")
    drop.start_bundle()
    assert not list(drop.process(("other.parquet", [(7, "5", None), True]), job))
    assert not list(drop.finish_bundle())


def test_the_listing_names_outputs_and_whose_dead_letters_are_there(tmp_path: Path) -> None:
    out = f"memory://{tmp_path.name}/out"
    job = plain_job("memory://b/*.parquet", output=out, on_error=OnError(f"{out}/_dead_letters", "1%"))
    names = [output_name(f"{i}", ObjectRef("memory://b/x", 1, "1"), 0, 3, job.fingerprint) for i in range(3)]
    refs = [put(f"{out}/{name}", b"x") for name in names]
    put(f"{out}/notes.parquet", b"x")
    for name in names[:2]:
        put(f"{out}/_dead_letters/{name.removesuffix('.parquet')}-{0:016x}.pq", b"x")
    listed = list(_ListOutput().process(b"", job))
    assert listed[:3] == [(name, (1, ref.version, ref.crc32c)) for name, ref in zip(names, refs, strict=True)]
    assert Counter(listed[3:]) == Counter((name, True) for name in names[:2])
