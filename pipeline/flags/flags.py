"""Every flag of headrace once, with its help. Importing this imports neither Beam nor TensorFlow."""

from __future__ import annotations

import argparse

from headrace.transforms.jobs.job_defaults import DEAD_LETTERS_FOLDER, REPORT
from headrace.transforms.models.loading import Loading

DEFAULT_SIGNATURE = "serving_default"
DEFAULT_SHARD_BYTES = 128 << 20
DEFAULT_MAX_FAILED_SHARDS = 100
DEFAULT_MAX_BAD_ROWS = "1%"  # stray rows pass; a wrong column or a changed format, which hits most rows, does not
COMMANDS = ("run", "plan", "inspect", "verify")
# The flags that each command needs. `inspect` also takes an input without a model.
NEEDED = {
    "run": ("model", "input", "output"),
    "plan": ("model", "input", "output"),
    "inspect": ("model",),
    "verify": ("output",),
}


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        action="append",
        metavar="[NAME=]URI",
        help="SavedModel folder, Orbax checkpoint, .keras, .h5 or .tflite file: gs://…, s3://…, https://… or a path. Repeat it "
        "with names to run several models in one pass; the columns of each then start with NAME_",
    )
    group.add_argument(
        "--weights",
        action="append",
        metavar="[NAME=]URI",
        help="weights of a Keras model, where --model is its config.json",
    )
    group.add_argument(
        "--custom_objects",
        action="append",
        metavar="MODULE:NAME",
        help="class or function that a Keras model needs, by its import name; repeatable",
    )
    group.add_argument(
        "--unsafe_model",
        action="store_true",
        help="let a Keras model run its own Python code, such as lambdas, and let a SavedModel's graph run operations that "
        "can reach files, the network or other processes (default: such models are refused)",
    )
    group.add_argument(
        "--allow_stateful_model",
        action="store_true",
        help="run a model that changes its own state when it predicts; predictions then depend on the order of rows "
        "(default: such models are refused)",
    )
    group.add_argument(
        "--import_module",
        action="append",
        metavar="MODULE",
        help="module that registers operations that the model uses, such as tensorflow_text; imported before the model, "
        "where the job starts and on the workers; repeatable",
    )
    group.add_argument(
        "--signature",
        action="append",
        metavar="[NAME=]SIGNATURE",
        help=f"signature of the model (default: {DEFAULT_SIGNATURE})",
    )


def _add_input_and_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input",
        action="append",
        metavar="GLOB",
        help="Parquet files, such as 'gs://bucket/in/*.parquet'; a folder, for all *.parquet files in and below it; "
        "@FILE, a list of files and globs, one per line; repeatable; or one table, delta+URI[@VERSION] or "
        "iceberg+URI[@SNAPSHOT]",
    )
    group.add_argument("--output", metavar="URI", help="folder for predictions, manifest and _SUCCESS")
    group.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="predict only the first N rows, for a trial; the manifest records it",
    )
    group.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="verify: also compute N random batches again; add the flags of the job's command",
    )
    trial = "plan: run about N rows here, keeping nothing, for a minute at most, and show what the whole plan will take"
    group.add_argument("--trial", type=int, metavar="N", help=trial)
    within = "plan: how long the job may take, as 2h or 90min, for which --trial counts the workers (default: 1h)"
    group.add_argument("--within", metavar="TIME", help=within)
    price = "plan: what an hour of one core costs, for which --trial shows the cost of the whole plan"
    group.add_argument("--price_per_core_hour", type=float, metavar="PRICE", help=price)


def _add_columns(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--feature",
        action="append",
        metavar="TENSOR=COLUMN[,COLUMN…]",
        help="column or columns that feed an input of the model, or a struct field such as payload.pixels; repeatable "
        "(default: the column of that name, or the only column that fits a model with one input). Write \\, for a "
        "comma in a name, or the name as a JSON string in double quotes; with several models, NAME.TENSOR is the "
        "input of one model",
    )
    group.add_argument(
        "--prediction",
        action="append",
        metavar="OUTPUT=COLUMN",
        help="name of the column for an output of the model; repeatable (default: the output's name)",
    )
    group.add_argument(
        "--outputs",
        metavar="A,B",
        help="outputs that become columns (default: all with one row per input row)",
    )
    group.add_argument(
        "--top_k",
        action="append",
        metavar="OUTPUT=K[:LABELS]",
        help="K best classes of an output and their scores, instead of the output's own column, such as scores=5, or "
        "scores=5:gs://b/labels.txt for classes named by the lines of a text file; repeatable",
    )
    group.add_argument(
        "--constant",
        action="append",
        metavar="TENSOR=VALUE",
        help="value of an input that is the same for every row, such as temperature=0.7; a JSON list for several values; "
        "repeatable",
    )
    group.add_argument(
        "--keep",
        metavar="A,B",
        help="columns to copy to the output, quoted as in --feature; --keep= for none (default: all columns of the files "
        "that are not features)",
    )
    group.add_argument(
        "--partition_columns",
        choices=("auto", "typed", "none"),
        default="auto",
        help="how key=value folders that contain every input file become columns for --feature and --keep. auto (default): "
        "text, or numbers where --cast needs them; typed: integers, fractions, dates, or true and false where all values are; "
        "none: they do not. A column of that name in the files takes precedence",
    )


def _add_column_rules(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cast",
        action="append",
        metavar="TENSOR[,TENSOR…]",
        help="allow casts that can change values for these inputs, such as float64 to float32; * for all inputs; "
        "repeatable (default: only casts that change no value)",
    )
    group.add_argument(
        "--fill",
        action="append",
        metavar="TENSOR=VALUE",
        help="value that replaces nulls of this input; repeatable (default: a null is an error)",
    )
    group.add_argument(
        "--pad",
        action="append",
        metavar="TENSOR=VALUE",
        help="value that fills short lists of this input; repeatable (default: lists of unequal length are an error)",
    )
    group.add_argument(
        "--decode_image",
        action="append",
        metavar="TENSOR=HxW|own",
        help="decode JPEG or PNG bytes, and resize images to this height and width; own: each image keeps its size, and "
        "the model is called once per row; repeatable",
    )
    group.add_argument(
        "--ignore_exif",
        action="store_true",
        help="decode images as they are stored (default: JPEG images are turned as their EXIF orientation says)",
    )
    group.add_argument(
        "--tf_example",
        action="append",
        metavar="TENSOR[=A,B…]",
        help="encode columns as the serialized tf.train.Example or SequenceExample that an input takes, of all features that "
        "it parses or of those named; each is then a tensor to --feature, --fill and --cast; repeatable",
    )
    group.add_argument(
        "--prediction_type",
        choices=("auto", "list", "tensor"),
        default="auto",
        help="type of output columns with several values per row. auto (default): fixed-size lists for one dimension, "
        "arrow.fixed_shape_tensor for more; list or tensor: always that type",
    )


def _add_functions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preprocess",
        metavar="MODULE:FUNCTION",
        help="function that runs on each record batch before the model, and returns one of the same number of rows",
    )
    group.add_argument(
        "--postprocess", metavar="MODULE:FUNCTION", help="the same after the model, on kept columns and predictions"
    )
    group.add_argument(
        "--where", metavar="CONDITION", help="rows to write, as in 'score > 0.9'; others are counted (default: all)"
    )
    group.add_argument(
        "--user_package",
        action="append",
        metavar="DIR|WHEEL|SDIST",
        help="package of your own modules, installed on the workers: a folder with pyproject.toml or setup.py, a wheel or "
        "a source archive; repeatable",
    )


def _add_batches_and_bad_rows(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch_size",
        default="auto",
        metavar="ROWS",
        help="rows per batch, or auto (default), which depends on the schema and the model only",
    )
    group.add_argument(
        "--jit_compile",
        action="store_true",
        help="compile the model with XLA. Predictions may differ in their last bits. XLA drops assertions (tf.debugging) "
        "and clamps indices that are out of range: rows that the model would refuse are then predicted",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default=Loading().device,
        help="where workers compute. auto (default): on all GPUs, or on the CPU where there is none; cpu; gpu: an error "
        "where there is none",
    )
    group.add_argument(
        "--worker_accelerator",
        metavar="TYPE:COUNT[:DRIVER]",
        help="GPUs of each Dataflow worker, such as nvidia-l4:1, or with a driver nvidia-tesla-t4:1:5xx (default driver: "
        "Dataflow's choice); sets --device=gpu",
    )
    group.add_argument(
        "--on_error",
        choices=("fail", "dead_letter", "skip_shard"),
        default="fail",
        help="what happens to a row that cannot be predicted. fail (default): the job fails and names the row; "
        "dead_letter: the row goes to dead letters with the reason, and all other rows are predicted; skip_shard: its "
        "shard is listed with the reason, all other shards are predicted, and the command ends with exit code 1",
    )
    group.add_argument(
        "--dead_letters",
        metavar="URI",
        help=f"folder for dead letters, as Parquet (default: OUTPUT/{DEAD_LETTERS_FOLDER})",
    )
    group.add_argument(
        "--max_bad_rows",
        metavar="N|P%",
        help="how many rows of a shard and of the job may become dead letters before the job fails (default: "
        f"{DEFAULT_MAX_BAD_ROWS.replace('%', '%%')})",
    )
    group.add_argument(
        "--max_failed_shards",
        type=int,
        metavar="N",
        help=f"how many shards --on_error=skip_shard may skip before the job fails (default: {DEFAULT_MAX_FAILED_SHARDS})",
    )


def _add_workers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="worker processes on this machine, which share the weights and divide the cores (default: one process, with a "
        "thread for each core)",
    )


def _add_output_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--report",
        metavar="URI",
        help=f"HTML report of the run and its predictions, or none (default: OUTPUT/{REPORT})",
    )
    group.add_argument(
        "--compare",
        metavar="URI",
        help="report of an earlier run to compare predictions with (default: the one that --report replaces)",
    )
    group.add_argument(
        "--shard_bytes",
        type=int,
        default=DEFAULT_SHARD_BYTES,
        metavar="BYTES",
        help="split files above this many compressed bytes, and read small files together up to it (default: 128 MiB)",
    )
    group.add_argument(
        "--compact",
        action="store_true",
        help="join the rows of small files of a folder into one output per --shard_bytes of input (default: one output per "
        "file)",
    )
    group.add_argument(
        "--single_file",
        action="store_true",
        help="with --compact: refuse a job of more than one output file (default: as many as there are)",
    )
    group.add_argument(
        "--incremental",
        action="store_true",
        help="continue after inputs changed or disappeared: predict new and changed files, then remove outdated outputs "
        "(default: a changed input is an error)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace another job's output; removes only files that the records of that job list",
    )
    group.add_argument(
        "--no_wait",
        action="store_true",
        help="Dataflow: exit once the job is submitted, and print its id and page (default: wait and show progress)",
    )
    group.add_argument(
        "--clean",
        action="store_true",
        help="first remove hidden leftovers of interrupted uploads from the output folder; only while no other job "
        "writes there",
    )


def _add_messages(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON document on standard output",
    )
    group.add_argument(
        "--log_format",
        choices=("text", "json"),
        default="text",
        help="text (default): a live display on a terminal, else lines; json: one JSON object per line on standard error, "
        "progress and errors included; sets --json",
    )
    group.add_argument("--verbose", action="store_true", help="log more, and show tracebacks of errors")


def _add_loading(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model_sharing",
        choices=("machine", "process"),
        default=Loading().model_sharing,
        help="machine (default): all processes of a machine share one copy of the weights; process: one copy each",
    )
    group.add_argument(
        "--connections",
        type=int,
        default=Loading().connections,
        metavar="N",
        help="parallel connections that read the model (default: %(default)s)",
    )
    group.add_argument(
        "--in_flight_bytes",
        type=int,
        default=Loading().in_flight_bytes,
        metavar="BYTES",
        help="most bytes of the model requested at a time (default: 256 MiB)",
    )


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--billing_project", metavar="PROJECT", help="project that pays for reading requester-pays buckets"
    )
    group.add_argument("--kms_key", metavar="KEY", help="Cloud KMS key that encrypts the output")


_GROUPS = (
    ("what to predict", _add_model, _add_input_and_output),
    ("columns", _add_columns, _add_column_rules),
    ("around the model", _add_functions),
    ("how to run", _add_batches_and_bad_rows, _add_workers, _add_output_files),
    ("messages", _add_messages),
    ("how a worker loads the model", _add_loading),
    ("access", _add_access),
)


class Flags:
    """headrace's own, without Beam's."""

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        for title, *parts in _GROUPS:
            group = parser.add_argument_group(title)
            for add in parts:
                add(group)
