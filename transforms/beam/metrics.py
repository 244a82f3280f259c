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


def count(**amounts: int) -> None:
    """By the counters' names."""
    for name, amount in amounts.items():
        _COUNTERS[name].inc(amount)


def time_stage(stage: str, seconds: float) -> None:
    """`stage` is one of `STAGES`, or "load"."""
    _TIMES[stage].update(round(seconds * 1000))


def count_result(result: ShardResult) -> None:
    if not result.computed:
        count(shards_found_done=1, rows_found_done=result.shard.rows)
        return
    count(
        shards=1,
        rows=result.predicted_rows + result.filtered_rows,
        filtered_rows=result.filtered_rows,
        bad_rows=result.bad_rows,
        batches=result.batches,
        batches_halved=result.batches_halved,
        read_bytes=result.read_bytes,
        written_bytes=result.output_bytes,
    )
    for stage in STAGES:
        time_stage(stage, result.seconds[stage])
