"""Wording of tensors, columns and names in errors."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable

from ..errors import ColumnError
from ..models.spec import TensorSpec

_MOST_FEATURES = 12
_SIGNS = frozenset(',"')
_PAIRS = re.compile(r'\s*[^\s=,"\\]+=[^=,"\\]+(?:,\s*[^\s=,"\\]+=[^=,"\\]+)+')


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
    """A question that names up to three similar names; and how a flag names one with a comma or quotes, which may be why `name`
    is not what was meant.
    """
    others = list(names)
    parted = [other for other in others if _SIGNS & set(other) and name in other.strip('"').split(",")]
    near = list(dict.fromkeys(parted + difflib.get_close_matches(name, others, 3, 0.5)))[:3]
    if not near:
        return ""
    quoted = [json.dumps(other, ensure_ascii=False) for other in near if _SIGNS & set(other)]
    written = f" On the command line such a name is put in double quotes: {' or '.join(quoted)}." if quoted else ""
    return f"Did you mean {' or '.join(map(repr, near))}?{written}"


def unknown(what: str, name: str, kind: str, known: Collection[str]) -> ColumnError:
    """The error where `name`, at the end of the sentence, is none of the model's: `kind` is "inputs" or "outputs"."""
    return ColumnError(
        f"{what} '{name}'",
        expected=f"the name of one of its {kind}",
        found=listed(kind, known),
        cure=nearest(name, known) or "Name one of these instead.",
    )


def counted(number: int, singular: str, plural: str = "") -> str:
    """ "1 row", "2,000 rows"; `plural` where the plural is not made with an s."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def one_each(flag: str, value: str) -> str:
    """The cure for a flag that is given once for several pairs with commas between; empty where `value` is not such pairs.

    >>> one_each("--fill", "a=0,b=1")
    'Give each by itself: --fill=a=0 --fill=b=1'
    >>> one_each("--fill", "a=x, or y")
    ''
    """
    if not _PAIRS.fullmatch(value):
        return ""
    return f"Give each by itself: {' '.join(f'{flag}={pair.strip()}' for pair in value.split(','))}"


def listed(what: str, names: Iterable[str]) -> str:
    every = list(names)
    rest = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return f"{what} {', '.join(every[:20])}{rest}" if every else f"no {what}"


def of(where: str) -> str:
    return f" of {where}" if where else ""


def within(where: str) -> str:
    return f" in {where}" if where else ""
