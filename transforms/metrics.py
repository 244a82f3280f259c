"""Every counter and distribution that a job reports to its runner. A name ends in its unit.

rows, batches, shards           predicted in this run
shards_found_done               outputs that stood there already
read_bytes                      compressed bytes of the row groups read
written_bytes                   bytes of the prediction files
read_/predict_/write_milliseconds   per shard, time of one thread
load_milliseconds               per process, from pinned model to ready
"""

from __future__ import annotations

from apache_beam.metrics import Metrics

from transforms.shard import ShardResult

NAMESPACE = "headrace"
STAGES = ("read", "predict", "write")

_COUNTERS = {
    name: Metrics.counter(NAMESPACE, name)
    for name in ("rows", "batches", "shards", "shards_found_done", "read_bytes", "written_bytes")
}
_TIMES = {stage: Metrics.distribution(NAMESPACE, f"{stage}_milliseconds") for stage in (*STAGES, "load")}


def count_result(result: ShardResult) -> None:
    if not result.computed:
        _COUNTERS["shards_found_done"].inc()
        return
    _COUNTERS["shards"].inc()
    _COUNTERS["rows"].inc(result.shard.rows)
    _COUNTERS["batches"].inc(result.batches)
    _COUNTERS["read_bytes"].inc(result.read_bytes)
    _COUNTERS["written_bytes"].inc(result.output_bytes)
    for stage in STAGES:
        _TIMES[stage].update(round(result.seconds[stage] * 1000))


def count_batch(rows: int, seconds: float) -> None:
    _COUNTERS["rows"].inc(rows)
    _COUNTERS["batches"].inc()
    _TIMES["predict"].update(round(seconds * 1000))


def count_load(seconds: float) -> None:
    _TIMES["load"].update(round(seconds * 1000))
