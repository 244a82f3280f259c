"""Tests that need a program which pip cannot install: skipped where it is missing, with a line that says what was not shown."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def not_shown(what: str) -> NoReturn:
    """HEADRACE_SKIP_NOTHING=1, as .ci/run sets it, makes a failure of the skip."""
    if os.environ.get("HEADRACE_SKIP_NOTHING") == "1":
        pytest.fail(f"NOT SHOWN {what}. HEADRACE_SKIP_NOTHING=1 asks for it: install what is missing, or unset it.")
    pytest.skip(f"NOT SHOWN {what}")
