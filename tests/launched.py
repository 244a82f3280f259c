"""A template's parameters as the request that they come to."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.options import PredictOptions, parse_flags
from pipeline.request import Request, parse_request

SWITCHES = {name for name, value in PredictOptions([]).get_all_options().items() if value is False}


def request_of(parameters: Mapping[str, str]) -> Request:
    """Raises `InvalidRequest` for a parameter that is no flag, or a value that is none of its kind."""
    flags = [
        f"--{name}" if name in SWITCHES and value == "true" else f"--{name}={value}"
        for name, value in parameters.items()
    ]
    return parse_request(parse_flags(flags), "run")
