"""Charts as numbers: what the page's script draws, and what its tables say."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ..shards.column_statistics import Column
from ..shards.number_bins import Numbers
from .account import NANOSECONDS, STAGES, TimeLine
from .drift import is_text

MOST_BARS = 40
_ONE_BAR = 0.8
_RARE = 0.005
_MOST_POINTS = 400
_HAIR = 1e-12


@dataclass(frozen=True, slots=True)
class Bars:
    """Shares (0 to 1) of this run and of the one before. `labels` name each bar, or where `between` is set, each edge
    between and next to them.
    """

    title: str
    labels: tuple[str, ...]
    now: tuple[float, ...]
    before: tuple[float, ...] | None
    between: bool = False

    def names(self) -> list[str]:
        if not self.between:
            return list(self.labels)
        return [f"{low} to {high}" for low, high in zip(self.labels, self.labels[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Areas:
    """Threads at work, stage over stage, at each of `seconds` since the run began."""

    title: ClassVar = "Threads at work"
    seconds: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]


Chart: TypeAlias = Bars | Areas


def column_charts(now: Column, before: Column | None) -> list[Bars]:
    """The first says most of the column."""
    if now.classes is not None:
        old = before.classes if before is not None else None
        counted = _numbered(now.classes), None if old is None else _numbered(old)
        chart = _categories("Class with the largest score", *counted)
        largest = histogram("Largest score of a row", now.largest, before.largest if before else None)
        return [chart] if largest is None else [chart, largest]
    old_values = before.values if before is not None else None
    if now.values and (len(now.values) <= MOST_BARS or now.numbers is None):
        return [_categories("Values", now.values, old_values)]
    if now.numbers is None:
        return []
    values = histogram("Length in bytes" if is_text(now) else "Values", now.numbers, before.numbers if before else None)
    return [values] if values is not None else []


def histogram(title: str, now: Numbers | None, before: Numbers | None) -> Bars | None:
    """Equally wide bars. Where nearly all numbers would be in one of them, bars that each double, if all are above 0; else the
    outermost bars reach out to what is rare.
    """
    if now is None or not now.binned:  # all numbers may be in batches that were not sampled
        return None
    both = [now] if before is None or not before.binned else [now, before]
    least, most = min(numbers.least for numbers in both), max(numbers.most for numbers in both)
    spans = [list(numbers.spans()) for numbers in both]

    def linear(low: float, high: float) -> tuple[list[dict[int, int]], list[float], int]:
        inside = [b - a for some in spans for a, b, _ in some if b >= low and a <= high]
        width = _round_width(min(max(high / MOST_BARS - low / MOST_BARS, *inside, sys.float_info.min), 1e307))

        def bar(value: float) -> float:
            # 0.3 / 0.1 is a little below 3.
            return value / width * (1 + math.copysign(_HAIR, value))

        first = math.floor(bar(low))
        last = max(first, math.ceil(high / width * (1 - math.copysign(_HAIR, high))) - 1)
        counted = [_counted(some, lambda at: math.floor(min(last, max(first, bar(at))))) for some in spans]
        return counted, [_multiple(width, at) for at in range(first, last + 2)], first

    counted, edges, first = linear(least, most)
    doubling = False
    if max(counted[0].values()) > _ONE_BAR * now.binned and least < most / 64:
        if least > 0:
            doubling = True
            step = math.ceil((math.log2(most) - math.log2(least)) / MOST_BARS)
            counted = [_counted(some, lambda at: math.floor(math.log2(at) / step)) for some in spans]
            first, last = (pick(pick(some) for some in counted) for pick in (min, max))
            edges = [2.0 ** min(1023, step * at) for at in range(first, last + 2)]
        else:
            usual = [numbers.quantile(share) or 0.0 for numbers in both for share in (_RARE, 1 - _RARE)]
            narrow = linear(min(usual), max(usual))
            if len(narrow[1]) > 2:  # else the usual numbers are one, as where nearly all are 0
                counted, edges, first = narrow
                edges[0], edges[-1] = min(least, edges[0]), max(most, edges[-1])
    bars = range(first, first + len(edges) - 1)
    shares = [
        tuple(some.get(at, 0) / max(1, numbers.binned) for at in bars)
        for some, numbers in zip(counted, both, strict=True)
    ]
    return Bars(
        title,
        tuple(map(_edge if doubling else number, edges)),
        shares[0],
        shares[1] if len(shares) > 1 else None,
        between=True,
    )


def _round_width(least: float) -> float:
    """1, 2 or 5 times a power of ten: the smallest that is no less."""
    power = 10.0 ** math.floor(math.log10(least))
    if not power:  # below the smallest normal number
        return least
    return next(width for width in (power, 2 * power, 5 * power, 10 * power) if width >= least * (1 - _HAIR))


def _multiple(width: float, times: int) -> float:
    """As near as a float is to the decimal number; the largest float beyond that."""
    most = sys.float_info.max
    return max(-most, min(most, float(f"{width * times:.12g}")))


def _edge(value: float) -> str:
    """Bars that double have edges such as 1/64, which no few digits are."""
    fraction, exponent = math.frexp(value)
    return f"1/{2 ** (1 - exponent):,}" if fraction == 0.5 and -10 <= exponent - 1 <= -3 else number(value)


def _counted(spans: Sequence[tuple[float, float, int]], bar: Callable[[float], int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for low, high, count in spans:
        at = bar(low / 2 + high / 2)
        counts[at] = counts.get(at, 0) + count
    return counts


def _numbered(counts: np.ndarray[Any, Any]) -> dict[str, int]:
    return {str(at): int(count) for at, count in enumerate(counts)}


def _categories(title: str, now: dict[str, int], before: dict[str, int] | None) -> Bars:
    """Sorted if all have a bar, else the most frequent of both runs, most frequent first."""
    totals = [max(1, sum(some.values())) for some in (now, before or {})]
    names = list(now) + [name for name in before or {} if name not in now]
    if all(re.fullmatch(r"-?[0-9]{1,20}", name) for name in names):
        names.sort(key=int)
    else:
        names.sort(key=lambda name: (-now.get(name, 0), name))

    def share(name: str) -> float:
        return max(now.get(name, 0) / totals[0], (before or {}).get(name, 0) / totals[1])

    if len(names) > MOST_BARS:
        title = f"{title}, the {MOST_BARS} most frequent of {len(names):,}"
        names = sorted(names, key=share, reverse=True)[:MOST_BARS]
    return Bars(
        title,
        tuple(names),
        tuple(now.get(name, 0) / totals[0] for name in names),
        None if before is None else tuple(before.get(name, 0) / totals[1] for name in names),
    )


def time_line(line: TimeLine, began: float) -> Areas:
    if not line.nanoseconds:
        return Areas((), tuple(() for _ in STAGES))
    first, last = min(line.nanoseconds), max(line.nanoseconds)
    nothing = [0] * len(STAGES)
    spans = [line.nanoseconds.get(at, nothing) for at in range(first, last + 1)][:_MOST_POINTS]
    seconds = tuple(round(at * line.width - began, 3) for at in range(first, first + len(spans)))
    stages = zip(*spans, strict=True)
    return Areas(seconds, tuple(tuple(round(ns / NANOSECONDS / line.width, 3) for ns in stage) for stage in stages))


def number(value: float | None) -> str:
    """Four digits of it, as a person writes them."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "\N{MINUS SIGN}")
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}".replace("-", "\N{MINUS SIGN}")
