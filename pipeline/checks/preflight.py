"""Everything that can be checked before a job is submitted: compares the model's signature with one Parquet footer."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from headrace.transforms.columns.example_inputs import row_inputs
from headrace.transforms.columns.plan import (
    ColumnChoice,
    ColumnPlan,
    choose_batch_rows,
    plan_columns,
    unknown_ranks,
    varying_batch,
)
from headrace.transforms.columns.where import RowFilter
from headrace.transforms.errors import ColumnError, HeadraceError, InvalidRequest
from headrace.transforms.jobs.input_files import Survey, expand_lists, scheme_of, survey_inputs
from headrace.transforms.jobs.job import JOB_RECORD, FirstInput, Job, JobModel, options_as_begun, stored_object
from headrace.transforms.jobs.user_functions import FunctionRef, find_function
from headrace.transforms.models.formats import format_of
from headrace.transforms.models.load import describe_for_job
from headrace.transforms.models.pin import pin_model, unused_custom_objects
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.models.spec import ModelSpec, Operations, Signature
from headrace.transforms.nested_arrow import read_schema
from headrace.transforms.output.dead_letters import dead_letter_schema
from headrace.transforms.parquet.footer import footer_of
from headrace.transforms.parquet.reader import read_footer
from headrace.transforms.parquet.writer import check_kept, check_writable
from headrace.transforms.shards.partitions import MOST_FOLDER_BYTES
from headrace.transforms.shards.shard import common_folder, output_name, relative_stem
from headrace.transforms.storage import ObjectRef, open_store
from headrace.transforms.storage.store import glob_regex, split_glob
from headrace.transforms.versions import versions

from ..flags.request import Request
from .column_choices import choose_columns
from .first_rows import check_examples, found_ranks
from .report_place import check_report
from .single_file import check_single_file
from .table_input import patterns_of, requested_table


@dataclass(frozen=True)
class Prepared:
    """A job that passed every check, with what the checks read. `specs` are of the job's models, in their order; `seen` is the
    schema that features choose from: the input's, or what --preprocess makes of it.
    """

    job: Job
    specs: tuple[ModelSpec, ...]
    inputs: Survey
    columns: ColumnPlan
    seen: pa.Schema


@dataclass(frozen=True)
class _Given:
    """What a job is planned from. `around` are the functions before and after the models."""

    request: Request
    around: tuple[FunctionRef | None, ...]
    refs: Sequence[ModelRef]
    specs: tuple[ModelSpec, ...]
    patterns: tuple[str, ...]
    inputs: Survey


def prepare(request: Request) -> Prepared:
    """Raises a `HeadraceError` for every mistake that can be known now. Writes nothing."""
    kept = None if request.overwrite else _kept_record(request)
    request = replace(request, storage=options_as_begun(request.storage, kept))
    around = tuple(
        find_function(name, flag) if name else None
        for name, flag in ((request.preprocess, "--preprocess"), (request.postprocess, "--postprocess"))
    )
    refs = pin_requested(request)
    specs = tuple(describe_for_job(ref, model.signature) for ref, model in zip(refs, request.models, strict=True))
    table = requested_table(request, kept)
    patterns = expand_lists(request.inputs, request.storage) if table is None else patterns_of(table)
    apart = _OutputApart(request, patterns)
    inputs = survey_inputs(patterns, request.storage, apart.check, request.joined_bytes, table)
    if request.single_file:
        check_single_file(request, inputs)
    given = _Given(request, around, refs, specs, patterns, inputs)
    if table is None and (said := _kept_schema(kept, inputs.first)) is not None:
        prepared = _planned(given, said[0])
        if prepared.job.fingerprint == said[1]:
            return prepared
    store = open_store(inputs.first.uri, request.storage)
    stored = read_footer(store, inputs.first).schema if table is None else table.columns()
    if not stored.names:
        raise ColumnError(
            f"{inputs.first.uri} has no columns",
            expected="a Parquet file of one column or more",
            found="none",
            cure="Leave it out of --input, or write it again",
        )
    prepared = _planned(given, stored)
    footer_of(store, inputs.first).check_plain(prepared.job.schema.names)
    check_examples(request, prepared.job, prepared.columns, inputs.first)
    return prepared


def _kept_record(request: Request) -> dict[str, Any] | None:
    """The job that the output folder records, as far as it can be read; `examine_output` judges the rest."""
    store = open_store(request.output, request.storage)
    try:
        return stored_object(store, store.stat(f"{request.output}/{JOB_RECORD}"))
    except (HeadraceError, OSError):  # no record, or none that can be read
        return None


def _kept_schema(record: dict[str, Any] | None, first: ObjectRef) -> tuple[pa.Schema, str] | None:
    """What the record of the output's job says about the first file's schema, and that job's fingerprint, where the schema was
    learned from this very version of the file. It saves reading a footer.
    """
    if record is None:
        return None
    try:
        said = record["first_input"]
        if (said["uri"], said["version"]) != (first.uri, first.version):
            return None
        schema = read_schema(base64.b64decode(said["schema"]))
        return schema, str(record["fingerprint"])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):  # it cannot be read
        return None


def _planned(given: _Given, stored: pa.Schema) -> Prepared:
    """`stored` is the schema of the first file."""
    request, specs = given.request, given.specs
    signatures = [spec.signatures[model.signature] for spec, model in zip(specs, request.models, strict=True)]
    models = list(zip(signatures, choose_columns(request, signatures), strict=True))
    unknown = [unknown_ranks(varying_batch(choice.fed(one), choice)[1], choice) for one, choice in models]
    if any(unknown):
        # Planned with any rank, a job tells how the first row is read.
        some = [
            (one, replace(choice, ranks=tuple((name, 1) for name in names)))
            for (one, choice), names in zip(models, unknown, strict=True)
        ]
        bare = replace(given, request=replace(request, where=None, keep=()), around=(given.around[0], None))
        planned = _hold_together(bare, stored, some)
        ranks = found_ranks(planned.job, specs, [choice for _, choice in models], given.inputs.first)
        models = [(one, replace(choice, ranks=found)) for (one, choice), found in zip(models, ranks, strict=True)]
    return _hold_together(given, stored, models)


def _hold_together(given: _Given, stored: pa.Schema, models: Sequence[tuple[Signature, ColumnChoice]]) -> Prepared:
    """`models` are each model's signature, and what is said of its columns."""
    request, inputs, first = given.request, given.inputs, given.inputs.first
    preprocess, postprocess = given.around
    schema, partitions = with_partitions(request, inputs, stored, models)
    seen, where = schema, first.uri
    if preprocess is not None:
        seen, where = preprocess.applied(schema).output_schema, preprocess.name
    columns = plan_columns(seen, models, request.keep, partition_columns=partitions, where=where)
    output_schema = columns.output_schema
    if postprocess is not None:
        output_schema = postprocess.applied(output_schema).output_schema
    if postprocess or preprocess:
        check_writable(output_schema, "--postprocess" if postprocess else "--preprocess")
    else:
        check_kept(pa.schema([output_schema.field(name) for name in columns.keep]))
        check_writable(pa.schema([field for plan in columns.models for field in plan.outputs.fields]), "the model")
    if request.where is not None:
        RowFilter(request.where, output_schema)
    check_partitions(request, inputs, output_schema)
    check_compilable(request, given.refs, columns)
    batch_rows, rule = choose_batch_rows(columns, request.batch_rows)
    # A function may read any column.
    read = schema.names if preprocess is not None else columns.columns
    check_dead_letters(request, pa.schema([schema.field(name) for name in read]))
    check_report(request.report, request.compare, request.storage)
    job = Job(
        **request.options(),
        models=tuple(
            JobModel(ref, model.signature, plan.resolved(choice), spec.operations.get(model.signature, Operations()))
            for ref, model, plan, (_, choice), spec in zip(
                given.refs, request.models, columns.models, models, given.specs, strict=True
            )
        ),
        inputs=request.inputs if inputs.table is None else (inputs.table.name,),
        folder=common_folder(given.patterns),
        partitions=tuple(key for key in partitions if key in read),
        keep=columns.keep,
        input_schema=pa.schema([schema.field(name).with_nullable(True) for name in read]).serialize().to_pybytes(),
        batch_rows=batch_rows,
        batch_rule=rule,
        versions=tuple(sorted(versions().items())),
        preprocess=preprocess,
        postprocess=postprocess,
        user_packages=tuple(sorted((package.name, package.digest) for package in request.packages)),
        first_input=FirstInput(first.uri, first.version, stored.serialize().to_pybytes()),
        table=inputs.table,
    )
    return Prepared(job, given.specs, inputs, columns, seen)


def with_partitions(
    request: Request,
    inputs: Survey,
    stored: pa.Schema,
    models: Sequence[tuple[Signature, ColumnChoice]] = (),
) -> tuple[pa.Schema, tuple[str, ...]]:
    """The first file's columns followed by the partition columns of its folders, and the names of the latter.

    Partition columns are text, except with `--partition_columns=typed`, or where `--cast` feeds one to an input of numbers.
    """
    if request.partition_columns == "none":
        return stored, ()
    known = set(stored.names)
    partitions = tuple(key for key in inputs.partitions if key not in known)
    cast = {
        column
        for signature, choice in models
        for fed in [row_inputs(signature.inputs, choice.rules)]
        for tensor, columns in ({name: (name,) for name in fed} | dict(choice.features)).items()
        if tensor in choice.rules.cast and tensor in fed and fed[tensor].dtype != "string"
        for column in columns
    }
    typed = partitions if request.partition_columns == "typed" else cast
    kinds = {key: inputs.types.of(key) if key in typed else pa.string() for key in partitions}
    metadata: Any = stored.metadata
    return pa.schema([*stored, *(pa.field(key, kind) for key, kind in kinds.items())], metadata), partitions


def pin_requested(request: Request) -> list[ModelRef]:
    """Pins each of the models. Raises `InvalidRequest` where none of them uses --custom_objects."""
    refs = [
        pin_model(
            model.uri,
            request.storage,
            weights=model.weights,
            unsafe=request.unsafe_model,
            allow_stateful=request.allow_stateful_model,
            import_modules=request.import_modules,
        )
        for model in request.models
    ]
    if not request.custom_objects:
        return refs
    if refs and not any(ref.is_keras for ref in refs):
        raise unused_custom_objects(refs[0], request.custom_objects)
    return [replace(ref, custom_objects=request.custom_objects) if ref.is_keras else ref for ref in refs]


def check_compilable(request: Request, refs: Sequence[ModelRef], columns: ColumnPlan) -> None:
    """Raises `InvalidRequest` for what XLA cannot compile, as far as it can be known without compiling."""
    for model, ref, plan in zip(request.models, refs, columns.models, strict=True):
        specs = [*(model_input.spec for model_input in plan.inputs.inputs), *plan.outputs.specs]
        wrong = [f"strings in {spec.name!r}" for spec in specs if spec.dtype == "string"]
        wrong += [f"{spec.name!r}, which is {spec.composite.kind}" for spec in specs if spec.composite is not None]
        if request.jit_compile and (wrong or not format_of(ref).compiles):
            raise InvalidRequest(
                f"--jit_compile cannot compile {model.uri}",
                expected="a SavedModel or a Keras model of numbers in dense tensors",
                found=wrong[0] if wrong else format_of(ref).in_words,
                cure="Leave --jit_compile out",
            )
        if request.jit_compile and plan.own_sizes:
            raise InvalidRequest(
                f"--jit_compile cannot compile {model.uri} for images of their own size",
                expected="--decode_image TENSOR=HxW, one size that it compiles once",
                found="--decode_image TENSOR=own",
                cure="Leave --jit_compile out",
            )


def check_partitions(request: Request, inputs: Survey, output_schema: pa.Schema) -> None:
    """Raises `InvalidRequest` where readers of the output would miss a value that a folder of the input holds."""
    for key, uri in inputs.too_long.items():
        if key not in output_schema.names:
            kept = key in inputs.partitions and request.partition_columns != "none" and request.postprocess is None
            raise InvalidRequest(
                f"The partition folder of {key!r} above {uri} is too long for the output",
                expected=f"{MOST_FOLDER_BYTES} bytes at most for KEY=VALUE, once all but letters and digits are quoted",
                found=f"a longer name, whose value readers of the output could not get back in column {key!r}",
                cure=f"Name {key!r} in --keep, with the other columns that you want to keep: it is then written into the files"
                if kept
                else "Shorten the folder's name",
            )


def check_dead_letters(request: Request, columns: pa.Schema) -> None:
    """Names that clash with those of `columns`, and a folder in which an --input would find them."""
    folder = request.on_error.dead_letters
    if folder is None:
        return
    dead_letter_schema(columns)
    for pattern in request.inputs:
        parts = pattern.rpartition("/")[0].split("/")
        below = f"{folder}/".startswith(split_glob(pattern)[0]) and not f"{folder}/".startswith(f"{request.output}/")
        like = len(folder.split("/")) <= len(parts) and all(
            glob_regex(part).fullmatch(found) for part, found in zip(parts, folder.split("/"), strict=False)
        )
        if below and (like or "**" in pattern):
            raise InvalidRequest(
                f"--dead_letters={folder} is where --input reads from",
                expected="a folder that no --input matches",
                found=pattern,
                cure="Name another folder, or leave --dead_letters out",
            )


# GCS and S3 limit an object's name, https://cloud.google.com/storage/docs/objects#naming, and Linux limits a path.
_MOST_NAME_BYTES = 1024
_MOST_PATH_BYTES = 4095
_ADDED_BYTES = 100  # what `output_name`, marks and a file of dead letters add, at most


class _OutputApart:
    """Predictions written where a job's own --input finds them would be read as inputs by the next run; and names that a store
    does not take would fail the job in its middle.
    """

    def __init__(self, request: Request, patterns: tuple[str, ...]) -> None:
        output = request.output
        self._inside, self._folder, self._output = f"{output}/", common_folder(patterns), output
        near = [pattern for pattern in patterns if self._may_match(pattern)]
        self._named = {pattern for pattern in near if not split_glob(pattern)[1]}
        self._globs = [(glob_regex(pattern), pattern) for pattern in near if pattern not in self._named]
        self._real = f"{os.path.realpath(output)}/" if scheme_of(output) == "file" else None
        self._last_folder = ""
        places = [output, *filter(None, [request.on_error.dead_letters])]
        self._place = max(places, key=lambda place: len(_name_in_store(place).encode()))
        local = "://" not in output
        self._most = _MOST_PATH_BYTES if local else _MOST_NAME_BYTES
        # Quoting makes at most three bytes of one, and names of UTF-8 have at most four bytes for each letter.
        self._short = (self._most - _ADDED_BYTES - len(_name_in_store(self._place).encode())) // 12

    def _may_match(self, pattern: str) -> bool:
        """A pattern that no name in the output folder can match is not tried on each file."""
        folder = split_glob(pattern)[0]
        return folder.startswith(self._inside) or self._inside.startswith(folder)

    def _linked_into(self, uri: str) -> bool:
        """Whether a local file is in the output folder by way of links."""
        folder = uri[: uri.rfind("/") + 1]
        if self._real is None or folder == self._last_folder:
            return False
        self._last_folder = folder  # no need to check its neighbours again
        return f"{os.path.realpath(folder)}/".startswith(self._real)

    def check(self, ref: ObjectRef) -> None:
        """Raises `InvalidRequest` where a pattern matches that input's output, or finds it in the output folder, and where the
        output's name would be too long for its store.
        """
        if len(ref.uri) - len(self._folder) > self._short:
            self._check_length(ref)
        found = ref.uri if ref.uri.startswith(self._inside) or self._linked_into(ref.uri) else None
        if self._named or self._globs:
            written = self._inside + output_name(relative_stem(ref.uri, self._folder), ref, 0, 0, "0" * 64)
            matching = [pattern for regex, pattern in self._globs if regex.fullmatch(written)]
            found = written if written in self._named else next(iter(matching), found)
        if found is not None:
            raise InvalidRequest(
                f"--output={self._output} is where --input reads from",
                expected="a folder that no --input matches",
                found=found,
                cure="Name another --output, or a narrower --input",
            )

    def _check_length(self, ref: ObjectRef) -> None:
        name = output_name(relative_stem(ref.uri, self._folder), ref, 0, 0, "0" * 64)
        written = f"{_name_in_store(self._place)}/{name}"
        length = len(written.encode()) + (17 if self._place != self._output else 0)
        if length > self._most:
            raise InvalidRequest(
                f"The name of the output of {ref.uri} is too long for its store",
                expected=f"{self._most:,} bytes at most",
                found=f"{length:,} bytes in {self._place}",
                cure="Choose a shorter --output, or shorten the names of the input's folders",
            )


def _name_in_store(uri: str) -> str:
    """The URI without the scheme and the bucket."""
    return uri.partition("://")[2].partition("/")[2] if "://" in uri else uri
