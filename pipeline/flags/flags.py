"""Every flag of headrace once, with its help and its commands. Importing this imports neither Beam nor TensorFlow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

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


def _text(metavar: str, said: str, default: str | None = None) -> dict[str, Any]:
    return {"metavar": metavar, "default": default, "help": said}


def _number(
    metavar: str, said: str, default: float | None = None, kind: type[int] | type[float] = int
) -> dict[str, Any]:
    return {"metavar": metavar, "default": default, "type": kind, "help": said}


def _repeated(metavar: str, said: str) -> dict[str, Any]:
    return {"action": "append", "metavar": metavar, "help": said}


def _choice(choices: Sequence[str], default: str, said: str) -> dict[str, Any]:
    return {"choices": choices, "default": default, "help": said}


def _switch(said: str) -> dict[str, Any]:
    return {"action": "store_true", "help": said}


# By the group that --help shows them in.
_GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "what to predict": {
        "--model": _repeated(
            "[NAME=]URI",
            "SavedModel folder, Orbax checkpoint, .keras, .h5 or .tflite file: gs://…, s3://…, https://… or a path. Repeat it "
            "with names to run several models in one pass; the columns of each then start with NAME_",
        ),
        "--weights": _repeated("[NAME=]URI", "weights of a Keras model, where --model is its config.json"),
        "--custom_objects": _repeated(
            "MODULE:NAME", "class or function that a Keras model needs, by its import name; repeatable"
        ),
        "--unsafe_model": _switch(
            "let a Keras model run its own Python code, such as lambdas, and let a SavedModel's graph run operations that "
            "can reach files, the network or other processes (default: such models are refused)"
        ),
        "--allow_stateful_model": _switch(
            "run a model that changes its own state when it predicts; predictions then depend on the order of rows "
            "(default: such models are refused)"
        ),
        "--import_module": _repeated(
            "MODULE",
            "module that registers operations that the model uses, such as tensorflow_text; imported before the model, "
            "where the job starts and on the workers; repeatable",
        ),
        "--signature": _repeated("[NAME=]SIGNATURE", f"signature of the model (default: {DEFAULT_SIGNATURE})"),
        "--input": _repeated(
            "GLOB",
            "Parquet files, such as 'gs://bucket/in/*.parquet'; a folder, for all *.parquet files in and below it; "
            "@FILE, a list of files and globs, one per line; repeatable; or one table, delta+URI[@VERSION] or "
            "iceberg+URI[@SNAPSHOT]",
        ),
        "--output": _text("URI", "folder for predictions, manifest and _SUCCESS"),
        "--limit": _number("N", "predict only the first N rows, for a trial; the manifest records it"),
        "--sample": _number("N", "verify: also compute N random batches again; add the flags of the job's command"),
        "--trial": _number(
            "N",
            "plan: run about N rows here, keeping nothing, for a minute at most, and show what the whole plan will take",
        ),
        "--within": _text(
            "TIME",
            "plan: how long the job may take, as 2h or 90min, for which --trial counts the workers (default: 1h)",
        ),
        "--price_per_core_hour": _number(
            "PRICE",
            "plan: what an hour of one core costs, for which --trial shows the cost of the whole plan",
            kind=float,
        ),
    },
    "columns": {
        "--feature": _repeated(
            "TENSOR=COLUMN[,COLUMN…]",
            "column or columns that feed an input of the model, or a struct field such as payload.pixels; repeatable "
            "(default: the column of that name, or the only column that fits a model with one input). Write \\, for a "
            "comma in a name, or the name as a JSON string in double quotes; with several models, NAME.TENSOR is the "
            "input of one model",
        ),
        "--prediction": _repeated(
            "OUTPUT=COLUMN", "name of the column for an output of the model; repeatable (default: the output's name)"
        ),
        "--outputs": _text("A,B", "outputs that become columns (default: all with one row per input row)"),
        "--top_k": _repeated(
            "OUTPUT=K[:LABELS]",
            "K best classes of an output and their scores, instead of the output's own column, such as scores=5, or "
            "scores=5:gs://b/labels.txt for classes named by the lines of a text file; repeatable",
        ),
        "--constant": _repeated(
            "TENSOR=VALUE",
            "value of an input that is the same for every row, such as temperature=0.7; a JSON list for several values; "
            "repeatable",
        ),
        "--keep": _text(
            "A,B",
            "columns to copy to the output, quoted as in --feature; --keep= for none (default: all columns of the files "
            "that are not features)",
        ),
        "--partition_columns": _choice(
            ("auto", "typed", "none"),
            "auto",
            "how key=value folders that contain every input file become columns for --feature and --keep. auto (default): "
            "text, or numbers where --cast needs them; typed: integers, fractions, dates, or true and false where all values "
            "are; none: they do not. A column of that name in the files takes precedence",
        ),
        "--cast": _repeated(
            "TENSOR[,TENSOR…]",
            "allow casts that can change values for these inputs, such as float64 to float32; * for all inputs; "
            "repeatable (default: only casts that change no value)",
        ),
        "--fill": _repeated(
            "TENSOR=VALUE", "value that replaces nulls of this input; repeatable (default: a null is an error)"
        ),
        "--pad": _repeated(
            "TENSOR=VALUE",
            "value that fills short lists of this input; repeatable (default: lists of unequal length are an error)",
        ),
        "--decode_image": _repeated(
            "TENSOR=HxW|own",
            "decode JPEG or PNG bytes, and resize images to this height and width; own: each image keeps its size, and "
            "the model is called once per row; repeatable",
        ),
        "--ignore_exif": _switch(
            "decode images as they are stored (default: JPEG images are turned as their EXIF orientation says)"
        ),
        "--tf_example": _repeated(
            "TENSOR[=A,B…]",
            "encode columns as the serialized tf.train.Example or SequenceExample that an input takes, of all features that "
            "it parses or of those named; each is then a tensor to --feature, --fill and --cast; repeatable",
        ),
        "--prediction_type": _choice(
            ("auto", "list", "tensor"),
            "auto",
            "type of output columns with several values per row. auto (default): fixed-size lists for one dimension, "
            "arrow.fixed_shape_tensor for more; list or tensor: always that type",
        ),
    },
    "around the model": {
        "--preprocess": _text(
            "MODULE:FUNCTION",
            "function that runs on each record batch before the model, and returns one of the same number of rows",
        ),
        "--postprocess": _text("MODULE:FUNCTION", "the same after the model, on kept columns and predictions"),
        "--where": _text("CONDITION", "rows to write, as in 'score > 0.9'; others are counted (default: all)"),
        "--user_package": _repeated(
            "DIR|WHEEL|SDIST",
            "package of your own modules, installed on the workers: a folder with pyproject.toml or setup.py, a wheel or "
            "a source archive; repeatable",
        ),
    },
    "how to run": {
        "--batch_size": _text(
            "ROWS", "rows per batch, or auto (default), which depends on the schema and the model only", "auto"
        ),
        "--jit_compile": _switch(
            "compile the model with XLA. Predictions may differ in their last bits. XLA drops assertions (tf.debugging) "
            "and clamps indices that are out of range: rows that the model would refuse are then predicted"
        ),
        "--device": _choice(
            ("auto", "cpu", "gpu"),
            Loading().device,
            "where workers compute. auto (default): on all GPUs, or on the CPU where there is none; cpu; gpu: an error "
            "where there is none",
        ),
        "--worker_accelerator": _text(
            "TYPE:COUNT[:DRIVER]",
            "GPUs of each Dataflow worker, such as nvidia-l4:1, or with a driver nvidia-tesla-t4:1:5xx (default driver: "
            "Dataflow's choice); sets --device=gpu",
        ),
        "--on_error": _choice(
            ("fail", "dead_letter", "skip_shard"),
            "fail",
            "what happens to a row that cannot be predicted. fail (default): the job fails and names the row; "
            "dead_letter: the row goes to dead letters with the reason, and all other rows are predicted; skip_shard: its "
            "shard is listed with the reason, all other shards are predicted, and the command ends with exit code 1",
        ),
        "--dead_letters": _text("URI", f"folder for dead letters, as Parquet (default: OUTPUT/{DEAD_LETTERS_FOLDER})"),
        "--max_bad_rows": _text(
            "N|P%",
            "how many rows of a shard and of the job may become dead letters before the job fails (default: "
            f"{DEFAULT_MAX_BAD_ROWS.replace('%', '%%')})",
        ),
        "--max_failed_shards": _number(
            "N",
            f"how many shards --on_error=skip_shard may skip before the job fails (default: {DEFAULT_MAX_FAILED_SHARDS})",
        ),
        "--processes": _number(
            "N",
            "worker processes on this machine, which share the weights and divide the cores (default: one process, with a "
            "thread for each core)",
        ),
        "--report": _text("URI", f"HTML report of the run and its predictions, or none (default: OUTPUT/{REPORT})"),
        "--compare": _text(
            "URI", "report of an earlier run to compare predictions with (default: the one that --report replaces)"
        ),
        "--shard_bytes": _number(
            "BYTES",
            "split files above this many compressed bytes, and read small files together up to it (default: 128 MiB)",
            DEFAULT_SHARD_BYTES,
        ),
        "--compact": _switch(
            "join the rows of small files of a folder into one output per --shard_bytes of input (default: one output per "
            "file)"
        ),
        "--single_file": _switch(
            "with --compact: refuse a job of more than one output file (default: as many as there are)"
        ),
        "--incremental": _switch(
            "continue after inputs changed or disappeared: predict new and changed files, then remove outdated outputs "
            "(default: a changed input is an error)"
        ),
        "--overwrite": _switch("replace another job's output; removes only files that the records of that job list"),
        "--no_wait": _switch(
            "Dataflow: exit once the job is submitted, and print its id and page (default: wait and show progress)"
        ),
        "--clean": _switch(
            "first remove hidden leftovers of interrupted uploads from the output folder; only while no other job "
            "writes there"
        ),
    },
    "messages": {
        "--json": _switch("print the result as one JSON document on standard output"),
        "--log_format": _choice(
            ("text", "json"),
            "text",
            "text (default): a live display on a terminal, else lines; json: one JSON object per line on standard error, "
            "progress and errors included; sets --json",
        ),
        "--verbose": _switch("log more, and show tracebacks of errors"),
    },
    "how a worker loads the model": {
        "--model_sharing": _choice(
            ("machine", "process"),
            Loading().model_sharing,
            "machine (default): all processes of a machine share one copy of the weights; process: one copy each",
        ),
        "--connections": _number(
            "N", "parallel connections that read the model (default: %(default)s)", Loading().connections
        ),
        "--in_flight_bytes": _number(
            "BYTES", "most bytes of the model requested at a time (default: 256 MiB)", Loading().in_flight_bytes
        ),
    },
    "access": {
        "--billing_project": _text("PROJECT", "project that pays for reading requester-pays buckets"),
        "--kms_key": _text("KEY", "Cloud KMS key that encrypts the output"),
    },
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """headrace's own, without Beam's."""
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        for flag, form in flags.items():
            group.add_argument(flag, **form)


# Flags of a job that say nothing to a command that does not run it.
_ONLY_RUN = {"no_wait", "clean"}
_ONLY_VERIFY = {"sample"}
_ONLY_PLAN = {"trial", "within", "price_per_core_hour"}
_INSPECT = {
    *("model", "weights", "custom_objects", "unsafe_model", "signature", "input"),
    *("feature", "prediction", "keep", "partition_columns", "cast", "fill", "pad", "decode_image", "prediction_type"),
    *("ignore_exif", "tf_example", "preprocess", "user_package", "json", "log_format", "verbose", "billing_project"),
}
_VERIFY = {"output", "sample", "json", "log_format", "verbose", "billing_project"}


def flags_of(command: str) -> list[argparse.Action]:
    """The flags that mean something to one of `COMMANDS`, in their order; all of them for ""."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    every = {action.dest for action in parser._actions}
    of = {
        "": every,
        "run": every - _ONLY_VERIFY - _ONLY_PLAN,
        "plan": every - _ONLY_VERIFY - _ONLY_RUN,
        "inspect": _INSPECT,
        "verify": _VERIFY,
    }
    return [action for action in parser._actions if action.dest in of[command]]
