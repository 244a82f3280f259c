"""Numbers counted in bins that merge exactly, with their sums.

A number's bin is the upper 16 bits of its float64: sign, exponent and the first four bits of the fraction. A bin is a
sixteenth of an octave wide, and bins of any shards merge exactly. Where too many bins are filled, fraction bits are dropped,
which merges neighbours: the result is again the same in any order.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

FRACTION_BITS = 4
# Below this share of a sum of squares, only its last digits show how far numbers are apart.
_CANCELLED = 1e-8
_MOST_BINS = 1024  # and 4094, without fraction bits, where numbers are of every exponent
# Numbers that stay in a processor's cache, with their squares, while they are counted.
_BLOCK = 1 << 15
_NOTHING = np.zeros(0, np.int64)


@dataclass(slots=True)
class Numbers:
    """`count` finite numbers, their `least`, `most`, `total` and `spread`, the sum of their squared
    distances from their mean; and the numbers of `nan` and `infinite` ones.

    Finite ones are counted by key: the float64's upper 16 bits, whose fraction bits after the first `bits` are 0. `keys`
    (ascending) and `counts`, both int64, lack what was added since they were last settled.
    """

    count: int = 0
    nan: int = 0
    infinite: int = 0
    least: float = math.inf
    most: float = -math.inf
    total: float = 0.0
    spread: float = 0.0
    bits: int = FRACTION_BITS
    keys: np.ndarray[Any, Any] = field(default_factory=lambda: _NOTHING)
    counts: np.ndarray[Any, Any] = field(default_factory=lambda: _NOTHING)
    _counting: np.ndarray[Any, Any] | None = None
    _sums: tuple[int | None, int | None] | None = field(default=None, compare=False, repr=False)

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, values: np.ndarray[Any, Any], weight: int = 1) -> None:
        """`values` are numbers of any dtype and shape [n]. In the bins each counts `weight` times; 0 leaves the bins alone."""
        for start in range(0, len(values), _BLOCK):
            wide = values[start : start + _BLOCK].astype(np.float64, copy=False)
            total = float(np.add.reduce(wide))
            if not math.isfinite(total) and not (finite := np.isfinite(wide)).all():
                nan = int(np.isnan(wide).sum())
                self.nan += nan
                self.infinite += len(wide) - int(finite.sum()) - nan
                self.add(wide[finite], weight)
                continue
            squares, mean = float(np.add.reduce(np.square(wide))), total / len(wide)
            spread = squares - total * mean
            if spread < squares * _CANCELLED:
                spread = float(np.add.reduce(np.square(wide - mean)))
            self._gather(len(wide), total, spread)
            self.least = min(self.least, float(np.minimum.reduce(wide)))
            self.most = max(self.most, float(np.maximum.reduce(wide)))
            if weight:
                keys = wide.view(np.uint64) >> 48
                np.add.at(self._dense(), keys.view(np.int64), weight)

    def merge(self, other: Numbers) -> None:
        """In whatever order any are merged, the result is the same to the bit: sums are kept as whole numbers meanwhile.

        It takes no more memory than its bins: many columns can be merged at the same time.
        """
        self.settle()
        other.settle()
        both = zip(self._exact(), other._exact(), strict=True)
        sums = [None if mine is None or more is None else mine + more for mine, more in both]
        self.count += other.count
        self._set_sums(*sums)
        self.nan, self.infinite = self.nan + other.nan, self.infinite + other.infinite
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        at = np.searchsorted(self.keys, other.keys)
        if self.bits == other.bits and np.array_equal(self.keys[at[at < len(self.keys)]], other.keys):
            counts = self.counts.copy()
            counts[at] += other.counts
            self.counts = counts
            return
        self.bits = min(self.bits, other.bits)
        self._bin(np.concatenate([self.keys, other.keys]), np.concatenate([self.counts, other.counts]))

    def _gather(self, count: int, total: float, spread: float) -> None:
        """As T. Chan, G. Golub and R. LeVeque, "Updating formulae […] for computing sample variances", 1979."""
        if self.count and count:
            apart = total / count - self.total / self.count
            spread += apart * apart * (self.count * count / (self.count + count))
        self.count, self.total, self.spread = self.count + count, self.total + total, self.spread + spread
        self._sums = None

    def _exact(self) -> tuple[int | None, int | None]:
        """The sum and the sum of squares, in units that divide every float64 and every square; None where it is not finite. The
        fraction in the square of a mean is cut off, once for each that `merge` was never called on.
        """
        if self._sums is None:
            total, spread = _multiple(self.total), _multiple(self.spread)
            squares = None
            if total is not None and spread is not None:
                squares = (spread << _UNIT_BITS) + total * total // max(1, self.count)
            self._sums = total, squares
        return self._sums

    def _set_sums(self, total: int | None, squares: int | None) -> None:
        self._sums = total, squares
        self.total = math.inf if total is None else _float(total, _UNIT_BITS)
        if total is None or squares is None:
            self.spread = math.inf
        else:
            self.spread = _float(max(0, squares - total * total // max(1, self.count)), 2 * _UNIT_BITS)

    def settle(self) -> None:
        """Puts what was added into `keys` and `counts`, where everything else looks."""
        if self._counting is None:
            return
        (keys,) = self._counting.nonzero()
        counts, self._counting = self._counting[keys], None
        self._bin(keys, counts)

    def _bin(self, keys: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> None:
        while True:
            self.keys, back = np.unique(keys & -1 << FRACTION_BITS - self.bits, return_inverse=True)
            self.counts = np.bincount(back, counts, len(self.keys)).astype(np.int64)
            if len(self.keys) <= _MOST_BINS or not self.bits:
                return
            self.bits -= 1

    def spans(self) -> Iterator[tuple[float, float, int]]:
        """(lower edge, upper edge, count) of each bin in ascending order, edges in the numbers' own unit."""
        self.settle()
        step = 1 << FRACTION_BITS - self.bits
        negative = self.keys >= _SIGN
        order = np.concatenate([np.nonzero(negative)[0][::-1], np.nonzero(~negative)[0]])
        for at in order.tolist():
            key, count = int(self.keys[at]), int(self.counts[at])
            near, far = _number(key % _SIGN), _number(min(key % _SIGN + step, _INFINITE))
            yield (near, far, count) if key < _SIGN else (-far, -near, count)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count and math.isfinite(self.total) else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of all the numbers, not an estimate for more of them."""
        return math.sqrt(self.spread / self.count) if self.mean is not None and math.isfinite(self.spread) else None

    def quantile(self, share: float) -> float | None:
        """A number that `share` (0 to 1) of them are at most, to within its bin."""
        left = share * self.binned
        for low, high, count in self.spans():
            if left <= count:
                return min(self.most, max(self.least, low + (high - low) * left / count))
            left -= count
        return self.most if self.count else None

    @property
    def binned(self) -> int:
        """The sum of the bins: about `count`."""
        self.settle()
        return int(self.counts.sum())

    def dump(self) -> dict[str, Any]:
        self.settle()
        fields: dict[str, Any] = {"count": self.count, "nan": self.nan, "infinite": self.infinite, "bits": self.bits}
        fields |= {"bins": [np.diff(self.keys, prepend=0).tolist(), self.counts.tolist()]}
        sums = {"least": self.least, "most": self.most, "total": self.total, "spread": self.spread}
        return fields | {name: value for name, value in sums.items() if math.isfinite(value)}

    @classmethod
    def load(cls, fields: dict[str, Any]) -> Self:
        """Raises as `Column.load`."""
        steps, counts = (np.array(some, np.int64) for some in fields["bins"])
        keys, bits = steps.cumsum(), as_integer(fields["bits"])
        paired = keys.ndim == counts.ndim == 1 and len(keys) == len(counts)
        if not paired or bits > FRACTION_BITS or (len(keys) and not 0 <= keys.min() <= keys.max() < 1 << 16):
            raise ValueError("bins out of range")
        if (counts < 0).any() or (steps[1:] <= 0).any() or (keys & ~(-1 << FRACTION_BITS - bits)).any():
            raise ValueError("bins out of order")
        count, total = as_integer(fields["count"]), float(fields.get("total", math.inf))
        spread = fields.get("spread", math.inf)
        if "squares" in fields:  # as was written before there was `spread`
            spread = max(0.0, fields["squares"] - total * total / max(1, count))
        return cls(
            count,
            as_integer(fields["nan"]),
            as_integer(fields["infinite"]),
            float(fields.get("least", math.inf)),
            float(fields.get("most", -math.inf)),
            total,
            max(0.0, float(spread)),
            bits,
            keys,
            counts,
        )

    def _dense(self) -> np.ndarray[Any, Any]:
        """Counts by all 16 bits, for as long as more are added."""
        if self._counting is None:
            self._counting = np.zeros(1 << 16, np.int64)
            self._counting[self.keys] = self.counts
        return self._counting


# The smallest float64 above 0 is 2**-1074.
_UNIT_BITS = 1074


def _multiple(number: float) -> int | None:
    if not math.isfinite(number):
        return None
    numerator, denominator = number.as_integer_ratio()
    return numerator << _UNIT_BITS + 1 - denominator.bit_length()


def _float(multiple: int, bits: int) -> float:
    try:
        return multiple / (1 << bits)
    except OverflowError:
        return math.inf if multiple > 0 else -math.inf


_SIGN = 1 << 15
_INFINITE = 0x7FF0


def _number(key: int) -> float:
    """Where the bins of that key begin; instead of infinity, the largest finite number."""
    number = float(np.array([key << 48], np.uint64).view(np.float64)[0])
    return number if math.isfinite(number) else sys.float_info.max


def as_integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
