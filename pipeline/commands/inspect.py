"""`headrace inspect`: models and an input, each as it is, and how one would be fed from the other."""

from __future__ import annotations

from ..checks.inspection import inspect_request
from ..flags.request import Request
from ..terminal.answer import Answer
from .summary import report_inspection


def inspect(request: Request) -> Answer:
    """Raises a `HeadraceError` for a model or an input that cannot be read."""
    return report_inspection(inspect_request(request))
