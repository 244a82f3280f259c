"""What the launcher runs: the terminal, flags, packages, checks, runners and commands.

Its import name is `headrace.pipeline`. In a checkout, Python also finds this folder as `pipeline`, which `python -m
pipeline` uses; a module that is imported by that name is the one named `headrace.pipeline...`, never a second copy.
"""

from __future__ import annotations

import sys

if __name__ == "pipeline":
    from headrace.pipeline.checkout_name import OneName

    sys.meta_path.insert(0, OneName())
