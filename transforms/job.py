"""A Job: everything that decides what the output holds. It crosses to the workers and is kept in the output."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from transforms.errors import OutputConflict
from transforms.models.ref import ModelRef
from transforms.storage.base import StoreOptions, public_uri

JOB_RECORD = "_headrace/job.json"
SUCCESS = "_SUCCESS"
MANIFEST_FOLDER = "_manifest"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Loading:
    """How a worker loads the model; no part of what the job is. See `transforms.load_model`."""

    connections: int = 32
    in_flight_bytes: int = 256 << 20
    model_sharing: str = "machine"


@dataclass(frozen=True, slots=True)
class Job:
    """`features`, `predictions` and `keep` are resolved: nothing in them is left to a default.

    `input_schema` is the Arrow IPC form of the columns that are read, in the order in which they are read.
    `output` has no trailing slash. `batch_rows` and `limit` are rows, `shard_bytes` compressed bytes.
    """

    model: ModelRef
    signature: str
    inputs: tuple[str, ...]
    output: str
    features: tuple[tuple[str, tuple[str, ...]], ...]
    predictions: tuple[tuple[str, str], ...]
    keep: tuple[str, ...]
    input_schema: bytes
    batch_rows: int
    batch_rule: str
    shard_bytes: int
    limit: int | None
    versions: tuple[tuple[str, str], ...]
    storage: StoreOptions = StoreOptions()
    loading: Loading = Loading()

    def record(self) -> dict[str, Any]:
        """What `_headrace/job.json` holds. Two jobs with equal fingerprints write equal predictions."""
        record: dict[str, Any] = {
            "headrace_format": FORMAT,
            "model": {"uri": public_uri(self.model.uri), "format": self.model.format, "digest": self.model.digest},
            "signature": self.signature,
            "input": list(self.inputs),
            "feature": {tensor: list(columns) for tensor, columns in self.features},
            "prediction": dict(self.predictions),
            "keep": list(self.keep),
            "schema": hashlib.sha256(self.input_schema).hexdigest(),
            "batch_size": self.batch_rows,
            "batch_rule": self.batch_rule,
            "shard_bytes": self.shard_bytes,
            "limit": self.limit,
            "versions": dict(self.versions),
        }
        record["fingerprint"] = fingerprint_of(record)
        return record

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the record."""
        return str(self.record()["fingerprint"])


def fingerprint_of(record: dict[str, Any]) -> str:
    """Where the model lies is not part of what it is; its digest is."""
    what = {key: value for key, value in record.items() if key != "fingerprint"}
    what["model"] = {key: value for key, value in record["model"].items() if key != "uri"}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def dump_record(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=2, sort_keys=True).encode() + b"\n"


def check_same_job(output: str, kept: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises `OutputConflict` naming every field in which the folder's job differs from the one asked for."""
    if kept.get("fingerprint") == wanted["fingerprint"]:
        return
    fields = [key for key in wanted if key != "fingerprint" and kept.get(key) != wanted[key]]
    if "model" in fields and kept.get("model", {}).get("digest") == wanted["model"]["digest"]:
        fields.remove("model")
    raise OutputConflict(
        f"{output} holds the output of another job: {', '.join(fields) or 'an edited record'} differ",
        expected="; ".join(f"{key} {_short(kept.get(key))}" for key in fields) + " (the folder's job)",
        found="; ".join(f"{key} {_short(wanted[key])}" for key in fields) + " (this command)",
        cure="Name another --output, or add --overwrite to replace that job's output",
    )


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:200]}…"
