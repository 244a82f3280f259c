"""What the flags' text becomes: nothing that a person wrote is lost on the way."""

from __future__ import annotations

import re

import pytest

from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import Request, parse_request
from headrace.transforms.errors import InvalidRequest


def request(*flags: str) -> Request:
    return parse_request(parse_flags(["--model=m", "--input=i", "--output=o", *flags]), "run")


@pytest.mark.parametrize("flag", ["fill", "pad"])
@pytest.mark.parametrize("value", ["", " ", " a ", "a=b", "\t", "ü,ö"])
def test_values_stay_as_they_are_written_blanks_too(flag: str, value: str) -> None:
    assert getattr(request(f"--{flag}=text={value}"), flag) == {"text": value}


def test_names_are_as_they_are_written_but_for_a_new_columns_blanks() -> None:
    asked = request("--feature= x = a\\,b , c ", "--prediction= y = z ", "--fill= x =1", "--keep= id,")
    assert (asked.features, asked.predictions) == ({" x ": (" a,b ", " c ")}, {" y ": "z"})
    assert (asked.fill, asked.keep) == ({" x ": "1"}, (" id",))


@pytest.mark.parametrize(
    ("flag", "value", "what"),
    [
        ("--prediction", "score", "--prediction needs OUTPUT=COLUMN; got 'score'. Write --prediction score=COLUMN."),
        ("--prediction", "=score", "--prediction needs OUTPUT=COLUMN; got '=score'."),
        (
            "--feature",
            "pixels",
            "or TENSOR=COLUMN,COLUMN; got 'pixels'. Write --feature TENSOR=pixels.",
        ),
        ("--fill", "age", "--fill needs TENSOR=VALUE; got 'age'. Write --fill age=VALUE."),
        ("--pad", "age", "--pad needs TENSOR=VALUE; got 'age'. Write --pad age=VALUE."),
        ("--decode_image", "image", "--decode_image needs TENSOR=HxW; got 'image'. Write --decode_image image=HxW."),
        (
            "--decode_image",
            "image=Own",
            "--decode_image image=Own is not a size. Expected: TENSOR=HxW, as in image=224x224, or TENSOR=own for images of",
        ),
        ("--feature", "a=b,,c", "--feature needs TENSOR=COLUMN or TENSOR=COLUMN,COLUMN; got 'a=b,,c'."),
    ],
)
def test_an_error_about_an_option_is_about_that_option(flag: str, value: str, what: str) -> None:
    options = parse_flags(["--model=m", "--input=i", "--output=o", flag, value])
    with pytest.raises(InvalidRequest, match=re.escape(what)):
        parse_request(options, "run")
