"""What `inspect` reads: models, an input, and how the input would feed the models, or why it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from headrace.transforms.jobs.input_files import Survey, expand_lists, survey_inputs
from headrace.transforms.jobs.user_functions import find_function
from headrace.transforms.models.load import describe_model
from headrace.transforms.models.operations import check_runnable
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.models.spec import ModelSpec
from headrace.transforms.parquet.reader import Footer, read_footer
from headrace.transforms.storage import ObjectRef, open_store

from ..flags.request import Request
from .column_choices import choose_columns
from .column_links import Link, link_columns
from .preflight import pin_requested, with_partitions
from .table_input import patterns_of, requested_table


@dataclass(frozen=True)
class Inspection:
    """`models` with the names of the requested signatures. `schema` is what features choose from: the input's own, or the
    result of --preprocess. `links` is empty without a model, an input, or such a signature.
    """

    models: tuple[tuple[ModelRef, ModelSpec, str], ...]
    inputs: Survey | None
    first: Footer | None
    schema: pa.Schema | None
    links: tuple[Link, ...]


def inspect_request(request: Request) -> Inspection:
    """Raises a `HeadraceError` for a model or an input that cannot be read, but not where they do not fit."""
    refs = pin_requested(request)
    models = tuple((ref, describe_model(ref), model.signature) for ref, model in zip(refs, request.models, strict=True))
    for ref, spec, signature in models:
        _check_runnable(ref, spec, signature)
    if not request.inputs:
        return Inspection(models, None, None, None, ())
    table = requested_table(request, None)
    patterns = expand_lists(request.inputs, request.storage) if table is None else patterns_of(table)
    inputs = survey_inputs(patterns, request.storage, _anywhere, table=table)
    first = read_footer(open_store(inputs.first.uri, request.storage), inputs.first)
    stored = first.schema if table is None else table.columns()
    signatures = [spec.signatures.get(name) for _, spec, name in models]
    known = [signature for signature in signatures if signature is not None]
    fitting = bool(models) and len(known) == len(models)
    choices = choose_columns(request, known) if fitting else []
    schema, partitions = with_partitions(request, inputs, stored, list(zip(known, choices, strict=False)))
    if request.preprocess is not None:
        schema = find_function(request.preprocess, "--preprocess").applied(schema).output_schema
    if not fitting:
        return Inspection(models, inputs, first, schema, ())
    links = link_columns(schema, list(zip(known, choices, strict=True)), request.keep, partitions)
    return Inspection(models, inputs, first, schema, tuple(links))


def _check_runnable(ref: ModelRef, spec: ModelSpec, signature: str) -> None:
    """Raises `UnsupportedModel` where the signature can predict no row, or no signature can where that one does not exist."""
    asked = [signature] if signature in spec.operations else list(spec.operations)
    if asked and all(spec.operations[name].python or spec.operations[name].unrunnable for name in asked):
        check_runnable(ref, spec.operations[asked[0]])


def _anywhere(_: ObjectRef) -> None:
    """Nothing is written: an input may be anywhere."""
