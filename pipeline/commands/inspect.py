"""`headrace inspect`: models and an input, each as it is, and how one would be fed from the other."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks.inspection import Inspection, inspect_request
from ..flags.request import Request
from ..terminal.answer import Answer
from .summary import report_inspection


@dataclass(frozen=True)
class Inspected:
    inspection: Inspection
    answer: Answer


def inspect(request: Request) -> Inspected:
    """Raises a `HeadraceError` for a model or an input that cannot be read."""
    inspection = inspect_request(request)
    return Inspected(inspection, report_inspection(inspection))
