"""What the flags' text becomes: nothing that a person wrote is lost on the way."""

from __future__ import annotations

import pytest

from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import Request, parse_request


def request(*flags: str) -> Request:
    return parse_request(parse_flags(["--model=m", "--input=i", "--output=o", *flags]), "run")


@pytest.mark.parametrize("flag", ["fill", "pad"])
@pytest.mark.parametrize("value", ["", " ", " a ", "a=b", "\t", "ü,ö"])
def test_values_stay_as_they_are_written_blanks_too(flag: str, value: str) -> None:
    assert getattr(request(f"--{flag}=text={value}"), flag) == {"text": value}


def test_names_are_trimmed() -> None:
    asked = request("--feature= x = a\\,b , c ", "--prediction= y = z ", "--fill= x =1")
    assert (asked.features, asked.predictions, asked.fill) == ({"x": ("a,b", "c")}, {"y": "z"}, {"x": "1"})
