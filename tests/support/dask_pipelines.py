"""Small pipelines, each of one kind of step: `python -m tests.support.dask_pipelines` runs them on Beam's own Dask runner.

That has to be a process of its own, which never imports our flags: its options and ours declare the same one. It prints a JSON
object: what each pipeline's last collection holds, or the error that ended it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsList, TaggedOutput
from apache_beam.transforms.window import GlobalWindows

FOUND: list[Any] = []


def keep(one: Any) -> None:
    FOUND.append(one)


def run(runner: Any, address: str, build: Callable[[beam.Pipeline], Any]) -> tuple[list[Any], Any]:
    """What the last collection holds; the workers are threads of this process."""
    FOUND.clear()
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([f"--dask_client_address={address}"]))
    build(pipeline) | "Keep" >> beam.Map(keep)
    result = pipeline.run()
    result.wait_until_finish()
    return sorted(FOUND, key=repr), result


class Late(beam.DoFn):
    """Gives its elements when the bundle ends."""

    def start_bundle(self) -> None:
        self._kept: list[Any] = []

    def process(self, one: Any) -> None:
        self._kept.append(one)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._kept)


class Bundles(beam.DoFn):
    """Which bundle each element came in."""

    def start_bundle(self) -> None:
        self._first: Any = None

    def process(self, one: Any) -> Iterator[Any]:
        self._first = one if self._first is None else self._first
        yield self._first


def parity(one: int) -> Iterator[Any]:
    yield one if one % 2 == 0 else TaggedOutput("odd", one)


def impulse(pipeline: beam.Pipeline) -> Any:
    return pipeline | beam.Impulse() | beam.FlatMap(lambda _: range(6))


def tags(pipeline: beam.Pipeline) -> Any:
    both = pipeline | beam.Create(range(6)) | beam.FlatMap(parity).with_outputs("odd", main="even")
    return both.odd


def side_inputs(pipeline: beam.Pipeline) -> Any:
    some = pipeline | "Some" >> beam.Create([10, 20]) | beam.Map(computed)
    many = pipeline | "Many" >> beam.Create(range(400))  # two tasks of Beam's runner
    return many | beam.Map(lambda one, side: one + sum(side), AsList(some)) | beam.Filter(lambda one: one > 427)


def finish_bundle(pipeline: beam.Pipeline) -> Any:
    return pipeline | beam.Create(range(6)) | beam.ParDo(Late())


def reshuffle(pipeline: beam.Pipeline) -> Any:
    return pipeline | beam.Create([range(6)]) | beam.FlatMap(list) | beam.Reshuffle() | beam.ParDo(Bundles())


COMPUTED: list[int] = []


def computed(one: int) -> int:
    COMPUTED.append(one)
    return one


WANTED: dict[str, tuple[Callable[[beam.Pipeline], Any], list[Any]]] = {
    "impulse": (impulse, list(range(6))),
    "finish_bundle": (finish_bundle, list(range(6))),
    "tags": (tags, [1, 3, 5]),
    "side_inputs": (side_inputs, [428, 429]),
    "reshuffle": (reshuffle, list(range(6))),
}


def main() -> None:
    import distributed
    from apache_beam.runners.dask.dask_runner import DaskRunner

    logging.disable(logging.CRITICAL)
    said: dict[str, Any] = {}
    how = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster:  # type: ignore[no-untyped-call]
        result: Any = None
        for name, (build, _) in WANTED.items():
            COMPUTED.clear()
            try:
                said[name], result = run(DaskRunner(), cluster.scheduler_address, build)
            except Exception as error:
                said[name] = f"{type(error).__name__}: {error}"
            if name == "side_inputs":
                said["elements of the side input computed"] = len(COMPUTED)
        try:
            said["metrics"] = str(result.metrics())
        except Exception as error:
            said["metrics"] = type(error).__name__
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    # By its own name, so that the workers' `FOUND` is this one.
    from tests.support import dask_pipelines

    dask_pipelines.main()
