"""Beam's view of a step's methods, taken once.

Whenever Beam 2.77 looks whether a step keeps state, it inspects the signature of each method that the step has, mostly those of
`DoFn` itself: 7,000 times for the graph of one job, which takes longer than the rest of the graph.

This is the one place that touches that function; tests/transforms/beam/test_signatures.py fails when Beam changes it.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from apache_beam.transforms import core

_inspect = core.get_function_args_defaults
_known: WeakKeyDictionary[FunctionType, tuple[list[str], list[Any]]] = WeakKeyDictionary()


def remember_signatures() -> None:
    """Beam then inspects each method once in this process."""
    core.get_function_args_defaults = _remembered


def _remembered(function: Any) -> tuple[list[str], list[Any]]:
    """Replaces Beam's `get_function_args_defaults`."""
    if not isinstance(function, MethodType) or not isinstance(function.__func__, FunctionType):
        return _inspect(function)
    if function.__func__ not in _known:
        _known[function.__func__] = _inspect(function)
    names, defaults = _known[function.__func__]
    return list(names), list(defaults)
