"""What is known of every row before it is drawn. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import InputError
from clusterucb.selection.checks import check_scores


@dataclass(frozen=True, eq=False)
class Known:
    """What stored features tell of N rows.

    Attributes:
        estimate: of each row's influence, by the newest feature that is stored of it, (N,), in any unit.
        features: of each row, of any length, (N, D), D 0 where there are none.
        age: selections since a row's newest feature was made, 0 for those made last, (N,).

    Raises:
        InputError: the shapes do not agree, or a number is not finite.
    """

    estimate: NDArray[np.float64]
    features: NDArray[np.floating]
    age: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.estimate)
        check_scores(self.estimate, np.arange(n), "estimate")
        if self.features.ndim != 2 or len(self.features) != n or self.age.shape != (n,):
            raise InputError(
                f"Known(features of shape {self.features.shape}, age of shape {self.age.shape}): must be "
                f"({n}, D) and ({n},), as the estimate is of {n} rows"
            )
        if not np.isfinite(self.features).all():
            row = int(np.isfinite(self.features).all(1).argmin())
            raise InputError(f"Known(features): row {row} has a number that is not finite")

    @classmethod
    def estimates(cls, estimate: NDArray[np.float64]) -> Known:
        """Estimates alone, all of one age."""
        n = len(estimate)
        return cls(np.asarray(estimate, np.float64), np.zeros((n, 0), np.float32), np.zeros(n, np.int64))
