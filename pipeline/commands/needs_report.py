"""What the columns need, as `plan` shows it: a line for each model input, and one command that would be accepted."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence

from headrace.transforms.storage.store import public_uri

from ..checks.column_needs import Flags, Need, flags_of_needs
from ..terminal.answer import Answer
from ..terminal.tables import WIDTH

_PLACEHOLDERS = "The values of --fill and --pad are placeholders: choose those that the model was trained with."


def command_line(argv: Sequence[str], lacking: Flags) -> str:
    """`headrace plan` with the flags given and those that it lacks, quoted for a shell. Of addresses without what is secret."""
    given = [_public(argument) for argument in argv]
    return " ".join(map(_quoted, ["headrace", "plan", *given, *(f"--{name}={value}" for name, value in lacking)]))


def _quoted(argument: str) -> str:
    """As a person would: the value alone."""
    flag, equals, value = argument.partition("=")
    return f"{flag}={shlex.quote(value)}" if equals and flag.startswith("--") else shlex.quote(argument)


def _public(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"{flag}{equals}{public_uri(value)}" if "://" in value else argument


def with_needs(answer: Answer, needs: Sequence[Need], command: str | None) -> Answer:
    """`command` has all flags that the needs have."""
    document = answer.document | {"needs": [need.fields() for need in needs], "command": command}
    if not needs:
        return Answer(answer.lines, document)
    lines = [*answer.lines, "", "What the columns need", ""]
    for need in needs:
        lines += _need_lines(need)
    flags = {name for name, _ in flags_of_needs(needs)}
    if flags & {"fill", "pad"}:
        lines += ["", *textwrap.wrap(_PLACEHOLDERS, WIDTH)]
    if command is not None:
        lines += ["", "The command with these flags:", "", command]
    else:
        left = sum(not need.flags for need in needs)
        lines += ["", *textwrap.wrap(f"No flag allows {left:,} of these, so no command is shown.", WIDTH)]
    return Answer(lines, document)


def _need_lines(need: Need) -> Iterator[str]:
    allowed = " ".join(f"--{name}={value}" for name, value in flags_of_needs([need]))
    found = f" Found: {need.error.found.rstrip('.')}." if need.error.found else ""
    for text in (f"{need.error.what.rstrip('.')}.{found}", allowed or f"No flag allows it. {need.error.cure}"):
        start = f"{need.tensor}  " if not text.startswith(("--", "No flag")) else "  "
        yield from textwrap.wrap(
            text, WIDTH, initial_indent=start, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
