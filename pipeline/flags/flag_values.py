"""Parses the text of one flag: pairs, names, sizes. Each function raises `InvalidRequest` with the flag's form."""

from __future__ import annotations

import re
from collections.abc import Iterator

from headrace.transforms.columns.top_k import parse_top_k
from headrace.transforms.columns.where import parse_where
from headrace.transforms.columns.wording import one_each
from headrace.transforms.errors import InvalidRequest
from headrace.transforms.jobs.input_files import absolute_uri

from .names import split_names, split_pair

_VALUES = ("--fill", "--pad", "--constant", "--top_k")
# A text to fill in may hold commas and equals signs; the values of these hold them in double quotes only.
_NO_COMMAS = ("--prediction", "--top_k", "--decode_image")
_FORMS = {
    "--feature": "TENSOR=COLUMN or TENSOR=COLUMN,COLUMN",
    "--prediction": "OUTPUT=COLUMN",
    "--top_k": "OUTPUT=K or OUTPUT=K:labels.txt",
    "--constant": "TENSOR=VALUE",
    "--fill": "TENSOR=VALUE",
    "--pad": "TENSOR=VALUE",
    "--decode_image": "TENSOR=HxW",
}
# Lengths of time: `2h`, `90min`, `1h30m`, `45s`, `0.5d`.
_UNITS = {"d": 86_400, "h": 3600, "min": 60, "m": 60, "s": 1}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(d|h|min|m|s)")


def pairs(flag: str, values: list[str] | None) -> Iterator[tuple[str, str]]:
    """NAME=VALUE of each time that the flag is given."""
    form = _FORMS[flag]
    seen: set[str] = set()
    for value in values or ():
        name, rest = split_pair(value)
        # A blank is as good a text to fill in as any.
        if rest is None or not name or (flag not in _VALUES and not all(split_names(rest))):
            raise InvalidRequest(f"{flag} needs {form}; got {value!r}", cure=_form_of(flag, value, rest is not None))
        if flag in _NO_COMMAS and (several := one_each(flag, value)):
            raise InvalidRequest(f"{flag} needs {form}; got {value!r}", cure=several)
        if flag == "--prediction":
            rest = _one_name(flag, rest, value)
        if name.text in seen:
            raise InvalidRequest(f"{flag} names {name.text!r} twice", expected="each name once", found=value)
        seen.add(name.text)
        yield name.text, rest


def _one_name(flag: str, text: str, value: str) -> str:
    """A new column's name. Blanks at its ends are not part of it unless quoted; commas are."""
    found = split_names(text)
    if any(name.quoted for name in found) and len(found) > 1:
        raise InvalidRequest(f"{flag} needs {_FORMS[flag]}; got {value!r}")
    return found[0].trimmed if len(found) == 1 else text.strip()


def _form_of(flag: str, value: str, equals: bool) -> str:
    """What the user most likely meant, where that can be guessed."""
    if equals or not value.strip():
        return f"headrace help run shows an example of {flag}"
    missing = _FORMS[flag].partition("=")[2]
    return f"Write {flag} {f'TENSOR={value}' if flag == '--feature' else f'{value}={missing}'}"


def where_text(text: str) -> str:
    parse_where(text)
    return text.strip()


def top_classes(output: str, value: str) -> tuple[int, str | None]:
    k, labels = parse_top_k(output, value)
    return k, None if labels is None else absolute_uri(labels)


def output_names(value: str) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(names(value)))
    if not asked:
        raise InvalidRequest("--outputs names no output", expected="--outputs=A,B", found=repr(value))
    return asked


def tf_examples(values: list[str] | None) -> dict[str, tuple[str, ...]]:
    """Features by input; none where all of them are meant."""
    found: dict[str, tuple[str, ...]] = {}
    for value in values or ():
        name, rest = split_pair(value)
        features = () if rest is None else tuple(dict.fromkeys(names(rest)))
        if not name or (rest is not None and not features):
            raise InvalidRequest(
                f"--tf_example needs TENSOR or TENSOR=A,B; got {value!r}",
                cure="Write --tf_example=TENSOR to encode every feature that the model parses",
            )
        if name.trimmed in found:
            raise InvalidRequest(f"--tf_example names {name.trimmed!r} twice", expected="each input once", found=value)
        found[name.trimmed] = features
    return found


def names(value: str) -> list[str]:
    """Names with commas between, as `names.py` says."""
    return [name.text for name in split_names(value) if name]


def rows_per_batch(value: str) -> int | None:
    if value == "auto":
        return None
    if re.fullmatch(r"[1-9]\d{0,8}", value):
        return int(value)
    raise InvalidRequest(
        f"--batch_size={value} is not a number of rows", expected="a whole number from 1, or auto", found=value
    )


def seconds_of(flag: str, text: str) -> float:
    """More than 0. Raises `InvalidRequest`."""
    parts = _PART.findall(text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not seconds:
        raise InvalidRequest(
            f"--{flag}={text} is not a length of time",
            expected="a number and d, h, min or s, as in 2h, 90min or 1h30m",
            found=text or "nothing",
        )
    return seconds
