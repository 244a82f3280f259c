"""Arguments of `headrace.run` and its like as the command's flags: `keep=["id"]` is `--keep=id`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from headrace.transforms.errors import InvalidRequest

from .flags.names import quote_name, split_names, split_pair

# Flags whose values are one list with commas; of others, each value is a flag of its own.
_ONE_LIST = ("keep", "outputs")
# As `headrace.predict` has them.
_FLAG = {"features": "feature", "predictions": "prediction"}


def as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """`None` and `False` leave a flag out, `True` gives a switch. A dict gives a flag for each key, a list one for each item.

    >>> as_flags({"model": "m", "keep": ["a", "b"], "fill": {"age": 0}, "compact": True, "limit": None})
    ['--model=m', '--keep=a,b', '--fill=age=0', '--compact']
    """
    return [flag for name, value in arguments.items() for flag in _flags(_FLAG.get(name, name), value)]


def call_with(function: str, arguments: Mapping[str, Any], lacking: Iterable[tuple[str, str]]) -> str:
    """The call with flags that it lacks, as it would be typed; what was given stays.

    >>> call_with("headrace.plan", {"model": "m", "fill": {"b": 1}}, [("cast", "a,c"), ("fill", "age=0")])
    "headrace.plan(model='m', fill={'b': 1, 'age': 0}, cast=['a', 'c'])"
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    for name, text in lacking:
        if name == "cast":
            before = given.get(name) or []
            added = [quote_name(part.text) for part in split_names(text)]
            given[name] = [*([before] if isinstance(before, str) else before), *added]
        else:
            tensor, value = split_pair(text)
            given[name] = {**(given.get(name) or {}), quote_name(tensor.text): _literal(value or "")}
    return f"{function}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _literal(text: str) -> Any:
    return int(text) if text.isdecimal() else {"false": False}.get(text, text)


def _flags(name: str, value: Any) -> Iterator[str]:
    if value is None or value is False:
        return
    if value is True:
        yield f"--{name}"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            listed = isinstance(item, list)
            yield f"--{name}={key}={_joined(item) if listed else _size(item) if _is_pair(item) else _text(name, item)}"
    elif name in _ONE_LIST and not isinstance(value, str):
        yield f"--{name}={_joined(value)}"
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from (f"--{name}={_text(name, item)}" for item in value)
    else:
        yield f"--{name}={_text(name, value)}"


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(item, int) for item in value)


def _size(value: tuple[int, int]) -> str:
    return f"{value[0]}x{value[1]}"


def _joined(names: Sequence[Any]) -> str:
    """Commas within names are escaped, as on the command line."""
    return ",".join(str(name).replace("\\", "\\\\").replace(",", "\\,") for name in names)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, (str, int, float)) or hasattr(value, "__fspath__"):
        return str(value)
    raise InvalidRequest(
        f"The argument {name} has a value of type {type(value).__name__}",
        expected="text, a number, True or False, a list or a dict of these",
        found=repr(value)[:200],
    )
