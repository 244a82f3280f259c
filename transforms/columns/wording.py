"""Wording of tensors, columns and names in errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..models.spec import TensorSpec

_MOST_FEATURES = 12


def described(spec: TensorSpec) -> str:
    if spec.example is not None:
        return spec.example.shown(_MOST_FEATURES)
    dtype = spec.dtype if spec.composite is None else f"{spec.composite.kind} {spec.dtype}"
    if spec.shape is None:
        return f"{dtype} of any shape"
    return f"{dtype} {shown(spec.shape)}"


def lists_taken(spec: TensorSpec) -> str:
    """What feeds a ragged or sparse input."""
    nested = "lists" + " of lists" * (spec.lists - 1)
    lists = f"{nested} of {spec.dtype} as long as they are"
    if spec.composite is None or spec.composite.kind == "ragged":
        return lists
    pair = f", or two columns of lists: --feature={spec.name}=POSITIONS,VALUES" if spec.lists == 1 else ""
    return f"{lists}, which are its first values in a row{pair}"


def shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join(str(dim) for dim in shape)}]"


def nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 3, 0.5)
    return f"Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def counted(number: int, singular: str, plural: str = "") -> str:
    """ "1 row", "2,000 rows"; `plural` where the plural is not made with an s."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listed(what: str, names: Iterable[str]) -> str:
    every = list(names)
    rest = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return f"{what} {', '.join(every[:20])}{rest}" if every else f"no {what}"


def of(where: str) -> str:
    return f" of {where}" if where else ""


def within(where: str) -> str:
    return f" in {where}" if where else ""
