"""What Dask's workers run: bundles of a step, by Beam's own `DoFnRunner`, and what moves elements between steps.

Each function is a Dask task. Only this file and dask_runner.py use Beam's private names.
"""

from __future__ import annotations

import threading
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import apache_beam as beam
from apache_beam.internal import pickler
from apache_beam.metrics.execution import MetricsContainer
from apache_beam.runners.common import DoFnRunner, Receiver
from apache_beam.runners.worker import statesampler
from apache_beam.transforms.sideinputs import SideInputMap
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.counters import CounterFactory
from apache_beam.utils.windowed_value import WindowedValue

_KEYS = beam.coders.FastPrimitivesCoder()
# No tag of an output: these are text.
COUNTED = 0


@dataclass(frozen=True)
class Step:
    """A ParDo as its workers get it. `pickled` is its DoFn, arguments, and the kinds of its side inputs with their options."""

    label: str
    pickled: bytes
    tags: tuple[str, ...]


class _Output(Receiver):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        self.values: list[WindowedValue] = []

    def receive(self, windowed_value: WindowedValue) -> None:
        self.values.append(windowed_value)


class _Ready:
    """A DoFn after its setup; bundles of one step take turns on it: a process loads its model once."""

    def __init__(self, step: Step, sides: Sequence[list[WindowedValue]]) -> None:
        fn, args, kwargs, views = pickler.loads(step.pickled)
        maps = [SideInputMap(kind, options, side) for (kind, options), side in zip(views, sides, strict=True)]
        self.outputs = {tag: _Output() for tag in (None, *step.tags)}
        self.runner = DoFnRunner(
            fn, args, kwargs, maps, beam.Windowing(GlobalWindows()), self.outputs, step_name=step.label
        )
        self.runner.setup()


_idle: dict[bytes, list[_Ready]] = defaultdict(list)
_idle_lock = threading.Lock()


def run_bundle(
    step: Step, parts: Sequence[list[WindowedValue]], sides: Sequence[list[WindowedValue]]
) -> dict[str | int | None, Any]:
    """What the bundle emitted, by tag (None for the main output), and under `COUNTED` its counters and distributions.

    Dask runs it again elsewhere where its worker is lost.
    """
    ready = None
    if not sides:
        with _idle_lock:
            if _idle[step.pickled]:
                ready = _idle[step.pickled].pop()
    container = MetricsContainer(step.label)
    sampler = statesampler.StateSampler("dask", CounterFactory())
    statesampler.set_current_tracker(sampler)
    try:
        with sampler.scoped_state(step.label, "process", metrics_container=container):
            ready = ready or _Ready(step, sides)
            for output in ready.outputs.values():
                output.values = []
            ready.runner.start()
            for element in chain.from_iterable(parts):
                ready.runner.process(element)
            ready.runner.finish()
    except BaseException:
        if ready is not None:
            ready.runner.teardown()
        raise
    finally:
        statesampler.set_current_tracker(None)
    found: dict[str | int | None, Any] = {tag: output.values for tag, output in ready.outputs.items()}
    if sides:
        ready.runner.teardown()
    else:
        with _idle_lock:
            _idle[step.pickled].append(ready)
    updates = container.get_cumulative()
    return found | {COUNTED: (dict(updates.counters), dict(updates.distributions))}


def impulse() -> list[WindowedValue]:
    return [GlobalWindows.windowed_value(b"")]


def joined(*parts: list[WindowedValue]) -> list[WindowedValue]:
    return list(chain.from_iterable(parts))


def kept(elements: list[WindowedValue]) -> list[WindowedValue]:
    """The elements are part of the task, which the scheduler has: that it is run again does not change them."""
    return elements


def by_key(part: list[WindowedValue], count: int) -> list[list[tuple[bytes, WindowedValue]]]:
    """By CRC-32, since each process has a `hash` of its own."""
    found: list[list[tuple[bytes, WindowedValue]]] = [[] for _ in range(count)]
    for element in part:
        key = _KEYS.encode(element.value[0])
        found[zlib.crc32(key) % count].append((key, element))
    return found


def grouped(*parts: list[tuple[bytes, WindowedValue]]) -> list[WindowedValue]:
    values: dict[bytes, tuple[Any, list[Any]]] = {}
    for encoded, element in chain.from_iterable(parts):
        values.setdefault(encoded, (element.value[0], []))[1].append(element.value[1])
    end = GlobalWindow().max_timestamp()
    return [WindowedValue(pair, end, (GlobalWindow(),)) for pair in values.values()]
