"""Every counter and distribution that a job reports to its runner. A name ends in its unit.

shards_planned, rows_planned    of the plan, including those whose output already exists
shards_started                  given to a worker; in flight until counted in `shards`
rows, batches, shards           predicted in this run
shards_failed                   attempts at shards whose rows or file could not be predicted
bad_rows                        sent to dead letters in this run
filtered_rows                   of the rows, those that --where removed
batches_halved                  too large for memory, computed again in halves
traces                          graphs traced to serve batches: one for each model that is compiled, in each process
shards_found_done               outputs that already existed
rows_found_done                 rows of their inputs, dead letters included
model_bytes                     bytes of weights loaded by processes that predict, once per process
read_bytes                      compressed bytes of the row groups read
written_bytes                   bytes of the prediction files
read_/predict_/write_milliseconds   per shard, time of one thread
storage_retries                 retried requests to stores, in processes that predict
load_milliseconds               per process, from pinned model to ready
"""

from __future__ import annotations

from apache_beam.metrics import Metrics

from ..shards.shard import ShardResult

NAMESPACE = "headrace"
STAGES = ("read", "predict", "write")

_COUNTERS = {
    name: Metrics.counter(NAMESPACE, name)
    for name in (
        *("rows", "bad_rows", "filtered_rows", "batches", "batches_halved", "traces"),
        *("shards", "shards_failed", "shards_found_done", "read_bytes", "written_bytes", "storage_retries"),
        *("shards_planned", "rows_planned", "shards_started", "rows_found_done", "model_bytes"),
    )
}
_TIMES = {stage: Metrics.distribution(NAMESPACE, f"{stage}_milliseconds") for stage in (*STAGES, "load")}


def count_result(result: ShardResult) -> None:
    if not result.computed:
        _COUNTERS["shards_found_done"].inc()
        _COUNTERS["rows_found_done"].inc(result.shard.rows)
        return
    _COUNTERS["shards"].inc()
    _COUNTERS["rows"].inc(result.predicted_rows + result.filtered_rows)
    _COUNTERS["filtered_rows"].inc(result.filtered_rows)
    _COUNTERS["bad_rows"].inc(result.bad_rows)
    _COUNTERS["batches"].inc(result.batches)
    _COUNTERS["batches_halved"].inc(result.batches_halved)
    _COUNTERS["read_bytes"].inc(result.read_bytes)
    _COUNTERS["written_bytes"].inc(result.output_bytes)
    for stage in STAGES:
        _TIMES[stage].update(round(result.seconds[stage] * 1000))


def count_batch(rows: int, seconds: float, *, batches: int = 1, bad_rows: int = 0, halved: int = 0) -> None:
    """`rows` were predicted, in `batches` where some of them failed or were too large at once."""
    _COUNTERS["rows"].inc(rows)
    _COUNTERS["bad_rows"].inc(bad_rows)
    _COUNTERS["batches"].inc(batches)
    _COUNTERS["batches_halved"].inc(halved)
    _TIMES["predict"].update(round(seconds * 1000))


def count_filtered(rows: int) -> None:
    _COUNTERS["filtered_rows"].inc(rows)


def count_planned(shards: int, rows: int) -> None:
    _COUNTERS["shards_planned"].inc(shards)
    _COUNTERS["rows_planned"].inc(rows)


def count_started() -> None:
    _COUNTERS["shards_started"].inc()


def count_failed() -> None:
    _COUNTERS["shards_failed"].inc()


def count_model_bytes(nbytes: int) -> None:
    _COUNTERS["model_bytes"].inc(nbytes)


def count_retries(retries: int) -> None:
    _COUNTERS["storage_retries"].inc(retries)


def count_traces(traces: int) -> None:
    _COUNTERS["traces"].inc(traces)


def count_load(seconds: float) -> None:
    _TIMES["load"].update(round(seconds * 1000))
