"""Every flag once: its help, its form, and what it means as a value."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, _BeamArgumentParser

from pipeline.user_package import UserPackage
from transforms.errors import InvalidRequest
from transforms.job import DEAD_LETTERS_FOLDER, Loading, OnError
from transforms.listing import absolute_uri, check_one_store
from transforms.storage.base import StoreOptions

DEFAULT_SIGNATURE = "serving_default"
DEFAULT_SHARD_BYTES = 128 << 20
DEFAULT_MAX_BAD_ROWS = "1%"  # stray rows pass; a wrong column or a changed format, which hits most rows, does not
COMMANDS = ("run", "plan", "inspect", "verify")

_EXAMPLES = """\
examples:
  headrace --model=gs://bucket/model --input='gs://bucket/in/*.parquet' --output=gs://bucket/out
  headrace --model=model.keras --input='in/*.parquet' --output=out --feature image=pixels --keep=id
  headrace inspect --model=gs://bucket/model
  headrace verify --output=gs://bucket/out

Every option of Apache Beam is taken too (--runner, --project, --region, …). With no --runner the job runs in this process.
"""


class PredictOptions(PipelineOptions):
    """headrace's flags beside Beam's; a template or another program may view any options as these."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        what = parser.add_argument_group("what to predict")
        what.add_argument(
            "--model",
            action="append",
            metavar="[NAME=]URI",
            help="SavedModel folder, .keras, .h5 or .tflite: gs://…, https://… or a path; with names, several models in "
            "one pass over the rows, each one's columns prefixed NAME_",
        )
        what.add_argument(
            "--weights",
            action="append",
            metavar="[NAME=]URI",
            help="the weights of a Keras model of which --model names the config.json",
        )
        what.add_argument(
            "--custom_objects",
            action="append",
            metavar="MODULE:NAME",
            help="a class or function that a Keras model needs, by its import; repeatable",
        )
        what.add_argument(
            "--unsafe_model",
            action="store_true",
            help="let a Keras model run Python code of its own, such as lambdas (default: it is refused)",
        )
        what.add_argument(
            "--signature",
            action="append",
            metavar="[NAME=]SIGNATURE",
            help=f"the model's signature (default: {DEFAULT_SIGNATURE})",
        )
        what.add_argument(
            "--input",
            action="append",
            metavar="GLOB",
            help="Parquet files, as in 'gs://bucket/in/*.parquet', or @FILE: a list of such, one on each line; repeatable",
        )
        what.add_argument("--output", metavar="URI", help="folder for the predictions, the manifest and _SUCCESS")
        what.add_argument(
            "--limit",
            type=int,
            metavar="N",
            help="only the first N rows of the plan, for a trial; the manifest says so",
        )
        what.add_argument(
            "--sample",
            type=int,
            metavar="N",
            help="verify: compute N random batches again too; give the flags of the job's own command with it",
        )
        columns = parser.add_argument_group("columns")
        columns.add_argument(
            "--feature",
            action="append",
            metavar="TENSOR=COLUMN[,COLUMN…]",
            help="the column or columns that feed an input of the model, or a field of a struct as in payload.pixels; "
            "repeatable (default: the column of that name; a model with one input and data with one fitting column need "
            "none). \\, is a comma in a name; with several models, NAME.TENSOR is one model's input",
        )
        columns.add_argument(
            "--prediction",
            action="append",
            metavar="OUTPUT=COLUMN",
            help="the column that an output of the model becomes; repeatable (default: the output's name)",
        )
        columns.add_argument(
            "--keep",
            metavar="A,B",
            help="columns that pass through (default: all that are no feature; --keep= for none)",
        )
        columns.add_argument(
            "--partition_columns",
            choices=("auto", "none"),
            default="auto",
            help="key=value folders that every input file lies in are text columns (auto, default), unless the files have "
            "a column of that name; or not",
        )
        columns.add_argument(
            "--cast",
            action="append",
            metavar="TENSOR",
            help="let values change on their way into this tensor, as from float64 to float32; repeatable (default: "
            "only casts that change no value)",
        )
        columns.add_argument(
            "--fill",
            action="append",
            metavar="TENSOR=VALUE",
            help="what stands for a null; repeatable (default: an error)",
        )
        columns.add_argument(
            "--pad",
            action="append",
            metavar="TENSOR=VALUE",
            help="what makes lists equally long; repeatable (default: lists of unequal length are an error)",
        )
        columns.add_argument(
            "--decode_image",
            action="append",
            metavar="TENSOR=HxW",
            help="decode JPEG or PNG bytes to this height and width, resizing where needed; repeatable",
        )
        columns.add_argument(
            "--prediction_type",
            choices=("auto", "list", "tensor"),
            default="auto",
            help="columns of outputs with several values a row: fixed-size lists, arrow.fixed_shape_tensor, or (auto, "
            "default) lists for one dimension and tensors for more",
        )
        functions = parser.add_argument_group("around the model")
        functions.add_argument(
            "--preprocess",
            metavar="MODULE:FUNCTION",
            help="a function of a record batch, before the model; it returns a record batch of as many rows",
        )
        functions.add_argument(
            "--postprocess", metavar="MODULE:FUNCTION", help="the same, on kept columns and predictions"
        )
        functions.add_argument(
            "--user_package",
            action="append",
            metavar="DIR|WHEEL|SDIST",
            help="a package of your own modules, which the workers get: a folder with pyproject.toml or setup.py, or what was "
            "built of it; built and imported apart before anything is submitted; repeatable",
        )
        how = parser.add_argument_group("how to run")
        how.add_argument(
            "--batch_size",
            default="auto",
            metavar="ROWS",
            help="rows per batch, or auto (default): decided by the schema and the model alone",
        )
        how.add_argument(
            "--jit_compile",
            action="store_true",
            help="compile the model with XLA; its numbers may differ in their last bits",
        )
        how.add_argument(
            "--device",
            choices=("auto", "cpu", "gpu"),
            default=Loading().device,
            help="where workers compute: all GPUs that they have, else the CPU (auto, default); cpu; or gpu, an error without",
        )
        how.add_argument(
            "--worker_accelerator",
            metavar="TYPE:COUNT[:DRIVER]",
            help="GPUs of each Dataflow worker, as in nvidia-l4:1, with their driver (default: Dataflow's choice, or as in "
            "nvidia-tesla-t4:1:5xx); --device=gpu follows",
        )
        how.add_argument(
            "--on_error",
            choices=("fail", "dead_letter"),
            default="fail",
            help="what a row does that cannot be predicted: it fails the job, which names it (default), or it goes to dead "
            "letters with its reason, and the rest is predicted",
        )
        how.add_argument(
            "--dead_letters",
            metavar="URI",
            help=f"folder for these rows, in Parquet (default: OUTPUT/{DEAD_LETTERS_FOLDER})",
        )
        how.add_argument(
            "--max_bad_rows",
            metavar="N|P%",
            help="how many rows may go there, of each shard and of the job, before it fails (default: "
            f"{DEFAULT_MAX_BAD_ROWS.replace('%', '%%')})",
        )
        how.add_argument(
            "--shard_bytes",
            type=int,
            default=DEFAULT_SHARD_BYTES,
            metavar="BYTES",
            help="files above this many compressed bytes are split, small ones read together up to as many (default: 128 MiB)",
        )
        how.add_argument(
            "--incremental",
            action="store_true",
            help="go on though inputs changed or vanished: predict what is new or changed, then remove the outputs of the "
            "others (default: that is refused)",
        )
        how.add_argument(
            "--overwrite",
            action="store_true",
            help="replace another job's output: removes what that job's own records name, and nothing else",
        )
        how.add_argument("--verbose", action="store_true", help="log more, and show tracebacks")
        loading = parser.add_argument_group("how a worker loads the model")
        loading.add_argument(
            "--model_sharing",
            choices=("machine", "process"),
            default=Loading().model_sharing,
            help="who shares one copy of the weights: the processes of a machine (default), or each has its own",
        )
        loading.add_argument(
            "--connections",
            type=int,
            default=Loading().connections,
            metavar="N",
            help="connections that fetch the model at once (default: %(default)s)",
        )
        loading.add_argument(
            "--in_flight_bytes",
            type=int,
            default=Loading().in_flight_bytes,
            metavar="BYTES",
            help="bytes of the model that are asked for at once, at most (default: 256 MiB)",
        )
        access = parser.add_argument_group("access")
        access.add_argument("--billing_project", metavar="PROJECT", help="who pays for reading requester-pays buckets")
        access.add_argument("--kms_key", metavar="KEY", help="Cloud KMS key that encrypts the output")


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One model as asked for. `name` is "" where it was given none."""

    name: str
    uri: str
    weights: str | None
    signature: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for, parsed. `keep=None` and `batch_rows=None` leave the choice to headrace.

    `packages` are `user_packages` built, for as long as they are on the path.

    Keys of `features`, `predictions`, `cast`, `fill`, `pad` and `decode_image` are tensors, or `NAME.TENSOR` of a named
    model.
    """

    models: tuple[ModelRequest, ...]
    custom_objects: tuple[str, ...]
    unsafe_model: bool
    inputs: tuple[str, ...]
    output: str
    features: dict[str, tuple[str, ...]]
    predictions: dict[str, str]
    cast: dict[str, bool]
    fill: dict[str, str]
    pad: dict[str, str]
    decode_image: dict[str, tuple[int, int]]
    prediction_type: str
    keep: tuple[str, ...] | None
    partition_columns: str
    preprocess: str | None
    postprocess: str | None
    user_packages: tuple[str, ...]
    batch_rows: int | None
    jit_compile: bool
    shard_bytes: int
    limit: int | None
    sample: int | None
    incremental: bool
    overwrite: bool
    storage: StoreOptions
    loading: Loading
    on_error: OnError
    packages: tuple[UserPackage, ...] = ()

    @property
    def named_modules(self) -> tuple[str, ...]:
        """The modules that flags name, which a worker must be able to import."""
        names = (*self.custom_objects, *filter(None, (self.preprocess, self.postprocess)))
        return tuple(dict.fromkeys(name.partition(":")[0] for name in names))


def parse_request(options: PredictOptions, command: str) -> Request:
    """Raises `InvalidRequest` where a flag is missing or is no value of its kind."""
    needed = {"inspect": ("model",)}.get(command, ("model", "input", "output"))
    if command == "verify" and options.sample is None:
        needed = ("output",)
    if command != "verify" and options.sample is not None:
        raise InvalidRequest(
            "--sample is for verify", cure="headrace verify --sample=N and the flags of the job's command"
        )
    for name in needed:
        if not getattr(options, name):
            raise InvalidRequest(
                f"--{name} is missing",
                expected=" ".join(f"--{flag}=…" for flag in needed),
                cure="Add it; headrace --help shows an example",
            )
    for name in ("limit", "sample", "shard_bytes", "connections", "in_flight_bytes"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InvalidRequest(f"--{name}={value} is out of range", expected="1 or more", found=str(value))
    inputs = tuple(
        f"@{absolute_uri(pattern[1:])}" if pattern.startswith("@") else absolute_uri(pattern)
        for pattern in options.input or ()
    )
    check_one_store(pattern for pattern in inputs if not pattern.startswith("@"))
    if options.incremental and options.overwrite:
        raise InvalidRequest("--incremental and --overwrite contradict each other", cure="Leave one of them out")
    output = absolute_uri(options.output or "").rstrip("/")
    if output.endswith(":") or (not output and "output" in needed):  # nothing but a scheme, or the root
        raise InvalidRequest(f"--output={options.output} is no folder of its own", cure="Name a folder below it")
    return Request(
        models=_models(options),
        custom_objects=tuple(options.custom_objects or ()),
        unsafe_model=options.unsafe_model,
        inputs=inputs,
        output=output,
        features={tensor: tuple(_names(value)) for tensor, value in _pairs("--feature", options.feature)},
        predictions=dict(_pairs("--prediction", options.prediction)),
        cast=dict.fromkeys(options.cast or (), True),
        fill=dict(_pairs("--fill", options.fill)),
        pad=dict(_pairs("--pad", options.pad)),
        decode_image={tensor: _size(tensor, value) for tensor, value in _pairs("--decode_image", options.decode_image)},
        prediction_type=options.prediction_type,
        keep=None if options.keep is None else tuple(dict.fromkeys(_names(options.keep))),
        partition_columns=options.partition_columns,
        preprocess=options.preprocess,
        postprocess=options.postprocess,
        user_packages=tuple(options.user_package or ()),
        batch_rows=_batch_rows(options.batch_size),
        jit_compile=options.jit_compile,
        shard_bytes=options.shard_bytes,
        limit=options.limit,
        sample=options.sample,
        incremental=options.incremental,
        overwrite=options.overwrite,
        storage=StoreOptions(options.billing_project, options.kms_key),
        loading=Loading(options.connections, options.in_flight_bytes, options.model_sharing, options.device),
        on_error=_on_error(options, output),
    )


def _on_error(options: PredictOptions, output: str) -> OnError:
    if options.on_error == "fail":
        for flag in ("dead_letters", "max_bad_rows"):
            if (value := getattr(options, flag)) is not None:
                raise InvalidRequest(
                    f"--{flag}={value} has no meaning where the first bad row fails the job",
                    expected=f"--on_error=dead_letter with --{flag}",
                    found="--on_error=fail",
                    cure=f"Add --on_error=dead_letter, or leave --{flag} out",
                )
        return OnError()
    most = DEFAULT_MAX_BAD_ROWS if options.max_bad_rows is None else options.max_bad_rows
    if not re.fullmatch(r"\d{1,18}|(100(\.0+)?|\d{1,2}(\.\d{1,9})?)%", most):
        raise InvalidRequest(
            f"--max_bad_rows={most} is no number of rows",
            expected="a whole number, or a share as 1% or 0.05%",
            found=most,
        )
    folder = f"{output}/{DEAD_LETTERS_FOLDER}"
    if options.dead_letters is not None:
        folder = absolute_uri(options.dead_letters).rstrip("/")
        inside = folder == output or (folder.startswith(f"{output}/") and folder != f"{output}/{DEAD_LETTERS_FOLDER}")
        if inside or not folder or folder.endswith(":"):
            raise InvalidRequest(
                f"--dead_letters={options.dead_letters} is no folder of its own",
                expected="a folder outside of --output",
                found=folder or "/",
                cure=f"Leave it out, and dead letters lie in {output}/{DEAD_LETTERS_FOLDER}",
            )
    return OnError(folder, most)


def _models(options: PredictOptions) -> tuple[ModelRequest, ...]:
    uris, weights, signatures = (
        dict(_by_model(f"--{flag}", getattr(options, flag))) for flag in ("model", "weights", "signature")
    )
    if len(uris) > 1 and "" in uris:
        raise InvalidRequest(
            "--model is given several times",
            expected="--model=NAME=URI for each of several models",
            found=f"--model={uris['']} without a name",
            cure="Name each: its columns are told apart by that.",
        )
    for flag, given in (("--weights", weights), ("--signature", signatures)):
        if strange := sorted(given.keys() - uris.keys() - {""}):
            raise InvalidRequest(
                f"{flag}={strange[0]}=… names no model",
                expected=f"one of {', '.join(map(repr, uris)) or 'the names in --model=NAME=URI'}",
                found=strange[0],
            )
    return tuple(
        ModelRequest(
            name,
            absolute_uri(uri).rstrip("/") or "/",
            absolute_uri(beside) if (beside := weights.get(name, weights.get("") if name == "" else None)) else None,
            signatures.get(name, signatures.get("", DEFAULT_SIGNATURE)),
        )
        for name, uri in uris.items()
    )


def _by_model(flag: str, values: list[str] | None) -> Iterator[tuple[str, str]]:
    """`NAME=VALUE`, or the value alone under ""; a name has no slash, so that most URIs with = need no name."""
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


def _pairs(flag: str, values: list[str] | None) -> Iterator[tuple[str, str]]:
    form = _FORMS[flag]
    seen: set[str] = set()
    for value in values or ():
        name, equals, rest = (part.strip() for part in value.partition("="))
        if not equals or not name or (not rest and flag not in ("--fill", "--pad")):
            raise InvalidRequest(f"{flag} {value} has no meaning", expected=form, found=value)
        if flag == "--feature" and not all(_names(rest, blank=True)):
            raise InvalidRequest(f"{flag} {value} has no meaning", expected=form, found=value)
        if name in seen:
            raise InvalidRequest(f"{flag} names {name!r} twice", expected="each name once", found=value)
        seen.add(name)
        yield name, rest


_FORMS = {
    "--feature": "TENSOR=COLUMN or TENSOR=COLUMN,COLUMN",
    "--prediction": "OUTPUT=COLUMN",
    "--fill": "TENSOR=VALUE",
    "--pad": "TENSOR=VALUE",
    "--decode_image": "TENSOR=HxW",
}


def _names(value: str, *, blank: bool = False) -> list[str]:
    """Names with commas between; a comma within one is written with a backslash before it."""
    names = [part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", value)]
    return names if blank else [name for name in names if name]


def _size(tensor: str, value: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)
    if match is None:
        raise InvalidRequest(
            f"--decode_image {tensor}={value} is no size", expected="TENSOR=HxW, as in image=224x224", found=value
        )
    return int(match[1]), int(match[2])


def _batch_rows(value: str) -> int | None:
    if value == "auto":
        return None
    if re.fullmatch(r"[1-9]\d{0,8}", value):
        return int(value)
    raise InvalidRequest(
        f"--batch_size={value} is no number of rows", expected="a whole number from 1, or auto", found=value
    )


def help_text() -> str:
    parser = argparse.ArgumentParser(
        prog="headrace",
        usage=f"headrace [{'|'.join(COMMANDS)}] --model=URI --input=GLOB --output=URI [flags]",
        description="Predictions of a TensorFlow or Keras model over sharded Parquet. "
        "run (default) does the job; plan checks everything and writes nothing; inspect shows a model's signatures; verify "
        "reads a finished output back and holds it against its manifest and its inputs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    PredictOptions._add_argparse_args(parser)
    return parser.format_help()


def parse_flags(argv: Sequence[str]) -> PredictOptions:
    """Raises `InvalidRequest` for a flag that neither headrace nor Beam knows, naming the nearest that they do."""
    parser = _every_flag()
    try:
        _, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise InvalidRequest(
            f"The command line cannot be read: {error}", cure="headrace --help lists the flags"
        ) from error
    if unknown:
        known = sorted({flag for action in parser._actions for flag in action.option_strings})
        flag = unknown[0].split("=")[0]
        near = get_close_matches(flag, known, 1, 0.6)
        if not flag.startswith("-"):
            first = argv[0] == flag
            near = get_close_matches(flag, COMMANDS, 1, 0.6) if first else []
            raise InvalidRequest(
                f"{flag!r} is {'no command' if first else 'no flag'}",
                expected=f"one of {', '.join(COMMANDS)}, or --flag=value",
                found=flag,
                cure=f"Did you mean {near[0]}?" if near else "Quote a glob, so that the shell does not expand it",
            )
        raise InvalidRequest(
            f"There is no flag {flag}",
            expected="a flag of headrace or of Apache Beam",
            found=unknown[0],
            cure=f"Did you mean {near[0]}?" if near else "headrace --help lists the flags",
        )
    return PredictOptions(list(argv))


def runner_of(options: PipelineOptions) -> str | None:
    """The runner as given; None where the job is to run in this process."""
    runner = options.view_as(StandardOptions).runner
    return None if runner is None or runner.lower() in ("direct", "directrunner", "fnapirunner") else str(runner)


def _every_flag() -> argparse.ArgumentParser:
    """Beam collects options the same way, from all subclasses of PipelineOptions, when it parses a command line."""

    def subclasses(kind: type[PipelineOptions]) -> Iterator[type[PipelineOptions]]:
        child: type[PipelineOptions]
        for child in kind.__subclasses__():
            yield child
            yield from subclasses(child)

    parser = _Parser(allow_abbrev=False, add_help=False, conflict_handler="resolve", exit_on_error=False)
    for kind in subclasses(PipelineOptions):
        if "_add_argparse_args" in vars(kind):
            kind._add_argparse_args(parser)
    return parser


class _Parser(_BeamArgumentParser):  # Beam's own options call its `add_value_provider_argument`
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)
