"""The distance between the predictions of two runs: the Jensen-Shannon distance of their distributions.

distance(p, q) = sqrt(H((p + q) / 2) - (H(p) + H(q)) / 2), with H Shannon's entropy in bits: 0 where they are equal, 1 where
they share nothing. J. Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37(1),
1991; that its root is a metric: D. Endres and J. Schindelin, the same 49(7), 2003. It needs no correction for values that one
run lacks. For small shifts, the population stability index is 8 ln 2 times its square: `SLIGHT` and `MARKED` are where that
index has its customary 0.1 and 0.25.

Runs of few rows differ by chance. For n and m rows of one distribution over k bins, the square is expected to be
(k - 1) (1/n + 1/m) / (8 ln 2), as that of a chi-squared; a shift must also exceed twice its root.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..shards.column_statistics import Column
from ..shards.number_bins import Numbers

SLIGHT = 0.13
MARKED = 0.21
GROUPS = 20


@dataclass(frozen=True, slots=True)
class Drift:
    """`of` is what was compared: "classes", "largest scores", "values", "numbers" or "lengths". `chance` is the distance that
    as many rows of the same distribution are expected to show.
    """

    of: str
    distance: float
    chance: float

    @property
    def grade(self) -> str:
        """ "steady", "slight" or "marked"."""
        if self.distance <= 2 * self.chance or self.distance < SLIGHT:
            return "steady"
        return "marked" if self.distance >= MARKED else "slight"


def distance(now: Sequence[float], before: Sequence[float]) -> float:
    """The distance of two distributions over the same bins, as counts of any total."""
    p, q = (np.asarray(counts, np.float64) / max(1e-300, float(np.sum(counts))) for counts in (now, before))
    divergence = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return math.sqrt(min(1.0, max(0.0, divergence)))


def _entropy(p: np.ndarray[Any, Any]) -> float:
    some = p[p > 0]
    return float(-(some * np.log2(some)).sum())


def shifts(now: Column, before: Column) -> Iterator[Drift]:
    """Compares both runs by each statistic of the column that they have in common."""
    rows = now.rows, before.rows
    if not all(rows):
        return
    if now.classes is not None and before.classes is not None and len(now.classes) == len(before.classes):
        yield _shift("classes", [*now.classes, now.nulls], [*before.classes, before.nulls], rows)
        if now.largest is not None and before.largest is not None:
            yield _shift("largest scores", *_grouped(now.largest, before.largest), rows)
        return
    if now.values and before.values:
        names = sorted(now.values.keys() | before.values.keys())
        p, q = ([float(some.get(name, 0)) for name in names] for some in (now.values, before.values))
        of = "values"
    elif now.numbers is not None and before.numbers is not None:
        p, q = _grouped(now.numbers, before.numbers)
        of = "lengths" if is_text(now) else "numbers"
    else:
        return
    yield _shift(of, [*p, now.nulls, *_not_finite(now.numbers)], [*q, before.nulls, *_not_finite(before.numbers)], rows)


def worst(found: Sequence[Drift]) -> Drift | None:
    order = ("steady", "slight", "marked")
    return max(found, key=lambda shift: (order.index(shift.grade), shift.distance), default=None)


def _shift(of: str, now: Sequence[float], before: Sequence[float], rows: tuple[int, int]) -> Drift:
    bins = sum(1 for a, b in zip(now, before, strict=True) if a or b)
    chance = math.sqrt(max(0, bins - 1) * (1 / rows[0] + 1 / rows[1]) / (8 * math.log(2)))
    return Drift(of, distance(now, before), min(1.0, chance))


def _grouped(now: Numbers, before: Numbers) -> tuple[list[float], list[float]]:
    """Counts of both in `GROUPS` groups at most, of about equal shares of the two together."""
    bits = min(now.bits, before.bits)
    held: dict[float, list[float]] = {}
    for which, numbers in enumerate((now, before)):
        coarse = Numbers(bits=bits)
        coarse.merge(numbers)
        for low, _, count in coarse.spans():
            held.setdefault(low, [0, 0])[which] += count
    totals = [max(1, now.binned), max(1, before.binned)]
    groups: list[list[float]] = [[0, 0]]
    for low in sorted(held):
        if groups[-1][0] / totals[0] + groups[-1][1] / totals[1] >= 2 / GROUPS:
            groups.append([0, 0])
        groups[-1] = [a + b for a, b in zip(groups[-1], held[low], strict=True)]
    return [group[0] for group in groups], [group[1] for group in groups]


def _not_finite(numbers: Numbers | None) -> list[int]:
    return [numbers.nan, numbers.infinite] if numbers is not None else []


def is_text(column: Column) -> bool:
    """For lists and dictionaries, their values' type decides."""
    return re.search(r"(^|: |values=)(large_)?(string|binary)($|[>, ])", column.kind) is not None
