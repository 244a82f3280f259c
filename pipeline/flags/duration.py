"""Lengths of time in flags: `2h`, `90min`, `1h30m`, `45s`, `0.5d`."""

from __future__ import annotations

import re

from headrace.transforms.errors import InvalidRequest

_UNITS = {"d": 86_400, "h": 3600, "min": 60, "m": 60, "s": 1}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(d|h|min|m|s)")


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
