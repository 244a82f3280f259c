"""Tables for the site, made from the code: each flag, error, metric and public name, so that no page can be out of date."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec

import headrace
from flag_examples import EXAMPLES
from headrace.pipeline.flags.beam_options import PredictOptions
from headrace.pipeline.flags.flags import NEEDED
from headrace.transforms import errors
from headrace.transforms.errors import HeadraceError

# Not public names, but what these take and return.
BESIDE = (
    "headrace.pipeline.checks.forecast.Forecast",
    "headrace.pipeline.checks.trial.Trial",
    "headrace.transforms.models.spec.ModelSpec",
    "headrace.transforms.models.spec.Signature",
    "headrace.transforms.storage.store.Store",
    "headrace.transforms.storage.store.Writer",
    "headrace.transforms.storage.store.ObjectRef",
)


def flags() -> str:
    """A section for each flag, so that each has an anchor: its form, meaning, default and an example."""
    parser = argparse.ArgumentParser(add_help=False)
    PredictOptions._add_argparse_args(parser)
    lines: list[str] = []
    for group in parser._action_groups:
        if group._group_actions and group.title not in ("options", "positional arguments"):
            lines += [f"## {str(group.title).capitalize()}", ""]
            for action in group._group_actions:
                lines += [f"### `--{action.dest}`", "", f"{_sentence(_cell(_help(action)))}", ""]
                lines += ["| | |", "|---|---|", f"| form | {_typed(action)} |"]
                lines += [f"| default | {_cell(_default(action))} |"]
                if example := EXAMPLES.get(action.dest):
                    lines.append(f"| example | `{example}` |")
                lines.append("")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")


def _default(action: argparse.Action) -> str:
    if action.dest in NEEDED["run"]:
        return "required"
    if action.nargs == 0:
        return "off"
    if stated := re.search(r"\(default: ([^()]*(?:\([^()]*\)[^()]*)*)\)", _help(action)):
        return stated[1]
    return "none" if action.default is None else str(action.default)


def _typed(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    return " ".join(f"`{flag}{f'={value}' if value else ''}`" for flag in action.option_strings).replace("|", r"\|")


def _help(action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default, "prog": "headrace"}


def _cell(text: str) -> str:
    """What stands for itself in a Markdown table."""
    text = re.sub(r"([|\\<])", r"\\\1", text)
    return re.sub(r"(?<![`\w-])(--\w+(?:=(?!\s))?|'[^' ]+')", r"`\1`", text)


def error_tree() -> str:
    lines: list[str] = []
    for error, level in _tree(HeadraceError, 2):
        bases = "" if error is HeadraceError else f"A `{error.__bases__[0].__name__}`. "
        lines += [f"{'#' * min(level, 4)} {error.__name__}", "", bases + inspect.cleandoc(error.__doc__ or ""), ""]
    return "\n".join(lines)


def _tree(error: type[HeadraceError], level: int) -> Iterator[tuple[type[HeadraceError], int]]:
    yield error, level
    for child in error.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child, level + 1)


def metrics() -> str:
    """Read, not imported: the metrics are those of its text, and its text lists them by name, two spaces, meaning."""
    found = find_spec("headrace.transforms.beam.metrics")
    assert found is not None
    assert found.origin is not None
    with open(found.origin, encoding="utf-8") as file:
        text = ast.get_docstring(ast.parse(file.read())) or ""
    lines = ["| metric | meaning |", "|---|---|"]
    for names, meaning in re.findall(r"^(\S.*?) {2,}(\S.*)$", text, re.MULTILINE):
        told = ", ".join(f"`{name}`" for name in _spelled_out(names))
        lines.append(f"| {told} | {_cell(meaning)} |")
    return "\n".join([*lines, ""])


def _spelled_out(names: str) -> Iterator[str]:
    """`read_/write_seconds` are two names."""
    for name in names.split(", "):
        *starts, last = name.split("/")
        stem = last[last.index("_") :] if starts else ""
        yield from (start.rstrip("_") + stem for start in starts)
        yield last


def api() -> str:
    lines = ["```{eval-rst}"]
    for name in [*(f"headrace.{name}" for name in headrace.__all__), *BESIDE]:
        module, _, last = name.rpartition(".")
        thing = getattr(import_module(module), last)
        if inspect.isclass(thing):
            lines += [f".. autoclass:: {name}", "   :members:", ""]
        elif callable(thing):
            lines += [f".. autofunction:: {name}", ""]
        else:
            lines += [f".. autodata:: {name}", "   :no-value:", ""]
    return "\n".join([*lines, "```", ""])


# What a page asks for by `<!-- name -->`.
MADE: dict[str, Callable[[], str]] = {"flags": flags, "errors": error_tree, "metrics": metrics, "api": api}
