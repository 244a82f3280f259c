"""Answers that need neither Beam nor TensorFlow: help, the version, shell completion, a missing flag."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches

from headrace.transforms.printable import printable
from headrace.transforms.versions import ASKS_FOR_VERSION, __version__

from .completion import SHELLS, completion
from .flags import COMMANDS, NEEDED
from .help_text import help_text

_HELP = ("--help", "-h")


def answer_at_once(argv: Sequence[str]) -> int | None:
    """The exit code, once the answer is printed; None where the command line asks for work."""
    command, flags = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("", argv)
    if not argv:
        print(help_text(), file=sys.stderr)
        return 2
    if not command and argv[0] == "help":
        return _help(argv[1:])
    if any(flag in _HELP for flag in flags):
        print(help_text(command))
        return 0
    if list(argv) in ASKS_FOR_VERSION:
        print(f"headrace {__version__}")
        return 0
    if not command and argv[0] == "completion":
        return _completion(argv[1:])
    if not flags:
        needed = " ".join(f"--{name}=…" for name in NEEDED[command])
        print(
            f"usage: headrace {command} {needed} [FLAG ...]\n"
            f"headrace {command} needs {needed}. `headrace help {command}` lists its flags.",
            file=sys.stderr,
        )
        return 2
    return None


def say_what_starts(argv: Sequence[str]) -> None:
    """A line at once on a terminal, which else stays blank while modules load, for ten seconds on a slow disk."""
    command = argv[0] if argv and argv[0] in COMMANDS else "run"
    as_json = "--log_format=json" in argv or "json" in argv[1:]
    if sys.stderr.isatty() and not as_json and (command != "verify" or any("--sample" in flag for flag in argv)):
        print("Starting TensorFlow …", file=sys.stderr, flush=True)


def _help(asked: Sequence[str]) -> int:
    if len(asked) > 1 or (asked and asked[0] not in COMMANDS):
        return _no_such(asked, COMMANDS, "headrace help [COMMAND]")
    print(help_text(*asked))
    return 0


def _completion(asked: Sequence[str]) -> int:
    if len(asked) != 1 or asked[0] not in SHELLS:
        return _no_such(asked, SHELLS, f"headrace completion {'|'.join(SHELLS)}")
    print(completion(asked[0]), end="")
    return 0


def _no_such(asked: Sequence[str], known: Sequence[str], usage: str) -> int:
    near = get_close_matches(asked[0], known, 1, 0.6) if asked else []
    hint = f" Did you mean {near[0]}?" if near else ""
    print(f"usage: {usage}", file=sys.stderr)
    print(f"Expected one of {', '.join(known)}; got {printable(' '.join(asked)) or 'nothing'}.{hint}", file=sys.stderr)
    return 2
