"""Which flags mean something to which command."""

from __future__ import annotations

import argparse

from .flags import add_flags

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
