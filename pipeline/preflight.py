"""Everything that can be known before a job is submitted: the model's signature held against one Parquet footer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.options import ModelRequest, Request
from transforms.errors import ColumnError, InvalidRequest
from transforms.functions import AppliedFunction, find_function
from transforms.job import Job, JobModel
from transforms.mapping import ColumnChoice, ColumnPlan, auto_batch_rows, plan_columns
from transforms.models.load import describe_model
from transforms.models.ref import ModelRef, pin_model
from transforms.models.spec import ModelSpec, Signature
from transforms.parquet import read_footer
from transforms.plan import Listing, list_inputs
from transforms.shard import common_folder, output_name, relative_stem
from transforms.storage import open_store
from transforms.storage.base import glob_regex
from transforms.tensors import ColumnRules
from transforms.versions import versions

Value = TypeVar("Value")


@dataclass(frozen=True)
class Prepared:
    """A job that passed every check, with what the checks read. `specs` are of the job's models, in their order.

    `schema` is the input's; `output_schema` that of every prediction file.
    """

    job: Job
    specs: tuple[ModelSpec, ...]
    listing: Listing
    columns: ColumnPlan
    schema: pa.Schema
    output_schema: pa.Schema


def prepare(request: Request) -> Prepared:
    """Raises a `HeadraceError` for every mistake that can be known now. Writes nothing."""
    preprocess = find_function(request.preprocess, "--preprocess") if request.preprocess else None
    postprocess = find_function(request.postprocess, "--postprocess") if request.postprocess else None
    refs = [pin_requested(request, model) for model in request.models]
    specs = tuple(describe_model(ref, model.signature) for ref, model in zip(refs, request.models, strict=True))
    signatures = [spec.signatures[model.signature] for spec, model in zip(specs, request.models, strict=True)]
    listing = list_inputs(request.inputs, request.storage)
    check_output_apart(request, listing)
    first = listing.files[0]
    schema = read_footer(open_store(first.uri, request.storage), first).schema
    seen, where = schema, first.uri
    if preprocess is not None:
        seen, where = AppliedFunction(preprocess.load(), preprocess.name, schema).output_schema, preprocess.name
    choices = choose_columns(request, signatures)
    columns = plan_columns(seen, list(zip(signatures, choices, strict=True)), request.keep, where=where)
    output_schema = columns.output_schema
    if postprocess is not None:
        output_schema = AppliedFunction(postprocess.load(), postprocess.name, output_schema).output_schema
    batch_rows, rule = choose_batch(request, columns)
    # A function may look at any column.
    read = schema.names if preprocess is not None else columns.columns
    job = Job(
        models=tuple(
            JobModel(ref, model.signature, plan.resolved(choice))
            for ref, model, plan, choice in zip(refs, request.models, columns.models, choices, strict=True)
        ),
        inputs=request.inputs,
        output=request.output,
        keep=columns.keep,
        input_schema=pa.schema([schema.field(name).with_nullable(True) for name in read]).serialize().to_pybytes(),
        batch_rows=batch_rows,
        batch_rule=rule,
        shard_bytes=request.shard_bytes,
        limit=request.limit,
        versions=tuple(sorted(versions().items())),
        preprocess=preprocess,
        postprocess=postprocess,
        user_packages=tuple(sorted((package.name, package.digest) for package in request.packages)),
        jit_compile=request.jit_compile,
        storage=request.storage,
        loading=request.loading,
    )
    return Prepared(job, specs, listing, columns, schema, output_schema)


def pin_requested(request: Request, model: ModelRequest) -> ModelRef:
    return pin_model(
        model.uri,
        request.storage,
        weights=model.weights,
        custom_objects=request.custom_objects,
        unsafe=request.unsafe_model,
    )


def choose_columns(request: Request, signatures: Sequence[Signature]) -> list[ColumnChoice]:
    """What the request says of each model's columns: `NAME.TENSOR` of that model, `TENSOR` of every one that has it.

    Raises `ColumnError` where several models are asked for and none has such a tensor; of a single one, planning tells.
    """
    names = [model.name for model in request.models]
    inputs, outputs = (set().union(*(getattr(one, what) for one in signatures)) for what in ("inputs", "outputs"))

    def of(name: str, given: Mapping[str, Value], flag: str, own: Iterable[str], every: set[str]) -> dict[str, Value]:
        chosen: dict[str, Value] = {}
        for key, value in given.items():
            model, dot, tensor = key.partition(".")
            if dot and model and model in names:
                chosen |= {tensor: value} if model == name else {}
            elif len(names) == 1 or key in own:
                chosen[key] = value
            elif key not in every:
                raise ColumnError(
                    f"{flag} names {key!r}, which no model has",
                    expected=f"one of {', '.join(sorted(every))}, or NAME.TENSOR of one model",
                    found=key,
                )
        return chosen

    def choice(name: str, signature: Signature) -> ColumnChoice:
        features = of(name, request.features, "--feature", signature.inputs, inputs)
        rules: dict[str, Any] = {
            flag: tuple(sorted(of(name, getattr(request, flag), f"--{flag}", signature.inputs, inputs).items()))
            for flag in ("fill", "pad", "decode_image")
        }
        cast = tuple(sorted(of(name, request.cast, "--cast", signature.inputs, inputs)))
        predictions = of(name, request.predictions, "--prediction", signature.outputs, outputs)
        return ColumnChoice(
            name,
            tuple(features.items()),
            tuple(predictions.items()),
            ColumnRules(cast=cast, prediction_type=request.prediction_type, **rules),
        )

    return [choice(name, signature) for name, signature in zip(names, signatures, strict=True)]


def choose_batch(request: Request, columns: ColumnPlan) -> tuple[int, str]:
    """Rows per batch and the rule that gave them. Raises `InvalidRequest` where a model is fixed to another batch."""
    rows, rule = auto_batch_rows(columns)
    fixed = sorted({model.batch_rows for model in columns.models if model.batch_rows is not None})
    if len(fixed) > 1 or (fixed and request.batch_rows not in (None, *fixed)):
        raise InvalidRequest(
            f"--batch_size={request.batch_rows or 'auto'} does not fit the models",
            expected=f"the batch that a model is fixed to: {' and '.join(map(str, fixed))}",
            found=str(request.batch_rows) if len(fixed) == 1 else "models fixed to different batches",
            cure="Leave --batch_size out" if len(fixed) == 1 else "Run a job for each of these models",
        )
    return (request.batch_rows, "given") if request.batch_rows else (rows, rule)


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
