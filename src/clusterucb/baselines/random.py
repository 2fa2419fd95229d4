"""The baseline `random`: rows drawn uniformly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["random_scores"]


def random_scores(rows: int, seed: int) -> NDArray[np.float64]:
    """One number a row, uniform in [0, 1), (N,): its largest are a uniform draw without replacement."""
    return np.random.default_rng(seed).random(rows)
