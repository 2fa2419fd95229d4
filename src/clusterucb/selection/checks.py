"""What a selection refuses of labels, scores and settings, in one wording; a budget refuses for itself."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.errors import ConfigError, InputError


def check_scores(returned: ArrayLike, rows: NDArray[np.int64], of: str = "influence") -> NDArray[np.float64]:
    """What was given as the influence of `rows`, or another number `of` them, as float64[b].

    Raises InputError, which names a row, where it is not one finite number a row.
    """
    scores = np.asarray(returned, dtype=np.float64)
    if scores.shape != rows.shape:
        raise InputError(
            f"{of} of shape {scores.shape} for {len(rows)} rows from row {rows[0]} on:"
            f" expected {rows.shape}, one number a row"
        )
    if not all(map(math.isfinite, scores.tolist())):  # for one row, far faster than a vector step
        bad = int(np.isfinite(scores).argmin())
        raise InputError(
            f"{of} of row {rows[bad]} is {scores[bad]}: expected a finite number; exclude the row"
        )
    return scores


def check_labels(clusters: ArrayLike) -> NDArray[np.int64]:
    """Cluster labels as int64[N], or ConfigError."""
    labels = np.asarray(clusters)
    if labels.ndim != 1:
        raise ConfigError(f"clusters of shape {labels.shape}: must be one label a row, shape (N,)")
    if not labels.size:
        raise ConfigError("clusters are empty: must name the cluster of at least one row")
    if labels.dtype.kind not in "iu":
        raise ConfigError(f"clusters of type {labels.dtype}: must be integers")
    if labels.min() < 0:
        row = int(labels.argmin())
        raise ConfigError(f"clusters: row {row} has label {labels[row]}: must be 0 or more")
    return labels.astype(np.int64, copy=False)


def check_seed(seed: int) -> None:
    """ConfigError for a negative seed."""
    if seed < 0:
        raise ConfigError(f"seed is {seed}: must be 0 or more")


def check_draws(policy: object, draw_batch: int, draw_batch_arms: object) -> None:
    """ConfigError for a policy that cannot be asked, or a batch that cannot be drawn."""
    if not callable(policy):
        raise ConfigError(f"policy is {policy!r}: must be a policy such as UCBBeta(beta=1.0)")
    if draw_batch < 1:
        raise ConfigError(f"draw_batch is {draw_batch}: must be at least 1 row a draw")
    if draw_batch_arms not in ("one", "many"):
        raise ConfigError(f"draw_batch_arms is {draw_batch_arms!r}: must be 'one' or 'many'")
