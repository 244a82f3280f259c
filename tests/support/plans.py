"""Jobs without a model, for tests that plan and account but predict nothing."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from headrace.transforms.jobs.input_files import expand_lists
from headrace.transforms.jobs.job import Job
from headrace.transforms.shards.shard import common_folder
from headrace.transforms.storage import StoreOptions
from tests.support.jobs import rows

SCHEMA = rows(0, 1).schema


def plain_job(*inputs: str, output: str = "memory://nowhere/out", schema: pa.Schema = SCHEMA, **more: Any) -> Job:
    settings: dict[str, Any] = {"partitions": (), "shard_bytes": 100_000, "limit": None} | more
    return Job(
        models=(),
        inputs=inputs,
        folder=common_folder(expand_lists(inputs, StoreOptions())),
        output=output,
        keep=(),
        input_schema=schema.serialize().to_pybytes(),
        batch_rows=64,
        batch_rule="given",
        versions=(),
        **settings,
    )
