"""The user's request: the flags as values, each checked against its required form."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from headrace.transforms.columns.image_sizes import ImageSize, parse_image_size, unused_ignore_exif
from headrace.transforms.errors import InvalidRequest
from headrace.transforms.jobs.input_files import absolute_uri, check_one_store, scheme_of
from headrace.transforms.jobs.job import DEAD_LETTERS_FOLDER, REPORT, JobOptions, OnError
from headrace.transforms.models.loading import Loading
from headrace.transforms.storage.store import StoreOptions, public_uri
from headrace.transforms.tables.snapshot import parse_table

from ..packages.user_package import UserPackage
from .beam_options import PredictOptions
from .flag_values import names, output_names, pairs, rows_per_batch, seconds_of, tf_examples, top_classes, where_text
from .flags import DEFAULT_MAX_BAD_ROWS, DEFAULT_MAX_FAILED_SHARDS, DEFAULT_SIGNATURE, NEEDED


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One model as asked for. `name` is "" where it was given none."""

    name: str
    uri: str
    weights: str | None
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(JobOptions):
    """The user's request, parsed. A field that has a flag's name and no line in `parse_request` is that flag's value.

    `keep=None` and `batch_rows=None` leave the choice to headrace.

    `within` is in seconds. `packages` are `user_packages` built, for as long as they are on the path.

    Keys of `features`, `predictions`, `top_k`, `cast`, `fill`, `pad`, `decode_image` and `tf_example` are tensors, or
    `NAME.TENSOR` of a named model. `top_k` are numbers of classes, each with the URI of their labels if there are any.
    """

    models: tuple[ModelRequest, ...]
    custom_objects: tuple[str, ...]
    unsafe_model: bool
    allow_stateful_model: bool
    import_modules: tuple[str, ...]
    inputs: tuple[str, ...]
    features: dict[str, tuple[str, ...]]
    predictions: dict[str, str]
    outputs: tuple[str, ...] | None
    top_k: dict[str, tuple[int, str | None]]
    constants: dict[str, str]
    cast: dict[str, bool]
    fill: dict[str, str]
    pad: dict[str, str]
    decode_image: dict[str, ImageSize]
    ignore_exif: bool
    tf_example: dict[str, tuple[str, ...]]
    prediction_type: str
    keep: tuple[str, ...] | None
    partition_columns: str
    preprocess: str | None
    postprocess: str | None
    user_packages: tuple[str, ...]
    batch_rows: int | None
    sample: int | None
    trial: int | None
    within: float | None
    price_per_core_hour: float | None
    single_file: bool
    overwrite: bool
    clean: bool
    packages: tuple[UserPackage, ...] = ()

    @property
    def named_modules(self) -> tuple[str, ...]:
        """The modules that flags name, which a worker must be able to import."""
        names = (*self.import_modules, *self.custom_objects, *filter(None, (self.preprocess, self.postprocess)))
        return tuple(dict.fromkeys(name.partition(":")[0] for name in names))


_FROM_ONE = (
    *("limit", "sample", "trial", "shard_bytes", "connections", "in_flight_bytes", "max_failed_shards", "processes"),
)


def _check_given(options: PredictOptions, command: str) -> tuple[str, ...]:
    """The flags that this command requires; all of them are given."""
    needed: tuple[str, ...] = () if command == "stage" else NEEDED[command]
    if command == "inspect" and options.input:
        needed = ()
    if command == "verify" and options.sample is not None:
        needed = NEEDED["run"]
    if command != "verify" and options.sample is not None:
        cure = "headrace verify --sample=N and the flags of the job's command"
        raise InvalidRequest("--sample is for verify", cure=cure)
    for name in needed:
        if not getattr(options, name):
            raise InvalidRequest(
                f"--{name} is missing",
                expected=" ".join(f"--{flag}=…" for flag in needed),
                cure="Add it; headrace --help shows an example",
            )
    _check_trial(options, command)
    for name in _FROM_ONE:
        if (value := getattr(options, name)) is not None and value < 1:
            raise InvalidRequest(f"--{name}={value} is out of range", expected="1 or more", found=str(value))
    return needed


def _check_together(options: PredictOptions) -> None:
    if options.ignore_exif and not options.decode_image:
        raise unused_ignore_exif()
    if options.incremental and options.overwrite:
        raise InvalidRequest("--incremental and --overwrite contradict each other", cure="Leave one of them out")
    if options.compact and options.limit is not None:
        raise InvalidRequest(
            "--compact and --limit contradict each other",
            expected="--limit for a trial of few rows, --compact for many small files",
            found="both",
            cure="Leave --compact out of a trial: predictions are the same with and without it",
        )
    if options.single_file and not options.compact:
        raise InvalidRequest("--single_file needs --compact, which joins the rows of input files", cure="Add --compact")


_FILES = (".parquet", ".parq", ".pq", ".csv", ".tsv", ".json", ".jsonl", ".arrow", ".feather", ".avro", ".orc")


def _check_folder(flag: str, value: str) -> None:
    if not value.rstrip("/").lower().endswith(_FILES):
        return
    folder = re.sub(r"/?[^/]*[*?[].*", "", value.rstrip("/").rpartition(".")[0]) or "out"
    gets, one_file = "a file for each input file with such rows", ""
    if flag == "--output":
        gets = "an output for each input file, and _SUCCESS once all are there"
        one_file = ". For one file in it, add --compact and --single_file; docs/one_file.md shows how"
    raise InvalidRequest(
        f"{flag}={value} has the name of a file",
        expected=f"a folder: it gets {gets}",
        found=value,
        cure=f"Name a folder, as in {flag}={folder}. Programs read it as one table{one_file}",
    )


def parse_request(options: PredictOptions, command: str) -> Request:
    """Raises `InvalidRequest` where a flag is missing or is not a value of its kind. A template is staged without data."""
    needed = _check_given(options, command)
    _check_together(options)
    inputs = tuple(map(_input, options.input or ()))
    _check_tables(inputs)
    check_one_store(pattern for pattern in inputs if not pattern.startswith("@"))
    output = absolute_uri(options.output or "").rstrip("/")
    if output.endswith(":") or (not output and "output" in needed):  # nothing but a scheme, or the root
        raise InvalidRequest(f"--output={options.output} is not a folder of its own", cure="Name a folder below it")
    if command in ("run", "plan"):
        _check_folder("--output", options.output or "")
        _check_folder("--dead_letters", options.dead_letters or "")
    parsed: dict[str, Any] = {
        "models": _models(options),
        "custom_objects": tuple(options.custom_objects or ()),
        "import_modules": tuple(dict.fromkeys(options.import_module or ())),
        "inputs": inputs,
        "output": output,
        "features": {tensor: tuple(names(value)) for tensor, value in pairs("--feature", options.feature)},
        "predictions": dict(pairs("--prediction", options.prediction)),
        "outputs": None if options.outputs is None else output_names(options.outputs),
        "top_k": {output: top_classes(output, value) for output, value in pairs("--top_k", options.top_k)},
        "constants": dict(pairs("--constant", options.constant)),
        "cast": dict.fromkeys((name for value in options.cast or () for name in names(value)), True),
        "fill": dict(pairs("--fill", options.fill)),
        "pad": dict(pairs("--pad", options.pad)),
        "decode_image": {
            tensor: parse_image_size(tensor, value) for tensor, value in pairs("--decode_image", options.decode_image)
        },
        "tf_example": tf_examples(options.tf_example),
        "keep": None if options.keep is None else tuple(dict.fromkeys(names(options.keep))),
        "where": None if options.where is None else where_text(options.where),
        "user_packages": tuple(options.user_package or ()),
        "batch_rows": rows_per_batch(options.batch_size),
        "within": None if options.within is None else seconds_of("within", options.within),
        "storage": StoreOptions(options.billing_project, options.kms_key),
        "loading": Loading(options.connections, options.in_flight_bytes, options.model_sharing, options.device),
        "on_error": _on_error(options, output),
        "report": _report(options, output),
        "compare": None if options.compare is None else absolute_uri(options.compare),
    }
    given = [name for one in fields(Request) if (name := one.name) not in parsed and name != "packages"]
    return Request(**parsed, **{name: getattr(options, name) for name in given})


# Flags of one value of --on_error, and what the others do with a row.
_OF_POLICY = {"dead_letters": "dead_letter", "max_bad_rows": "dead_letter", "max_failed_shards": "skip_shard"}
_WHERE = {
    "fail": "where the first bad row fails the job",
    "dead_letter": "where bad rows go to dead letters",
    "skip_shard": "where a bad row fails its shard",
}


def _input(given: str) -> str:
    if (table := parse_table(given)) is not None:
        return str(replace(table, uri=absolute_uri(table.uri)))
    return f"@{absolute_uri(given[1:])}" if given.startswith("@") else absolute_uri(given)


def _check_tables(inputs: tuple[str, ...]) -> None:
    if len(inputs) > 1 and any(map(parse_table, inputs)):
        raise InvalidRequest(
            "--input names a table and something else",
            expected="one table alone: all files of a job have that table's columns",
            found=", ".join(inputs),
            cure="Run a job for each",
        )


def _check_trial(options: PredictOptions, command: str) -> None:
    for name in ("trial", "within", "price_per_core_hour"):
        if getattr(options, name) is not None and (command != "plan" or options.trial is None):
            raise InvalidRequest(
                f"--{name} is for plan" + (" --trial" if name != "trial" else ""),
                cure="headrace plan --trial=N and the flags of the job's command",
            )
    price = options.price_per_core_hour
    if price is not None and not 0 < price < math.inf:
        what = f"--price_per_core_hour={price} is not a price"
        raise InvalidRequest(what, expected="a number above 0", found=str(price))


def _on_error(options: PredictOptions, output: str) -> OnError:
    for flag, policy in _OF_POLICY.items():
        if (value := getattr(options, flag)) is not None and options.on_error != policy:
            raise InvalidRequest(
                f"--{flag}={value} does nothing {_WHERE[options.on_error]}",
                expected=f"--on_error={policy} with --{flag}",
                found=f"--on_error={options.on_error}",
                cure=f"Add --on_error={policy}, or leave --{flag} out",
            )
    if options.on_error == "fail":
        return OnError()
    if options.on_error == "skip_shard":
        most_shards = options.max_failed_shards
        return OnError(skip_shards=True, most_shards=DEFAULT_MAX_FAILED_SHARDS if most_shards is None else most_shards)
    most = DEFAULT_MAX_BAD_ROWS if options.max_bad_rows is None else options.max_bad_rows
    if not re.fullmatch(r"\d{1,18}|(100(\.0+)?|\d{1,2}(\.\d{1,9})?)%", most):
        raise InvalidRequest(
            f"--max_bad_rows={most} is not a number of rows",
            expected="a whole number, or a share as 1% or 0.05%",
            found=most,
        )
    folder = usual = f"{output}/{DEAD_LETTERS_FOLDER}"
    if options.dead_letters is not None:
        folder = absolute_uri(options.dead_letters).rstrip("/")
        inside = folder != usual and f"{folder}/".startswith(f"{output}/")
        if inside or not folder or folder.endswith(":"):
            raise InvalidRequest(
                f"--dead_letters={options.dead_letters} is not a folder of its own",
                expected="a folder outside of --output",
                found=folder or "/",
                cure=f"Leave it out, and dead letters go to {usual}",
            )
    return OnError(folder, most)


def _models(options: PredictOptions) -> tuple[ModelRequest, ...]:
    by_flag = {flag: dict(_by_model(f"--{flag}", getattr(options, flag))) for flag in ("model", "weights", "signature")}
    uris, weights, signatures = by_flag.values()
    if len(uris) > 1 and "" in uris:
        raise InvalidRequest(
            "--model is given several times",
            expected="--model=NAME=URI for each of several models",
            found=f"--model={uris['']} without a name",
            cure="Name each: the names keep their columns apart.",
        )
    for flag, given in (("--weights", weights), ("--signature", signatures)):
        if strange := sorted(given.keys() - uris.keys() - {""}):
            raise InvalidRequest(
                f"{flag}={strange[0]}=… names no model",
                expected=f"one of {', '.join(map(repr, uris)) or 'the names in --model=NAME=URI'}",
                found=strange[0],
            )
    if "" in weights and "" not in uris:
        raise InvalidRequest(
            f"--weights={weights['']} does not say for which model",
            expected=f"--weights=NAME=URI, with one of {', '.join(map(repr, uris))}",
            found="no name",
            cure="Give it the name that the model has in --model=NAME=URI",
        )
    return tuple(
        ModelRequest(
            name,
            absolute_uri(uri).rstrip("/") or "/",
            absolute_uri(weights[name]) if weights.get(name) else None,
            signatures.get(name, signatures.get("", DEFAULT_SIGNATURE)),
        )
        for name, uri in uris.items()
    )


def _by_model(flag: str, values: list[str] | None) -> Iterator[tuple[str, str]]:
    """`NAME=VALUE`, or the value alone under "". A name has no slash, so most URIs that contain = need no name."""
    seen: set[str] = set()
    for value in values or ():
        match = re.fullmatch(r"([A-Za-z_]\w*)=(.+)", value)
        name, rest = match.groups() if match else ("", value)
        if name in seen:
            raise InvalidRequest(
                f"{flag} is given twice {f'for {name!r}' if name else 'without a name'}",
                expected=f"{flag}=NAME=… for each of several models",
                found=value,
            )
        seen.add(name)
        yield name, rest


_WRITABLE = ("gs", "s3", "s3a", "file", "memory")


def _report(options: PredictOptions, output: str) -> str | None:
    """None where no report is wanted. Raises `InvalidRequest` where none can be written there."""
    if options.report is None:
        return f"{output}/{REPORT}"
    if options.report in ("none", ""):
        if options.compare is not None:
            raise InvalidRequest(
                f"--compare={public_uri(options.compare)} does nothing without a report",
                expected="--report=URI with --compare",
                found="--report=none",
                cure="Leave one of them out",
            )
        return None
    place = absolute_uri(options.report)
    if scheme_of(place) not in _WRITABLE or not place.endswith(".html"):
        raise InvalidRequest(
            f"--report={public_uri(options.report)} is not a place for a report",
            expected=f"a name that ends in .html, in one of {', '.join(_WRITABLE)}",
            found=public_uri(options.report),
            cure=f"Leave it out, and the report is {output}/{REPORT}",
        )
    return place
