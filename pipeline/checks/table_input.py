"""Which version of a table a command reads, and whether the output is of that one."""

from __future__ import annotations

import glob
from dataclasses import replace
from typing import Any

from headrace.transforms.errors import OutputConflict
from headrace.transforms.jobs.job import SUCCESS, Job
from headrace.transforms.storage import open_store
from headrace.transforms.tables.read import read_snapshot
from headrace.transforms.tables.snapshot import TableSnapshot, parse_table

from ..flags.request import Request


def requested_table(request: Request, kept: dict[str, Any] | None) -> TableSnapshot | None:
    """None where the input is none. `kept` is the record of the output's job: one that is not finished goes on with its
    version, and a sample is of what was predicted.
    """
    asked = parse_table(request.inputs[0]) if request.inputs else None
    if asked is None:
        return None
    began = (kept or {}).get("table")
    if asked.version is None and isinstance(began, dict) and not request.incremental:
        store = open_store(request.output, request.storage)
        same = began.get("format") == asked.format and began.get("uri") == asked.root
        if same and (request.sample is not None or store.find(f"{request.output}/{SUCCESS}") is None):
            asked = replace(asked, version=int(began["version"]))
    return read_snapshot(asked, request.storage)


def patterns_of(table: TableSnapshot) -> tuple[str, ...]:
    """A glob of all that may be the table's."""
    return (f"{glob.escape(table.uri)}/**/*",)


def check_same_version(kept: dict[str, Any], job: Job) -> None:
    """Raises `OutputConflict` where the output is of another version of the table, and may not go on to this one."""
    was, now = kept.get("table"), job.table
    if now is None or was == now.record() or job.incremental or not isinstance(was, dict):
        return
    raise OutputConflict(
        f"{job.output} is of version {was.get('version')} of {now.name}",
        expected=f"that version, as in --input={now.name}@{was.get('version')}",
        found=f"version {now.version}",
        cure=f"Add --incremental to predict only the files that are new in version {now.version}, name another --output, or "
        "add --overwrite to predict everything again",
    )
