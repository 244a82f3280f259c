"""What `--help` prints: of the program, or of one command."""

from __future__ import annotations

import argparse
import shutil

from .flags import NEEDED, add_flags, flags_of

_DESCRIPTION = """\
Run a TensorFlow or Keras model over Parquet files.

commands:
  run       predict every row (default); run it again to continue after a stop
  plan      check everything, show what the job would do, write nothing
  inspect   show a model, an input, and which column feeds which model input
  verify    read a finished output back and compare it with its inputs

headrace help COMMAND lists the flags of one command; headrace version prints
the version; headrace completion bash|zsh|fish prints completion for a shell.
"""
_EXAMPLES = """\
examples:
  Check whether the data fits the model:
    headrace inspect --model=gs://b/model --input='gs://b/in/*.parquet'
  Predict on all cores of this machine:
    headrace --model=m.keras --input='in/*.parquet' --output=out --keep=id
  Predict on Dataflow; column pixels feeds the model's input image:
    headrace --runner=DataflowRunner --project=p --region=europe-west4 \\
      --model=gs://b/model --input='gs://b/in/*.parquet' --output=gs://b/out \\
      --feature=image=pixels --keep=id

Every option of Apache Beam works too (--runner, --project, --region, …).
Without --runner the job runs in this process.
"""


def help_text(command: str = "") -> str:
    """The flags of one command, or all flags of the program."""
    needed = " ".join(f"--{name}={_METAVARS[name]}" for name in NEEDED[command or "run"])
    parser = argparse.ArgumentParser(
        prog="headrace",
        usage=f"headrace {command or '[COMMAND]'} {needed} [FLAG ...]",
        description=_OF_A_COMMAND[command] if command else _DESCRIPTION,
        epilog=_EXAMPLES if command in ("", "run") else None,
        formatter_class=_Help,
    )
    add_flags(parser)
    if command:
        shown = {action.dest for action in flags_of(command)} | {"help"}
        for action in parser._actions:
            if action.dest not in shown:
                action.help = argparse.SUPPRESS
    return parser.format_help()


_METAVARS = {"model": "URI", "input": "GLOB", "output": "URI"}
_OF_A_COMMAND = {
    "run": """\
Predict every row of the input. Run the same command again to continue after a
stop: only missing shards are computed.
""",
    "plan": """\
Check everything, show what the job would do, and write nothing. It takes the
flags of run.
""",
    "inspect": """\
Show a model, an input, and which column feeds which input of the model.
""",
    "verify": """\
Read a finished output back and compare it with its manifest and its inputs.
With --sample=N, add the flags of the job's command.
""",
}


class _Help(argparse.RawDescriptionHelpFormatter):
    """Lines of prose are hard to follow when they are longer, however wide the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(80, shutil.get_terminal_size().columns))
