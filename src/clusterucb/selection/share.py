"""An exact share of a number of rows: 0.29 of 100 rows is 29, though in floats 0.29 * 100 < 29."""

from __future__ import annotations

import math
from fractions import Fraction

__all__ = ["cold_draws", "share", "smallest_share"]


def share(fraction: float, n: int) -> int:
    """`floor(fraction * n)` rows, the fraction read as the decimal number that it prints as.

    `fraction` is finite and not negative; 0.29 means 29/100, not the nearest binary number below it.
    """
    return math.floor(Fraction(repr(float(fraction))) * n)


def cold_draws(cold_start: float, size: int) -> int:
    """Rows of a cluster of `size` rows that the cold start draws: its share, at least one."""
    return max(1, share(cold_start, size))


def smallest_share(n: int) -> float:
    """A short decimal, about `1 / n` and never below it, whose share of `n` rows is at least one row."""
    scale = 10 ** (len(str(n)) + 1)
    return float(Fraction(math.ceil(Fraction(scale, n)), scale))
