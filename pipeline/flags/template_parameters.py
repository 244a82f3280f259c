"""The templates' side of the flags: their parameters, made of PredictOptions, and back from parameters to flags.

The forms are those of https://cloud.google.com/dataflow/docs/reference/rest/v1b3/ContainerSpec. `python -m
headrace.pipeline.flags.template_parameters metadata` prints templates/flex/metadata.json, `… spec IMAGE` the file that
a launch names, and `… classic` prints templates/classic/metadata.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .beam_options import PredictOptions

IMAGE_VARIABLE = "HEADRACE_IMAGE"
_NEEDED = ("model", "input", "output")
# Flags of verify or plan alone, and of local jobs; flags that are always given; flags that nothing reads there; and a folder of
# the launcher's machine, which has no files of the user: bake modules into the image.
_NOT_OFFERED = ("sample", "trial", "within", "price_per_core_hour", "no_wait", "json", "user_package", "processes")
# The command that stages sets the kind and number of machines.
_STAGED = ("worker_accelerator", "log_format", "verbose")
# A semicolon within a value has a backslash before it.
_PART = r"([^;\\]|\\.)"
_URI = rf"[a-z][a-z0-9+.-]*://{_PART}+"
_NAMED = r"([A-Za-z_]\w*=)?"
_FORMS = {
    "model": _NAMED + _URI,
    "weights": _NAMED + _URI,
    "input": "@?" + _URI,
    "output": r"[a-z][a-z0-9+.-]*://.+",
    "dead_letters": r"[a-z][a-z0-9+.-]*://.+",
    "report": r"none|[a-z][a-z0-9+.-]*://.+\.html",
    "compare": r"[a-z][a-z0-9+.-]*://.+",
    "custom_objects": r"[\w.]+:\w+",
    "import_module": r"[A-Za-z_][\w.]*",
    "preprocess": r"[\w.]+:\w+",
    "postprocess": r"[\w.]+:\w+",
    "where": ".+",
    "feature": rf"[^;=]+={_PART}+",
    "outputs": rf"{_PART}+",
    "top_k": rf"[^;=]+=[1-9]\d*(:{_PART}+)?",
    "constant": rf"[^;=]+={_PART}*",
    "prediction": rf"[^;=]+={_PART}+",
    "fill": rf"[^;=]+={_PART}*",
    "pad": rf"[^;=]+={_PART}*",
    "decode_image": r"[^;=]+=([1-9]\d*x[1-9]\d*|own)",
    "tf_example": rf"[^;=]+(={_PART}+)?",
    "batch_size": r"auto|[1-9]\d*",
    "max_bad_rows": r"\d+(\.\d+)?%?",
    "worker_accelerator": r"[a-z0-9-]+:[1-9]\d?(:[\w.]+)?",
    "keep": ".*",
}
_MAY_BE_EMPTY = ("keep",)
# The console's picker. It checks nothing, the form does; a model may also be an https address, and has none.
_PICKERS = {
    "input": "GCS_READ_FILE",
    "compare": "GCS_READ_FILE",
    "output": "GCS_WRITE_FOLDER",
    "dead_letters": "GCS_WRITE_FOLDER",
    "report": "GCS_WRITE_FILE",
    "kms_key": "KMS_KEY_NAME",
}
# The console shows these only where their parent has that value: elsewhere they are refused.
_PARENTS = {
    "dead_letters": ("on_error", "dead_letter"),
    "max_bad_rows": ("on_error", "dead_letter"),
    "max_failed_shards": ("on_error", "skip_shard"),
    "single_file": ("compact", "true"),
}


def parameters() -> list[dict[str, Any]]:
    """In the order of --help. A list is one text, with semicolons between its values."""
    return [_parameter(title, action) for title, action in _offered()]


def classic_parameters() -> list[dict[str, Any]]:
    """All but the machines', which are part of a staged graph; and there an empty text is as good as none."""
    given = [parameter for parameter in parameters() if parameter["name"] not in _STAGED]
    for parameter in given:
        if parameter["name"] == "keep":
            parameter["helpText"] = parameter["helpText"].replace("--keep= for none", "a comma alone for none")
    return given


def metadata(of: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": "headrace",
        "description": "Predictions of a TensorFlow or Keras model over sharded Parquet; the model never touches a disk.",
        "streaming": False,
        "parameters": of,
    }


def container_spec(image: str) -> dict[str, Any]:
    return {"image": image, "sdkInfo": {"language": "PYTHON"}, "metadata": metadata(parameters())}


def launcher_flags(argv: Sequence[str]) -> list[str]:
    """Converts the launcher's parameters, --name=value each, to headrace's flags; Beam's stay as they are.

    The workers run in the launcher's own image if a variable names it.
    """
    offered = {action.dest for _, action in _offered()}
    flags = []
    for argument in argv:
        name, _, value = argument.removeprefix("--").partition("=")
        flags += as_flags({name: value}) if name in offered and argument.startswith(f"--{name}=") else [argument]
    image = os.environ.get(IMAGE_VARIABLE)
    if image and not any(flag.startswith("--sdk_container_image") for flag in flags):
        flags.append(f"--sdk_container_image={image}")
    if not any(flag.startswith("--runner") for flag in flags):
        flags.append("--runner=DataflowRunner")
    return [*flags, "--no_wait"]


def as_flags(given: Mapping[str, str]) -> list[str]:
    """Parameters by their names as flags."""
    flags = []
    actions = {action.dest: action for _, action in _offered()}
    for name, value in given.items():
        action, flag = actions[name], f"--{name}={value}"
        if not value and name not in _MAY_BE_EMPTY:
            continue
        if action.nargs == 0:
            flags += {"true": [f"--{name}"], "false": []}.get(value.lower(), [flag])
        elif _repeatable(action):
            parts = (part.replace("\\;", ";") for part in re.split(r"(?<!\\);", value))
            flags += [f"--{name}={part.lstrip()}" for part in parts if part.strip()]
        else:
            flags.append(flag)
    return flags


def as_parameters(options: PredictOptions) -> dict[str, str]:
    """Flags that were given as parameters by their names; those that have their defaults are left out."""
    given = {}
    for _, action in _offered():
        value = getattr(options, action.dest)
        if value == action.default:
            continue
        if isinstance(value, list):
            value = ";".join(part.replace(";", "\\;") for part in value)
        given[action.dest] = "true" if value is True else str(value)
    return given


def _offered() -> Iterator[tuple[str, argparse.Action]]:
    parser = argparse.ArgumentParser(add_help=False)
    PredictOptions._add_argparse_args(parser)
    for group in parser._action_groups:
        yield from ((group.title or "", action) for action in group._group_actions if action.dest not in _NOT_OFFERED)


def _parameter(group: str, action: argparse.Action) -> dict[str, Any]:
    text = re.sub(r"; repeatable(?= |$)", "", (action.help or "") % {"default": action.default})
    parameter: dict[str, Any] = {
        "name": action.dest,
        "label": action.dest.replace("_", " ").capitalize(),
        "helpText": f"{text[0].upper()}{text[1:]}.{' Several have semicolons between them.' if _repeatable(action) else ''}",
        "isOptional": action.dest not in _NEEDED,
        "groupName": group[0].upper() + group[1:],
    }
    if action.dest in _PARENTS:
        parent, value = _PARENTS[action.dest]
        parameter |= {"parentName": parent, "parentTriggerValues": [value]}
    if action.nargs == 0:
        return parameter | {"paramType": "BOOLEAN", "regexes": ["^(true|false)$"]}
    if action.choices is not None:
        choices = [str(choice) for choice in action.choices]
        options = [{"value": choice, "label": choice} for choice in choices]
        enum = {"paramType": "ENUM", "regexes": [f"^({'|'.join(choices)})$"], "enumOptions": options}
        return parameter | enum | {"defaultValue": str(action.default)}
    if action.type is int:
        return parameter | {"paramType": "NUMBER", "regexes": [r"^[1-9]\d*$"]}
    form = _FORMS.get(action.dest, rf"{_PART}+")
    several = rf"^({form})(;({form}))*$" if _repeatable(action) else f"^({form})$"
    return parameter | {"paramType": _PICKERS.get(action.dest, "TEXT"), "regexes": [several]}


def _repeatable(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)


def main(argv: Sequence[str]) -> int:
    match argv:
        case ["metadata"]:
            made = metadata(parameters())
        case ["classic"]:
            made = metadata(classic_parameters())
        case ["spec", image]:
            made = container_spec(image)
        case _:
            program = "python -m headrace.pipeline.flags.template_parameters"
            print(f"{program} metadata, or … spec IMAGE, or … classic", file=sys.stderr)
            return 2
    print(json.dumps(made, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
