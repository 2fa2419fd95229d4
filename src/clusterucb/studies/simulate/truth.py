"""What scoring all rows would tell, and how much of it a selection has found. numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MEASURES = {
    "recall": "share of the full method's top rows that were found",
    "captured": "mean influence of the chosen rows over that of the best",
    "advantage": "how far the chosen rows' mean is on the way from the pool's (0) to the best's (1)",
}
"""The measures of a selection, by name."""


class Found(NamedTuple):
    """How good the rows are that were chosen, against the best `keep` rows of all."""

    recall: float
    """|chosen and best| / keep."""
    captured: float
    """mean(chosen) / mean(best); NaN where the best's mean is not above 0, as the ratio says nothing then."""
    advantage: float
    """(mean(chosen) - mean(all)) / (mean(best) - mean(all)); 1 where no row is better than another."""


class Truth:
    """The influence of all rows, (N,), and the `keep` best of them, of equal rows the lower ones."""

    def __init__(self, scores: NDArray[np.float64], keep: int) -> None:
        order = np.argsort(-scores, kind="stable")
        self.keep = keep
        self._ranked = scores[order]  # (N,), falling
        self._rank = np.empty(len(scores), np.int64)  # of each row, 0 is the best
        self._rank[order] = np.arange(len(scores))

    def found(self, drawn: NDArray[np.int64]) -> Found:
        """What the best `keep` rows of `drawn` are worth; `drawn` holds at least so many, none twice.

        They are those of lowest rank, so a best row that is drawn is always chosen, and neither measure
        falls when rows are added to `drawn`.
        """
        ranks = np.sort(self._rank[drawn])[: self.keep]
        chosen, best = self._ranked[ranks].mean(), self._ranked[: self.keep].mean()
        everything = self._ranked.mean()
        return Found(
            recall=float((ranks < self.keep).mean()),
            captured=float(chosen / best) if best > 0 else float("nan"),
            advantage=float((chosen - everything) / (best - everything)) if best > everything else 1.0,
        )
