"""Jobs without a model, for tests that plan and account but predict nothing."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tests.jobs import rows
from transforms.job import Job
from transforms.listing import expand_lists
from transforms.shard import common_folder
from transforms.storage import StoreOptions

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
