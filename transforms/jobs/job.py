"""A Job: everything that decides what the output holds. It crosses to the workers and is kept in the output."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import pyarrow as pa

from ..bounded_json import RECORD_BYTES, NotJson, parse_json_object
from ..columns.inputs import ColumnRules
from ..columns.plan import ColumnChoice
from ..errors import OutputConflict
from ..models.loading import Loading
from ..models.ref import ModelRef
from ..models.spec import Operations
from ..nested_arrow import read_schema
from ..shards.shard import common_folder
from ..storage import ObjectRef, Store
from ..storage.store import StoreOptions, public_uri
from ..tables.snapshot import TableSnapshot
from .job_defaults import DEAD_LETTERS_FOLDER as DEAD_LETTERS_FOLDER
from .job_defaults import REPORT as REPORT
from .user_functions import FunctionRef

JOB_RECORD = "_headrace/job.json"
SUCCESS = "_SUCCESS"
MANIFEST_FOLDER = "_manifest"
ASIDE = ".pq"
"""The ending of the manifest's and dead letters' Parquet files: a glob of `*.parquet` gives only predictions."""
FORMAT = 2
# The first format counted what becomes of bad rows as part of what a job is, and local files' versions had no change time.
FORMAT_1 = 1


@dataclass(frozen=True, slots=True)
class FirstInput:
    """The input file that the schema was learned from; `schema` is its Arrow IPC form. It is kept so that a job that runs again
    reads no footer.
    """

    uri: str
    version: str
    schema: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return _first_input, (self.uri, self.version, *_packed(self.schema))

    def record(self) -> dict[str, str]:
        return {"uri": self.uri, "version": self.version, "schema": base64.b64encode(self.schema).decode()}


@dataclass(frozen=True, slots=True)
class OnError:
    """The policy for rows that cannot be predicted. `dead_letters` is the folder that they go to, without a trailing
    slash; None fails their shard. `most` is how many may go there: `N`, or `P%`, which is rounded up to a whole row.
    A failed shard fails the job; with `skip_shards`, up to `most_shards` of them are listed at the job's end. That policy
    changes no output's content and is not part of the job's identity.
    """

    dead_letters: str | None = None
    most: str = "0"
    skip_shards: bool = False
    most_shards: int = 0

    def allowed(self, rows: int) -> int:
        """Bad rows (inclusive) that a shard of so many rows may have, or the job."""
        if self.most.endswith("%"):
            return math.ceil(rows * Fraction(self.most[:-1]) / 100)
        return int(self.most)


@dataclass(frozen=True, slots=True)
class JobModel:
    """One model of the job's pass over the rows. Its columns are resolved: nothing is left to a default.

    `columns.name` is "" where the job has one model, else its NAME in `--model NAME=URI`. `operations` are what the signature
    does in addition to computing.
    """

    ref: ModelRef
    signature: str
    columns: ColumnChoice
    operations: Operations = Operations()

    def record(self) -> dict[str, Any]:
        usual = ColumnRules()
        rules = self.columns.rules
        return {
            "uri": public_uri(self.ref.uri),
            "format": self.ref.format,
            "digest": self.ref.digest,
            "signature": self.signature,
            "feature": {tensor: list(columns) for tensor, columns in self.columns.features},
            "prediction": dict(self.columns.predictions),
            **{
                rule.name: getattr(rules, rule.name)
                for rule in fields(rules)
                if getattr(rules, rule.name) != getattr(usual, rule.name)
            },
            **({"ignore_exif": rules.ignore_exif} if rules.decode_image else {}),
            **({"constant": dict(self.columns.constants)} if self.columns.constants else {}),
            **({"output_rank": dict(self.columns.ranks)} if self.columns.ranks else {}),
            **({"top_k": {asked.output: asked.record() for asked in self.columns.top_k}} if self.columns.top_k else {}),
            **self._record_operations(),
        }

    def _record_operations(self) -> dict[str, list[str]]:
        """What makes predictions differ from run to run, and what else the model may do in addition to computing."""
        found = self.operations
        named = {
            "random_operations": found.random,
            "allow_stateful_model": found.writes,
            "unsafe_model": found.outside,
            "import_module": self.ref.import_modules,
        }
        return {key: list(names) for key, names in named.items() if names}

    @property
    def differs_from_run_to_run(self) -> str:
        """Why the same rows may have other predictions in another run; "" where they are the same."""
        why = []
        if self.operations.random:
            why.append(f"draws random numbers ({', '.join(self.operations.random)})")
        if self.operations.writes:
            why.append(f"changes its own state ({', '.join(self.operations.writes)})")
        name = f"The model {self.columns.name!r}" if self.columns.name else "The model"
        return f"{name} {' and '.join(why)}: predictions differ from run to run" if why else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What a request says and its job keeps as it is.

    `output` has no trailing slash. `limit` is rows, `shard_bytes` compressed bytes.
    `where` is the condition for a row to be in the output; the others are counted.
    `compact` joins the rows of small files into outputs of up to `shard_bytes`.
    `incremental` lets outputs of inputs that changed or vanished be removed; it is not part of the job's identity.
    `report` is the page that is written at the end, `compare` another one to compare it with; neither is part of the identity.
    """

    output: str
    shard_bytes: int
    limit: int | None
    where: str | None = None
    jit_compile: bool = False
    compact: bool = False
    incremental: bool = False
    storage: StoreOptions = StoreOptions()
    loading: Loading = Loading()
    on_error: OnError = OnError()
    report: str | None = None
    compare: str | None = None

    def options(self) -> dict[str, Any]:
        """These fields alone, by name."""
        return {option.name: getattr(self, option.name) for option in fields(JobOptions)}

    @property
    def joined_bytes(self) -> int | None:
        """The bytes of small files that go into one output; None where each has its own."""
        return self.shard_bytes if self.compact else None


@dataclass(frozen=True, kw_only=True)
class Job(JobOptions):
    """`models` and `keep` are resolved: nothing in them is left to a default.

    `input_schema` is the Arrow IPC form of the columns that are read, in the order in which they are read.
    `inputs` are globs, URIs and `@` lists of them; `folder` is the deepest above all of them, with its trailing slash.
    `table` is the version of a Delta or Iceberg table that is all of the input; its number is not part of the job's identity.
    `partitions` are the columns from the folders below it. `user_packages` are names and digests of contents.
    `first_input` is what the schema was learned from; it is not part of the identity.
    `claim` is the number of the run's claim on the output; 0 where it has none. It is not part of the identity.
    """

    models: tuple[JobModel, ...]
    inputs: tuple[str, ...]
    folder: str
    partitions: tuple[str, ...]
    keep: tuple[str, ...]
    input_schema: bytes
    batch_rows: int
    batch_rule: str
    versions: tuple[tuple[str, str], ...]
    preprocess: FunctionRef | None = None
    postprocess: FunctionRef | None = None
    user_packages: tuple[tuple[str, str], ...] = ()
    first_input: FirstInput | None = None
    table: TableSnapshot | None = None
    claim: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        values = {attribute.name: getattr(self, attribute.name) for attribute in fields(self)}
        return _job, (*_packed(values.pop("input_schema")), values)

    def record(self) -> dict[str, Any]:
        """The content of `_headrace/job.json`. Two jobs with equal fingerprints write equal predictions."""
        record: dict[str, Any] = {
            "headrace_format": FORMAT if self.storage.change_times else FORMAT_1,
            "models": {model.columns.name: model.record() for model in self.models},
            "input": list(self.inputs),
            # Files in a list may change the folder, and with it every output's name.
            **({"folder": self.folder} if any(pattern.startswith("@") for pattern in self.inputs) else {}),
            "partition_columns": list(self.partitions),
            "keep": list(self.keep),
            "schema": hashlib.sha256(self.input_schema).hexdigest(),
            "batch_size": self.batch_rows,
            "batch_rule": self.batch_rule,
            "shard_bytes": self.shard_bytes,
            **({"compact": True} if self.compact else {}),
            "limit": self.limit,
            "versions": dict(self.versions),
            "preprocess": asdict(self.preprocess) if self.preprocess else None,
            "postprocess": asdict(self.postprocess) if self.postprocess else None,
            **({"where": self.where} if self.where is not None else {}),
            "user_package": dict(self.user_packages),
            "jit_compile": self.jit_compile,
            **self._record_on_error(),
            **({"first_input": self.first_input.record()} if self.first_input else {}),
            **({"table": self.table.record()} if self.table else {}),
        }
        record = json.loads(json.dumps(record))  # tuples become lists, as in the file
        record["fingerprint"] = fingerprint_of(record)
        return record

    def _record_on_error(self) -> dict[str, Any]:
        """The usual folder of dead letters is not part of it: it follows the output."""
        folder = self.on_error.dead_letters
        if folder is None:
            return {"on_error": "fail"}
        elsewhere = {} if folder == f"{self.output}/{DEAD_LETTERS_FOLDER}" else {"dead_letters": folder}
        return {"on_error": "dead_letter", **elsewhere, "max_bad_rows": self.on_error.most}

    @property
    def differs_from_run_to_run(self) -> list[str]:
        """A sentence for each model whose predictions do."""
        return [why for model in self.models if (why := model.differs_from_run_to_run)]

    @cached_property
    def schema(self) -> pa.Schema:
        """`input_schema`, read."""
        return read_schema(self.input_schema)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the record."""
        return str(self.record()["fingerprint"])

    @property
    def model_digests(self) -> str:
        """The digest of the one model; of several, `name=digest`, in their order, with commas between."""
        named = ((model.columns.name, model.ref.digest) for model in self.models)
        return ",".join(f"{name}={digest}" if name else digest for name, digest in named)


def _packed(schema: bytes) -> tuple[int, bytes]:
    """Beam compresses each step slowly, and some thirty hold the job: with schemas of 10,000 columns that took seconds."""
    return len(schema), pa.compress(schema, codec="zstd", asbytes=True)


def _unpacked(size: int, data: bytes) -> bytes:
    return bytes(pa.decompress(data, decompressed_size=size, codec="zstd", asbytes=True))


def _first_input(uri: str, version: str, size: int, data: bytes) -> FirstInput:
    return FirstInput(uri, version, _unpacked(size, data))


def _job(size: int, data: bytes, values: dict[str, Any]) -> Job:
    return Job(input_schema=_unpacked(size, data), **values)


def fingerprint_of(record: dict[str, Any]) -> str:
    """A model's digest is part of its identity, its place is not. The policy for bad rows changes no other row, nor does the
    file that the schema came from. A table's versions have files in common, whose outputs stay. Jobs of before
    --ignore_exif decoded images as with it.
    """
    no_part = {"fingerprint", "max_bad_rows", "first_input", "table"}
    if record.get("headrace_format") != FORMAT_1:
        no_part |= {"on_error", "dead_letters"}
    what = {key: value for key, value in record.items() if key not in no_part}
    what["models"] = {
        name: {key: value for key, value in model.items() if key != "uri" and (key, value) != ("ignore_exif", True)}
        for name, model in record["models"].items()
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def options_as_begun(storage: StoreOptions, record: dict[str, Any] | None) -> StoreOptions:
    """The options for resuming the job of that record: a job of an earlier version keeps its versions of local files."""
    old = record is not None and record.get("headrace_format") == FORMAT_1
    return replace(storage, change_times=False) if old else storage


def stored_object(store: Store, ref: ObjectRef) -> dict[str, Any]:
    """A record that headrace keeps in an output, as JSON. Raises `OutputConflict` where it is something else."""
    try:
        if ref.size > RECORD_BYTES:
            raise NotJson(f"{ref.size} bytes, more than {RECORD_BYTES}")
        return parse_json_object(store.read(ref))
    except NotJson as error:
        raise OutputConflict(
            f"{ref.uri} is not a record of headrace, or is damaged",
            expected="a JSON object",
            found=str(error),
            cure="Name another --output, or add --overwrite to replace all that is in this one",
        ) from error


def dump_record(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=2, sort_keys=True).encode() + b"\n"


def check_same_job(output: str, kept: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises `OutputConflict` naming every field in which the folder's job differs from the one asked for."""
    if kept.get("fingerprint") == wanted["fingerprint"] and _goes_on(kept, wanted):
        return
    was, now = _flat(kept), _flat(wanted)
    differ = [key for key in now | was if was.get(key) != now.get(key)]
    verb = "differ" if len(differ) > 1 else "differs"
    raise OutputConflict(
        f"{output} holds the output of another job: {', '.join(differ) or 'an edited record'} {verb}",
        expected="; ".join(f"{key} {_short(was.get(key))}" for key in differ) + " (the folder's job)",
        found="; ".join(f"{key} {_short(now.get(key))}" for key in differ) + " (this command)",
        cure=(_cure_of_inputs(wanted["input"]) if differ == ["input"] else "Name")
        + " another --output, or add --overwrite to replace that job's output",
    )


def _cure_of_inputs(patterns: list[str]) -> str:
    """An output has the name of its input's place below what all patterns share: other patterns would rename every output."""
    folder = common_folder(tuple(patterns))
    wide = ""
    if folder and not any(one.startswith("@") for one in patterns):
        wide = f", such as --input='{folder}**/*.parquet'"
    return (
        f"--incremental finds new files of the same --input only: begin a job that will grow with one pattern for all of its "
        f"files{wide}. For that, name"
    )


def _goes_on(kept: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Existing outputs have no bad rows if the first one failed the job; otherwise these must be where this job looks."""
    policy = ("on_error", "dead_letters")
    return kept.get("on_error") == "fail" or all(kept.get(key) == wanted.get(key) for key in policy)


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Each field by the name that users know; a model is its digest, independent of its place."""
    flat = {key: value for key, value in record.items() if key not in ("fingerprint", "models", "first_input", "table")}
    models: dict[str, dict[str, Any]] = record.get("models", {})
    named: dict[str, Any] = {}
    for name, model in models.items():
        of = f" of {name}" if name else ""
        if name or "digest" in model:
            named[f"model {name}".rstrip()] = {key: model.get(key) for key in ("uri", "digest")}
            named |= {f"{key}{of}": value for key, value in model.items() if key not in ("uri", "format", "digest")}
    return named | flat


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:200]}…"
