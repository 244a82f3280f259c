"""The end of the page: what its numbers cover, and how two runs are compared."""

from __future__ import annotations

from ..shards.column_statistics import ALL_ROWS, EVERY
from .drift import GROUPS, MARKED, SLIGHT
from .html import say

_NUMBERS = f"""Rows, nulls, NaN, min, max, mean and std. dev. come from every row. Distributions and medians come from each
shard's first {ALL_ROWS:,} rows and then from every {EVERY}th batch. A median is exact to the width of a bin, a sixteenth of an
octave. Times are those of one thread each; one shard is read or written while another is predicted."""
_COMPARING = f"""The Jensen-Shannon distance of two distributions p and q is the square root of
H((p + q)/2) &minus; (H(p) + H(q))/2, where H is Shannon's entropy in bits. It is 0 if they are equal and 1 if they share
nothing (J. Lin, IEEE Transactions on Information Theory 37(1), 1991). Numbers are compared in {GROUPS} bins with about equal
shares of both runs. A column is marked as shifted from {SLIGHT}, and as much shifted from {MARKED}: for small shifts, these
are a population stability index of 0.1 and 0.25. &ldquo;Chance alone&rdquo; is the distance that two samples of one
distribution are expected to show; a shift must exceed twice that."""
_NO_SCRIPT = "Charts are drawn by a script, which this viewer does not run. The numbers are below each."


def explanation(compared: str | None) -> str:
    """`compared` is the place of the previous run, None where there is none."""
    comparing = f"<p>{_COMPARING}</p><p>{say(compared)}</p>" if compared is not None else ""
    return f"<footer><p>{_NUMBERS}</p>{comparing}<noscript><p>{_NO_SCRIPT}</p></noscript></footer>"
