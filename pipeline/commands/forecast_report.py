"""What `plan --trial` shows: the measurements, and what the whole plan will take according to them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from headrace.transforms.columns.wording import counted

from ..checks.forecast import Forecast
from ..terminal.answer import Answer
from ..terminal.tables import WIDTH, wrapped


def with_forecast(answer: Answer, made: Forecast) -> Answer:
    lines = [*answer.lines, "", "What it will take", "", *_measured(made), *_forecast(made)]
    for note in _notes(made):
        lines += ["", *textwrap.wrap(f"Note: {note}", WIDTH, break_long_words=False, break_on_hyphens=False)]
    return Answer(lines, answer.document | {"forecast": made.fields()})


def _measured(made: Forecast) -> Iterator[str]:
    trial = made.trial
    yield from wrapped(
        "Trial",
        f"{counted(trial.rows, 'row')} in {trial.seconds:.1f} s on {counted(trial.cores, 'core')} ({trial.device}), "
        f"{trial.busy:.0%} of their time used; before, {trial.load_seconds:.1f} s to load and "
        f"{trial.warm_up_seconds:.1f} s to warm up with {counted(trial.warm_up_rows, 'row')}",
    )
    yield f"         {trial.rows_per_second_per_core:,.0f} rows per second and core"
    yield f"         {made.input_bytes_per_row:,.1f} bytes of input a row, {trial.output_bytes_per_row:,.1f} of output"
    yield f"         {_gb(trial.peak_bytes)} of memory at its peak, {_gb(trial.loaded_bytes)} with the models loaded"


def _forecast(made: Forecast) -> Iterator[str]:
    yield f"Plan     {counted(made.rows, 'row')}: {_number(made.core_hours)} core hours"
    machines = made.machine_type or f"machines of {counted(made.cores_per_worker, 'core')}"
    yield from wrapped(
        "Workers",
        f"{made.workers:,} x {machines}, {_gb(made.memory_bytes_per_worker)} of memory each, for {_time(made.seconds)}: "
        + ("within " if made.in_time else "not within ")
        + _time(made.within),
    )
    if made.machine_type is not None:
        yield f"         --machine_type={made.machine_type} --num_workers={made.workers}"
    if made.cost is not None:
        yield f"Cost     {_number(made.cost)}, in the unit of --price_per_core_hour"


def _notes(made: Forecast) -> Iterator[str]:
    trial = made.trial
    yield (
        "Not in it: starting machines, uploading predictions, and what a job does before its first shard and after its last. "
        "Other processors have other speeds: docs/dataflow.md has how far forecasts were off."
    )
    if not made.in_time and made.workers * made.cores_per_worker >= made.shards:
        yield (
            f"The plan has {counted(made.shards, 'shard')}, each of which keeps one core busy: more cores would do nothing. "
            "Choose a smaller --shard_bytes, or a longer --within."
        )
    if not trial.whole_batches:
        yield "The rows made less than one batch for each core, so that a row took longer than it will. Try more rows."
    if trial.busy < 0.7:
        yield (
            f"The cores were busy for {trial.busy:.0%} of the time: the input's store was slow, or other programs ran here. "
            "On an idle machine near the data, fewer core hours may do."
        )
    if trial.stopped:
        yield "The time of a trial was over before all of its rows were done; it is of those that were."
    if made.machine_type is None:
        yield "No machine type that is known here has so much memory."


def _number(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
