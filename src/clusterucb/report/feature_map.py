"""Features as points in a plane: principal components of a sample of the stored rows.

The sample is at most so many rows, drawn evenly over the clusters, the selected rows first. The plane is
spanned by the two directions in which the sample varies most, found by subspace iteration (Halko, Martinsson
and Tropp 2011, arXiv 0909.4061) from a fixed start, so that the same store gives the same map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.principal import principal_axes
from clusterucb.features.store import StoredFeatures

LIMIT = 5000


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A sample of features in a plane.

    Attributes:
        rows: usable rows of the sample, ascending, (n,).
        points: their coordinates, (n, 2).
        influence: their influence at the checkpoint of the features, (n,).
        arrows: each subtask's direction in the plane, as a part of its length, (S, 2).
        explained: shares of the sample's variance along both axes.
    """

    rows: NDArray[np.int64]
    points: NDArray[np.float32]
    influence: NDArray[np.float64]
    arrows: NDArray[np.float64]
    explained: tuple[float, float]


def map_features(
    features: StoredFeatures | NDArray[np.floating],
    directions: NDArray[np.floating],
    clusters: NDArray[np.int64],
    selected: NDArray[np.int64],
    limit: int = LIMIT,
) -> FeatureMap:
    """Map at most `limit` of the stored rows.

    Args:
        features: (N, d).
        directions: of the subtasks, (S, d).
        clusters: of each row, (N,).
        selected: rows that are to be on the map.
        limit: rows of the sample.
    """
    rows = sampled(clusters, selected, limit)
    sample = np.concatenate([features[row : row + 1] for row in rows.tolist()]).astype(np.float32)  # (n, d)
    scores = (sample.astype(np.float64) @ directions.T).max(1)
    sample -= sample.mean(0)
    axes, explained = principal_axes(sample)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    arrows = directions.astype(np.float64) @ axes / np.maximum(lengths, np.finfo(np.float64).tiny)
    return FeatureMap(rows, sample @ axes, scores, arrows, explained)


def sampled(clusters: NDArray[np.int64], selected: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """At most `limit` rows, ascending: selected ones up to a fifth, and an even share of each cluster."""
    rng = np.random.default_rng(0)
    everything = np.arange(len(clusters))
    if len(clusters) <= limit:
        return everything
    chosen = np.unique(selected)
    if len(chosen) > limit // 5:
        chosen = rng.choice(chosen, limit // 5, replace=False)
    others = rng.permutation(np.setdiff1d(everything, chosen))
    by_cluster = others[np.argsort(clusters[others], kind="stable")]
    even = np.linspace(0, len(by_cluster) - 1, limit - len(chosen)).astype(np.int64)
    return np.union1d(chosen, by_cluster[even])
