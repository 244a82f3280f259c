"""Every flag of headrace once, with its help. Importing this imports neither Beam nor TensorFlow."""

from __future__ import annotations

import argparse
import shutil

from headrace.transforms.jobs.job_defaults import DEAD_LETTERS_FOLDER, REPORT
from headrace.transforms.models.loading import Loading

DEFAULT_SIGNATURE = "serving_default"
DEFAULT_SHARD_BYTES = 128 << 20
DEFAULT_MAX_BAD_ROWS = "1%"  # stray rows pass; a wrong column or a changed format, which hits most rows, does not
COMMANDS = ("run", "plan", "inspect", "verify")
# What each command cannot do without. `inspect` looks at an input too, without a model.
NEEDED = {
    "run": ("model", "input", "output"),
    "plan": ("model", "input", "output"),
    "inspect": ("model",),
    "verify": ("output",),
}

_DESCRIPTION = """\
Predictions of a TensorFlow or Keras model over sharded Parquet.

commands:
  run       does the job (default); the same command again goes on
  plan      does every check, shows what would be done, and writes nothing
  inspect   shows a model, an input, or how the one is fed from the other
  verify    reads a finished output back, and compares it with its inputs

headrace help COMMAND lists the flags of one command; headrace version prints
the version; headrace completion bash|zsh|fish prints completion for a shell.
"""
_EXAMPLES = """\
examples:
  Does the data fit the model?
    headrace inspect --model=gs://b/model --input='gs://b/in/*.parquet'
  Predict, here, on all cores:
    headrace --model=m.keras --input='in/*.parquet' --output=out --keep=id
  The same on Dataflow, with a column of another name than the model's input:
    headrace --runner=DataflowRunner --project=p --region=europe-west4 \\
      --model=gs://b/model --input='gs://b/in/*.parquet' --output=gs://b/out \\
      --feature=image=pixels --keep=id

Every option of Apache Beam is taken too (--runner, --project, --region, …).
With no --runner the job runs in this process.
"""


class Flags:
    """headrace's own, without Beam's."""

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
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
            help="let a Keras model run Python code of its own, such as lambdas, and a SavedModel's graph operations that can "
            "reach files, the network or other processes (default: they are refused)",
        )
        what.add_argument(
            "--allow_stateful_model",
            action="store_true",
            help="run a model that changes its own state when it predicts, so that predictions depend on the order of rows "
            "(default: it is refused)",
        )
        what.add_argument(
            "--import_module",
            action="append",
            metavar="MODULE",
            help="a module whose import registers operations that the model uses, as tensorflow_text; imported where the job "
            "starts and on the workers, before any model; repeatable",
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
            help="Parquet files, as in 'gs://bucket/in/*.parquet', a folder, which means its **/*.parquet, or @FILE: a list "
            "of files and globs, one on each line; repeatable",
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
            "none). \\, is a comma in a name, and a name in double quotes is a JSON string; with several models, "
            "NAME.TENSOR is one model's input",
        )
        columns.add_argument(
            "--prediction",
            action="append",
            metavar="OUTPUT=COLUMN",
            help="the column that an output of the model becomes; repeatable (default: the output's name)",
        )
        columns.add_argument(
            "--outputs",
            metavar="A,B",
            help="the outputs that become columns (default: all that have a row for each row of the input)",
        )
        columns.add_argument(
            "--top_k",
            action="append",
            metavar="OUTPUT=K[:LABELS]",
            help="the K best classes of an output, by their ids or the lines of a text file of labels, and their scores, as "
            "columns in place of the output's own, as scores=5 or scores=5:gs://b/labels.txt; repeatable",
        )
        columns.add_argument(
            "--constant",
            action="append",
            metavar="TENSOR=VALUE",
            help="an input that is the same for every row, as temperature=0.7; a JSON list for several values; repeatable",
        )
        columns.add_argument(
            "--keep",
            metavar="A,B",
            help="columns that pass through, quoted as in --feature (default: all that are no feature and in the files; "
            "--keep= for none)",
        )
        columns.add_argument(
            "--partition_columns",
            choices=("auto", "typed", "none"),
            default="auto",
            help="key=value folders that every input file lies in are columns too, for --feature and --keep, unless the files "
            "have a column of that name: text, or numbers where --cast leads them into an input of numbers (auto, default); "
            "whole numbers, fractions or dates where all values are such (typed); or no columns (none)",
        )
        columns.add_argument(
            "--cast",
            action="append",
            metavar="TENSOR[,TENSOR…]",
            help="let values change on their way into these tensors, as from float64 to float32, or * for all; repeatable "
            "(default: only casts that change no value)",
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
            help="compile the model with XLA; its numbers may differ in their last bits. XLA leaves out assertions, as "
            "of tf.debugging, and clamps indices that are out of range, so that rows which the model itself refuses "
            "are predicted",
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
            "--report",
            metavar="URI",
            help=f"a page that says what became of the run and of its predictions (default: OUTPUT/{REPORT}), or none",
        )
        how.add_argument(
            "--compare",
            metavar="URI",
            help="an earlier run's report to hold the predictions against (default: the one that --report replaces)",
        )
        how.add_argument(
            "--shard_bytes",
            type=int,
            default=DEFAULT_SHARD_BYTES,
            metavar="BYTES",
            help="files above this many compressed bytes are split, small ones read together up to as many (default: 128 MiB)",
        )
        how.add_argument(
            "--compact",
            action="store_true",
            help="join the rows of small files of one folder into outputs of up to --shard_bytes of input (default: each file "
            "has an output of its own)",
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
        how.add_argument(
            "--no_wait",
            action="store_true",
            help="Dataflow: end once the job is submitted, and print its id and its page (default: wait, showing progress)",
        )
        how.add_argument(
            "--clean",
            action="store_true",
            help="first remove what interrupted uploads left hidden in the output folder; only while no other job writes there",
        )
        told = parser.add_argument_group("what is told")
        told.add_argument(
            "--json",
            action="store_true",
            help="one JSON document on standard output: of run its summary, of plan, inspect and verify what they found",
        )
        told.add_argument(
            "--log_format",
            choices=("text", "json"),
            default="text",
            help="json: one JSON object on each line of standard error, progress and errors too; --json follows. text "
            "(default): a live display on a terminal, else lines",
        )
        told.add_argument("--verbose", action="store_true", help="log more, and show tracebacks")
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


# Flags of a job that say nothing to a command that does not run it.
_ONLY_RUN = {"no_wait", "clean"}
_ONLY_VERIFY = {"sample"}
_INSPECT = {
    *("model", "weights", "custom_objects", "unsafe_model", "signature", "input"),
    *("feature", "prediction", "keep", "partition_columns", "cast", "fill", "pad", "decode_image", "prediction_type"),
    *("preprocess", "user_package", "json", "log_format", "verbose", "billing_project"),
}
_VERIFY = {"output", "sample", "json", "log_format", "verbose", "billing_project"}


def flags_of(command: str) -> list[argparse.Action]:
    """The flags that mean something to one of `COMMANDS`, in their order; all of them for ""."""
    parser = argparse.ArgumentParser(add_help=False)
    Flags.add_to(parser)
    every = {action.dest for action in parser._actions}
    of = {
        "": every,
        "run": every - _ONLY_VERIFY,
        "plan": every - _ONLY_VERIFY - _ONLY_RUN,
        "inspect": _INSPECT,
        "verify": _VERIFY,
    }
    return [action for action in parser._actions if action.dest in of[command]]


def help_text(command: str = "") -> str:
    """Of one command only its flags; of the program all."""
    needed = " ".join(f"--{name}={_METAVARS[name]}" for name in NEEDED[command or "run"])
    parser = argparse.ArgumentParser(
        prog="headrace",
        usage=f"headrace {command or '[COMMAND]'} {needed} [FLAG ...]",
        description=_OF_A_COMMAND[command] if command else _DESCRIPTION,
        epilog=_EXAMPLES if command in ("", "run") else None,
        formatter_class=_Help,
    )
    Flags.add_to(parser)
    if command:
        shown = {action.dest for action in flags_of(command)} | {"help"}
        for action in parser._actions:
            if action.dest not in shown:
                action.help = argparse.SUPPRESS
    return parser.format_help()


_METAVARS = {"model": "URI", "input": "GLOB", "output": "URI"}
_OF_A_COMMAND = {
    "run": """\
Predict every row of the input. The same command again goes on from what is
done.
""",
    "plan": """\
Do every check of a job, show what would be done, and write nothing. It takes
the flags of run.
""",
    "inspect": """\
Show a model, an input, or how the one is fed from the other.
""",
    "verify": """\
Read a finished output back, and compare it with its manifest and its inputs.
With --sample=N, give the flags of the job's own command too.
""",
}


class _Help(argparse.RawDescriptionHelpFormatter):
    """Lines of prose are hard to follow when they are longer, however wide the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(80, shutil.get_terminal_size().columns))
