"""What a run's stored features tell of every row at a new checkpoint, before any fresh gradient.

    estimate   max over subtasks of <newest stored feature of the row, the subtask's direction now>
    features   the row's feature in the store, folded to few dimensions

The store has all rows at one checkpoint. Rows that were drawn in later selections have newer features, kept
in the folders of those rounds: their estimates are of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.gradients.drawn import DrawnFeatures
from clusterucb.gradients.influence import Rows, influence, stored_influence
from clusterucb.selection.known import Known

__all__ = ["Knowledge", "folded"]

DIM = 256


class Knowledge:
    """What is known of N rows.

    Args:
        features: of all rows, (N, d).
        estimate: of their influence for the target's directions at another checkpoint; by default by
            inner products with these.
    """

    def __init__(
        self,
        features: Rows,
        estimate: Callable[[NDArray[np.floating]], NDArray[np.float64]] | None = None,
    ) -> None:
        self._features = features
        self._estimate = estimate or (lambda directions: stored_influence(features, directions))
        self._folded: NDArray[np.float32] | None = None

    def at(self, directions: NDArray[np.floating], rounds: Sequence[Path] = ()) -> Known:
        """What is known where the target's directions are these, (S, d).

        Args:
            directions: at the model as it is now.
            rounds: folders of earlier rounds, oldest first, that may hold newer features.
        """
        if self._folded is None:
            self._folded = folded(self._features, DIM)
        estimate = self._estimate(directions)
        age = np.zeros(len(estimate), np.int64)
        for number, folder in enumerate(rounds, start=1):
            for rows, features in DrawnFeatures(folder).blocks():
                estimate[rows] = influence(features, directions)
                age[rows] = number
        return Known(estimate, self._folded, age.max() - age)


def folded(features: Rows, dim: int, block: int = 1024) -> NDArray[np.float32]:
    """Rows (N, d) in `dim` dimensions or in d, if these are fewer, (N, min(d, dim)).

    Coordinates get random signs, and every `dim`-th of them are added up: unbiased for inner products, like
    the projection that made them.
    """
    n, d = len(features), features[0:1].shape[1]
    if d <= dim:
        return np.concatenate([features[at : at + block].astype(np.float32) for at in range(0, n, block)])
    width = -(-d // dim) * dim
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), d)
    found = np.empty((n, dim), np.float32)
    for at in range(0, n, block):
        rows = np.zeros((len(features[at : at + block]), width), np.float32)
        rows[:, :d] = features[at : at + block] * signs
        found[at : at + len(rows)] = rows.reshape(len(rows), -1, dim).sum(1)
    return found
