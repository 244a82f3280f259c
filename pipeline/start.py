"""The command's start. Python collects no garbage while modules load: of TensorFlow's and Beam's there is none, and looking
for it takes a third of the time.
"""

from __future__ import annotations

import gc
import os
import sys

from headrace.transforms.left_out import leave_out
from headrace.transforms.versions import ASKS_FOR_VERSION, __version__


def with_folder(path: list[str], folder: str) -> list[str]:
    """The path with the folder of modules that --postprocess and its like name, before what is installed. Python's own modules
    come first: a user's random.py is not for TensorFlow.
    """
    if folder in path:
        return path
    own = os.path.dirname(os.__file__)
    ends = [i + 1 for i, entry in enumerate(path) if entry.startswith(own) and not entry.endswith("-packages")]
    at = max(ends, default=0)
    return [*path[:at], folder, *path[at:]]


def entry() -> None:
    """The console script `headrace`, and `python -m headrace`."""
    gc.disable()
    if sys.argv[1:] in ASKS_FOR_VERSION:  # answered before anything else is imported
        print(f"headrace {__version__}")
        sys.exit(0)
    from .flags.answers_at_once import answer_at_once, say_what_starts
    from .unused_modules import unused_modules

    if (code := answer_at_once(sys.argv[1:])) is not None:
        sys.exit(code)
    say_what_starts(sys.argv[1:])
    sys.path[:] = with_folder(sys.path, os.getcwd())
    leave_out(*unused_modules(sys.argv[1:]))
    from .cli import entry as run

    run()
