"""An exact share of a number of rows: 0.29 of 100 rows is 29, though in floats 0.29 * 100 < 29.

The best rows by score.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.errors import ConfigError, InputError


def share(fraction: float, n: int) -> int:
    """`floor(fraction * n)` rows, the fraction read as the decimal number that it prints as.

    `fraction` is finite and not negative; 0.29 means 29/100, not the nearest binary number below it.
    """
    return math.floor(Fraction(repr(float(fraction))) * n)


def smallest_share(n: int, count: int = 1) -> float:
    """A short decimal, about `count / n` and never below it, whose share of `n` rows is at least `count`."""
    scale = 10 ** (len(str(n)) + 1)
    return float(Fraction(math.ceil(Fraction(count * scale, n)), scale))


def top(scores: ArrayLike, count: int) -> NDArray[np.int64]:
    """The `count` rows with the largest scores, of equal scores the lower row first; int64[count], ascending.

    `scores` is float[N], one finite number a row. Raises ConfigError for a `count` outside 1..N and
    InputError for scores that are not one finite number a row.
    """
    values = np.asarray(scores, dtype=np.float64)  # (N,)
    if values.ndim != 1:
        raise InputError(f"top(scores=array of shape {values.shape}): must be one number a row, shape (N,)")
    if not 1 <= count <= len(values):
        raise ConfigError(f"top(count={count}): must be between 1 and the number of rows, {len(values)}")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"top(scores): row {row} has score {values[row]}: must be finite; exclude the row")
    lowest = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > lowest)
    equal = np.flatnonzero(values == lowest)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))
