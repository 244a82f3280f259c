"""Everything that can be known before a job is submitted: the model's signature held against one Parquet footer."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa

from pipeline import __version__
from pipeline.options import Request
from transforms.errors import InvalidRequest
from transforms.job import Job
from transforms.mapping import ColumnPlan, auto_batch_rows, plan_columns
from transforms.models.load import describe_model
from transforms.models.ref import ModelRef, pin_model
from transforms.models.spec import ModelSpec
from transforms.parquet import read_footer
from transforms.plan import Listing, list_inputs
from transforms.shard import common_folder, output_name, relative_stem
from transforms.storage import open_store
from transforms.storage.base import glob_regex


@dataclass(frozen=True)
class Prepared:
    """A job that passed every check, with what the checks read."""

    job: Job
    spec: ModelSpec
    listing: Listing
    columns: ColumnPlan
    schema: pa.Schema


def prepare(request: Request) -> Prepared:
    """Raises a `HeadraceError` for every mistake that can be known now. Writes nothing."""
    ref = pin_requested(request)
    spec = describe_model(ref, request.signature)
    listing = list_inputs(request.inputs, request.storage)
    check_output_apart(request, listing)
    first = listing.files[0]
    schema = read_footer(open_store(first.uri, request.storage), first).schema
    columns = plan_columns(
        schema, spec.signatures[request.signature], request.features, request.predictions, request.keep, where=first.uri
    )
    batch_rows, rule = (request.batch_rows, "given") if request.batch_rows else auto_batch_rows(columns)
    job = Job(
        model=ref,
        signature=request.signature,
        inputs=request.inputs,
        output=request.output,
        features=tuple(sorted(columns.inputs.mapping.items())),
        predictions=tuple(
            (name, request.predictions.get(name, name)) for name in spec.signatures[request.signature].outputs
        ),
        keep=columns.keep,
        input_schema=pa.schema([schema.field(name).with_nullable(True) for name in columns.columns])
        .serialize()
        .to_pybytes(),
        batch_rows=batch_rows,
        batch_rule=rule,
        shard_bytes=request.shard_bytes,
        limit=request.limit,
        versions=tuple(sorted(versions().items())),
        storage=request.storage,
        loading=request.loading,
    )
    return Prepared(job, spec, listing, columns, schema)


def pin_requested(request: Request) -> ModelRef:
    return pin_model(
        request.model,
        request.storage,
        weights=request.weights,
        custom_objects=request.custom_objects,
        unsafe=request.unsafe_model,
    )


def versions() -> dict[str, str]:
    """Of what changes numbers, or the files' layout."""
    return {name: version(name) for name in ("tensorflow", "keras", "pyarrow")} | {"headrace": __version__}


def check_output_apart(request: Request, listing: Listing) -> None:
    """Predictions written where a job's own --input finds them would be read as inputs by the next run."""
    folder, patterns = common_folder(request.inputs), [(glob_regex(pattern), pattern) for pattern in request.inputs]
    written = (
        f"{request.output}/{output_name(relative_stem(ref.uri, folder), ref, 0, 0, '0' * 64)}" for ref in listing.files
    )
    matching = [pattern for name in written for regex, pattern in patterns if regex.fullmatch(name)]
    if not matching:
        matching = [ref.uri for ref in listing.files if ref.uri.startswith(f"{request.output}/")]
    if matching:
        raise InvalidRequest(
            f"--output={request.output} lies where --input reads from",
            expected="a folder that no --input matches",
            found=matching[0],
            cure="Name another --output, or a narrower --input",
        )
