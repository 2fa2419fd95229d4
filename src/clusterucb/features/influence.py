"""Influence of a row: the maximum over subtasks of <feature, direction>, from a store or a live model.

`Influence = Callable[[rows], scores]`: a bandit does not know which of the two it calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clusterucb.runtime.processes import ALONE, World


class Vectors(Protocol):
    """Features (N, d), float16 or float32, read by row slices: an array, or FeatureStore.features."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, d)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


def influence(features: NDArray[Any], directions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scores (n,) of `features` (n, d) against `directions` (S, d).

    Computed in float64 and rounded to float32, so that a row's score does not depend on the rows that
    were scored with it.
    """
    products = features.astype(np.float64) @ directions.T.astype(np.float64)  # (n, S)
    scores: NDArray[np.float64] = products.max(1).astype(np.float32).astype(np.float64)
    return scores


def stored_influence(
    features: Vectors, directions: NDArray[np.floating], block: int = 1024, world: World = ALONE
) -> NDArray[np.float64]:
    """Scores of all N stored rows, `block` rows in memory at a time."""

    def scores(starts: Sequence[int]) -> Iterator[NDArray[np.float64]]:
        return (influence(features[start : start + block], directions) for start in starts)

    blocks = range(0, len(features), block)
    return np.concatenate([found for _, found in world.share(blocks, scores, each=64)])


class Picked:
    """Some rows of a store, (n, d), read as runs of it: for few that are left out.

    Args:
        store: of all rows.
        places: of the rows, ascending, (n,).
    """

    def __init__(self, store: Vectors, places: NDArray[np.int64]) -> None:
        self._store, self._places = store, places
        self.shape = (len(places), store.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """A run of rows, (B, d)."""
        places = self._places[rows]
        first = int(places[0]) if len(places) else 0
        return self._store[first : int(places[-1]) + 1 if len(places) else 0][places - first]

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        """All rows at once, for stores that are small."""
        return np.asarray(self[:], dtype)


class EndToEnd:
    """Features of several checkpoints laid end to end, (N, C d): as one store is read, so are they.

    Args:
        stores: of the same N rows, one a checkpoint.
    """

    def __init__(self, stores: Sequence[Vectors]) -> None:
        self._stores = stores
        self.shape = (len(stores[0]), sum(store.shape[1] for store in stores))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """A run of rows, (B, C d)."""
        return np.concatenate([store[rows] for store in self._stores], axis=1)


def weighted_directions(
    directions: Sequence[NDArray[np.float32]], weights: Sequence[float]
) -> NDArray[np.float64]:
    """Directions (S, d) of C checkpoints, each times its weight, laid end to end, (S, C d).

    The inner product with features laid end to end is LESS's sum over checkpoints (Xia et al. 2024, arXiv
    2402.04333), so that their influence is the maximum over subtasks of that sum.
    """
    return np.concatenate(
        [w * d.astype(np.float64) for w, d in zip(weights, directions, strict=True)], axis=1
    )
