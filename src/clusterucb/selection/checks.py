"""What `select()` refuses, in its words."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.errors import ConfigError, InputError
from clusterucb.selection.share import smallest_share


def check_scores(returned: ArrayLike, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """What `influence` returned for `rows`, as float64[b], or InputError that names a row."""
    scores = np.asarray(returned, dtype=np.float64)
    if scores.shape != rows.shape:
        raise InputError(
            f"influence: returned shape {scores.shape} for {len(rows)} rows from row {rows[0]} on:"
            f" expected {rows.shape}, one number a row"
        )
    if not all(map(math.isfinite, scores.tolist())):  # for one row, far faster than a vector step
        bad = int(np.isfinite(scores).argmin())
        raise InputError(
            f"influence: row {rows[bad]} scored {scores[bad]}: expected a finite number; exclude the row"
        )
    return scores


def check_labels(clusters: ArrayLike) -> NDArray[np.int64]:
    """Cluster labels as int64[N], or ConfigError."""
    labels = np.asarray(clusters)
    if labels.ndim != 1:
        raise ConfigError(
            f"select(clusters=array of shape {labels.shape}): must be one label a row, shape (N,)"
        )
    if not labels.size:
        raise ConfigError("select(clusters=[]): must name the cluster of at least one row")
    if labels.dtype.kind not in "iu":
        raise ConfigError(f"select(clusters=array of {labels.dtype}): must be integers")
    if labels.min() < 0:
        row = int(np.flatnonzero(labels < 0)[0])
        raise ConfigError(f"select(clusters): row {row} has label {labels[row]}: must be 0 or more")
    return labels.astype(np.int64, copy=False)


def check_estimate(estimate: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    """An estimate of `n` rows' influence as float64[n], or ConfigError that names a row."""
    if estimate is None:
        return None
    values = np.asarray(estimate, dtype=np.float64)
    if values.shape != (n,):
        raise ConfigError(f"select(estimate=array of shape {values.shape}): must be one number a row, ({n},)")
    if not np.isfinite(values).all():
        row = int(np.isfinite(values).argmin())
        raise ConfigError(f"select(estimate): row {row} has {values[row]}: must be finite")
    return values


def check_settings(
    policy: object,
    budget: float,
    cold_start: float,
    top_p: float,
    draw_batch: int,
    draw_batch_arms: object,
    seed: int,
) -> None:
    """ConfigError for a setting out of range or at odds with another, whatever the pool."""
    if not callable(policy):
        raise ConfigError(f"select(policy={policy!r}): must be a policy such as UCBBeta(beta=1.0)")
    if not 0 < budget <= 1:
        raise ConfigError(f"select(budget={budget}): must be above 0 and at most 1, a share of the pool")
    if not 0 < top_p <= 1:
        raise ConfigError(f"select(top_p={top_p}): must be above 0 and at most 1, a share of the pool")
    if not 0 <= cold_start <= 1:
        raise ConfigError(f"select(cold_start={cold_start}): must be between 0 and 1, a share of a cluster")
    if budget < cold_start:
        raise ConfigError(
            f"select(budget={budget}, cold_start={cold_start}): the budget includes the cold start;"
            " raise budget or lower cold_start"
        )
    if budget < top_p:
        raise ConfigError(
            f"select(budget={budget}, top_p={top_p}): only drawn rows are kept; raise budget or lower top_p"
        )
    if draw_batch < 1:
        raise ConfigError(f"select(draw_batch={draw_batch}): must be at least 1 row a draw")
    if draw_batch_arms not in ("one", "many"):
        raise ConfigError(f"select(draw_batch_arms={draw_batch_arms!r}): must be 'one' or 'many'")
    if seed < 0:
        raise ConfigError(f"select(seed={seed}): must be 0 or more")


def check_counts(
    n: int,
    first: Mapping[int, int],
    spend: int,
    keep: int,
    *,
    budget: float,
    cold_start: float,
    top_p: float,
) -> None:
    """ConfigError where the shares of `n` rows leave nothing to keep, or no room for the cold start."""
    if keep == 0:
        raise ConfigError(
            f"select(top_p={top_p}): is less than one of {n} rows; the smallest top_p is {smallest_share(n)}"
        )
    if (cold := sum(first.values())) > spend:
        raise ConfigError(
            f"select(budget={budget}): is {spend} of {n} rows, but the cold start takes {cold}:"
            f" cold_start={cold_start} of each of k={len(first)} clusters, at least 1;"
            " raise budget or lower k"
        )
