"""What a run's stored features tell of every row at a new checkpoint, before any fresh gradient.

    estimate   max over subtasks of <newest stored feature of the row, the subtask's direction now>
    features   the principal components of the row's feature in the store

The store has all rows at one checkpoint. Rows that were drawn in later selections have newer features, kept
in the folders of those rounds: their estimates are of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.drawn import DrawnFeatures
from clusterucb.features.influence import Aimed, Vectors, influence, stored_influence
from clusterucb.features.principal import principal
from clusterucb.selection.known import Known

DIM = 64


class Knowledge:
    """What is known of N rows.

    Args:
        features: of all rows, (N, d).
        likeness: of each row to the target, (N,), where the features are none of gradients, so that the
            target's directions at another checkpoint do not fit them.
    """

    def __init__(self, features: Vectors, likeness: NDArray[np.float64] | None = None) -> None:
        self._features, self._likeness = features, likeness

    def at(self, aim: Aimed, rounds: Sequence[Path] = (), *, features: bool = True) -> Known:
        """What is known where the target is this.

        Args:
            aim: what rows are compared with at the model as it is now.
            rounds: folders of earlier rounds, oldest first, that may hold newer features.
            features: whether the rows' own are wanted beside the estimates, for passes over the store.
        """
        newest = np.full(len(self._features), np.nan)  # influence by a newer feature, where there is one
        age = np.zeros(len(newest), np.int64)
        for number, folder in enumerate(rounds, start=1):
            for rows, found in DrawnFeatures(folder).blocks():
                newest[rows] = influence(found, aim)
                age[rows] = number
        components = self._components if features else np.zeros((len(newest), 0), np.float32)
        return Known(self._estimate(aim, newest), components, age.max() - age)

    @cached_property
    def _components(self) -> NDArray[np.float32]:
        return principal(self._features, DIM)

    def _estimate(self, aim: Aimed, newest: NDArray[np.float64]) -> NDArray[np.float64]:
        """By the newest feature or, in the unit of influence, by the one in the store."""
        if self._likeness is None:
            stored = stored_influence(self._features, aim)
        else:
            stored = _in_unit_of(newest, self._likeness)
        return np.where(np.isnan(newest), stored, newest)


def _in_unit_of(influence: NDArray[np.float64], likeness: NDArray[np.float64]) -> NDArray[np.float64]:
    """The line through the rows that have both (least squares, not falling), or likeness where none has."""
    both = ~np.isnan(influence)
    if not both.any():
        return likeness
    x, y = likeness[both] - likeness[both].mean(), influence[both]
    slope = max(0.0, float(x @ y) / max(float(x @ x), 1e-30))
    line: NDArray[np.float64] = y.mean() + slope * (likeness - likeness[both].mean())
    return line
