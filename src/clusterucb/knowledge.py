"""What a run's stored features tell of every row at a new checkpoint, before any fresh gradient.

    estimate   max over subtasks of <newest stored feature of the row, the subtask's direction now>
    features   the principal components of the row's feature in the store

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
from clusterucb.gradients.principal import principal
from clusterucb.selection.known import Known

__all__ = ["Knowledge"]

DIM = 64


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
        self._components: NDArray[np.float32] | None = None

    def at(self, directions: NDArray[np.floating], rounds: Sequence[Path] = ()) -> Known:
        """What is known where the target's directions are these, (S, d).

        Args:
            directions: at the model as it is now.
            rounds: folders of earlier rounds, oldest first, that may hold newer features.
        """
        if self._components is None:
            self._components = principal(self._features, DIM)
        estimate = self._estimate(directions)
        age = np.zeros(len(estimate), np.int64)
        for number, folder in enumerate(rounds, start=1):
            for rows, features in DrawnFeatures(folder).blocks():
                estimate[rows] = influence(features, directions)
                age[rows] = number
        return Known(estimate, self._components, age.max() - age)
