"""Features as points in a plane: principal components of a sample of the stored rows.

The sample is at most so many rows, drawn evenly over the clusters, the selected rows first. The plane is
spanned by the two directions in which the sample varies most, found by subspace iteration (Halko, Martinsson
and Tropp 2011, arXiv 0909.4061) from a fixed start, so that the same store gives the same map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.store import StoredFeatures

__all__ = ["FeatureMap", "map_features", "principal_axes", "sampled"]

LIMIT = 5000
_BLOCK = 8
_ITERATIONS = 15


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


def principal_axes(centred: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """The two unit vectors along which the rows (n, d), of mean 0, vary most, (d, 2), and their shares.

    Each axis is turned so that its largest coordinate is positive.
    """
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(centred.shape[1], min(_BLOCK, *centred.shape))).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis, _upper = np.linalg.qr(centred.T @ (centred @ basis))
    _left, lengths, right = np.linalg.svd(centred @ basis, full_matrices=False)
    axes = np.zeros((centred.shape[1], 2), np.float32)
    axes[:, : len(right)] = (basis @ right.T)[:, :2]
    axes *= np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0) < 0, -1, 1)
    squares = np.zeros(2)
    squares[: len(lengths)] = lengths[:2].astype(np.float64) ** 2
    total = float(np.square(centred, dtype=np.float64).sum()) or 1.0
    return axes, (float(squares[0] / total), float(squares[1] / total))
