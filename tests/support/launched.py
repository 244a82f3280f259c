"""A template's parameters as the request that they come to."""

from __future__ import annotations

import re
from collections.abc import Mapping

from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import Request, parse_request
from headrace.pipeline.flags.template_parameters import as_flags, classic_parameters, parameters


def request_of(given: Mapping[str, str], *, classic: bool = False) -> Request:
    """Raises `AssertionError` for a parameter that the template has not, or of another form; `InvalidRequest` for a value
    that is none of its flag's."""
    offered = {one["name"]: one for one in (classic_parameters() if classic else parameters())}
    assert given.keys() <= offered.keys()
    assert {name for name, one in offered.items() if not one["isOptional"]} <= given.keys()
    for name, value in given.items():
        assert all(re.fullmatch(form, value) for form in offered[name]["regexes"]), (name, value)
    return parse_request(parse_flags(as_flags(given)), "run")
