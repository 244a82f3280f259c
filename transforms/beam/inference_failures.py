"""Finds where `RunInference(…).with_exception_handling()` takes failed elements: a failed row takes no other row with it.

Beam sends the whole batch of a failed call to `failed_inferences`, and does not inform a model handler whether or where
exceptions are handled. So Beam's wrapper is found among the callers: a private class of Beam 2.77, named only here. Sometimes
it is not found: with `use_subprocess` or a timeout, whose threads have other callers, or with keys, which Beam pairs with
results by position. The call then fails as a whole.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from typing import Any

from ..errors import DataError

# Callers between the wrapper and a handler that do not read the results.
_BETWEEN = frozenset(
    {"OOMProtectedFn", "_RunInferenceDoFn", "_PreProcessingModelHandler", "_PostProcessingModelHandler"}
)
_WRAPPER = "_ExceptionHandlingWrapperDoFn"


@dataclass(frozen=True, slots=True)
class Failure:
    """`elements` of a batch that cannot be predicted. `error` has Beam's form: the kind, its text, its traceback's lines."""

    elements: list[Any]
    error: tuple[type[BaseException], str, list[str]]

    @classmethod
    def of(cls, elements: list[Any], error: BaseException) -> Failure:
        return cls(elements, (type(error), repr(error), traceback.format_exception(error)))


def failures_tag() -> str | None:
    """The tag of the collection that takes what fails, or None where the caller's caller is to raise."""
    frame = sys._getframe(2)
    # Locals are asked for in Beam's own frames alone: that keeps what they name alive for as long as the call lasts.
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("apache_beam."):
        owner: Any = frame.f_locals.get("self")
        name = type(owner).__name__
        if name == _WRAPPER:
            caught = issubclass(DataError, owner._exc_class)
            return str(owner._dead_letter_tag) if caught else None
        if name not in _BETWEEN:
            return None
        frame = frame.f_back  # type: ignore[assignment]
    return None
