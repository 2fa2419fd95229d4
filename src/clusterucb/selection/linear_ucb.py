"""Selection row by row: what is thought of every row decides which rows' influence is computed.

The bandit of bandit.py takes the rows of a cluster to be alike. Here each row has an expectation of its own,
from what is known of it before it is drawn: a linear bandit with optimism (LinUCB: Li et al., WWW 2010, arXiv
1003.0146; Abbasi-Yadkori et al., NeurIPS 2011), drawn in rounds.

    influence_i = a + b estimate_i + <features_i, w> + c_cluster(i) + noise_i      (regression.py)
    score_i     = mean_i + beta * sqrt(variance_i + noise of cluster(i))

a and b are of the estimate's age: what an old one is worth is learnt from the draws. Where estimates and
features say nothing, mean and deviation of the clusters are left, and the score is that of `ucb_beta`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.errors import ConfigError
from clusterucb.selection.bandit import Draw, Influence, Selection
from clusterucb.selection.checks import check_counts, check_labels, check_scores
from clusterucb.selection.known import Known
from clusterucb.selection.regression import Posterior, Regression
from clusterucb.selection.share import share
from clusterucb.selection.top import top

__all__ = ["LinearUCB", "linear_ucb"]

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
PRIOR_DRAWS = 3  # a cluster's noise begins as if so many draws of it had had the noise of all


@dataclass(frozen=True)
class LinearUCB:
    """How rows are drawn.

    Attributes:
        beta: deviations above the mean.
        rounds: in how many equal parts the budget is drawn; what is thought of rows is renewed after each.
        uniform: share of the first part that is drawn uniformly, the rest being the rows of highest estimate.

    Raises:
        ConfigError: a value out of range.
    """

    beta: float = 1.0
    rounds: int = 10
    uniform: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ConfigError(f"LinearUCB(beta={self.beta}): must be a finite number, 0 or more")
        if self.rounds < 1:
            raise ConfigError(f"LinearUCB(rounds={self.rounds}): must be at least 1")
        if not 0 < self.uniform <= 1:
            raise ConfigError(f"LinearUCB(uniform={self.uniform}): must be above 0 and at most 1")


def linear_ucb(
    clusters: ArrayLike,
    known: Known,
    influence: Influence,
    how: LinearUCB = LinearUCB(),
    *,
    budget: float = 0.2,
    top_p: float = 0.05,
    seed: int = 0,
    on_draw: Callable[[Draw], None] | None = None,
) -> Selection:
    """Find the most influential rows of a pool while computing the influence of only a part of them.

    1. Draw rows of the highest estimate, and as many uniformly.
    2. Until `floor(budget * N)` rows are drawn: fit the model to all draws, draw the rows of highest score.
    3. The top `floor(top_p * N)` of all drawn rows, of equal scores the lower row first.

    Arguments, result and errors are those of `select`; `known` is of the same N rows.
    """
    labels, n = check_labels(clusters), len(known.estimate)
    if len(labels) != n:
        raise ConfigError(f"linear_ucb(clusters of {len(labels)} rows, known of {n}): must be the same rows")
    spend, keep = share(budget, n), share(top_p, n)
    check_counts(n, {}, spend, keep, budget=budget, cold_start=0.0, top_p=top_p)
    belief, rng = _Belief(labels, known), np.random.default_rng(seed)
    drawn, scores = np.empty(0, np.int64), np.empty(0)
    cold = step = 0
    for part in _parts(spend, how.rounds):
        rows = belief.best(part, how.beta) if len(drawn) else _first(known, part, how.uniform, rng)
        found = check_scores(influence(rows.copy()), rows)
        belief.see(rows, found)
        for draw in _draws(step, rows, found, labels, cold=not len(drawn)):
            step += 1
            if on_draw is not None:
                on_draw(draw)
        cold = cold or len(rows)
        drawn, scores = np.concatenate([drawn, rows]), np.concatenate([scores, found])
    in_pool_order = np.argsort(drawn)
    kept = in_pool_order[top(scores[in_pool_order], keep)]
    return Selection(
        rows=drawn[kept],
        scores=scores[kept],
        clusters=labels[drawn[kept]],
        drawn=drawn,
        drawn_scores=scores,
        drawn_clusters=labels[drawn],
        cold=cold,
    )


class _Belief:
    """What is thought of every row, by what is known of it and what was drawn."""

    def __init__(self, labels: Rows, known: Known) -> None:
        self._arms = np.unique(labels, return_inverse=True)[1].reshape(-1)
        self._regression = Regression(_columns(known), known.features, self._arms)
        self._open = np.ones(len(labels), bool)
        self._rows, self._scores = np.empty(0, np.int64), np.empty(0)

    def see(self, rows: Rows, scores: Scores) -> None:
        """Count draws."""
        self._open[rows] = False
        self._regression.see(rows, scores)
        self._rows = np.concatenate([self._rows, rows])
        self._scores = np.concatenate([self._scores, scores])

    def best(self, count: int, beta: float) -> Rows:
        """The open rows with the highest `mean + beta * deviation`, ascending.

        A row's deviation is computed only where its bound can bring the row among them.
        """
        posterior = self._regression.fit()
        mean = posterior.mean()
        noise = self._noise(posterior, mean)[self._arms]
        mean[~self._open] = -np.inf
        at_least = mean + beta * np.sqrt(noise)
        at_most = mean + beta * np.sqrt(noise + posterior.variance_bound())
        enough = np.partition(at_least, -count)[-count]
        near = np.flatnonzero((at_most >= enough) & self._open)
        scores = mean[near] + beta * np.sqrt(noise[near] + posterior.variance(near))
        return near[top(scores, count)]

    def _noise(self, posterior: Posterior, mean: Scores) -> Scores:
        """Variance of a row's own part in each cluster, (K,): of its draws, drawn towards that of all."""
        left = (self._scores - mean[self._rows]) ** 2
        arms, size = self._arms[self._rows], int(self._arms.max()) + 1
        sums, counts = np.bincount(arms, left, size), np.bincount(arms, minlength=size)
        return (sums + PRIOR_DRAWS * posterior.noise) / (counts + PRIOR_DRAWS)


def _columns(known: Known) -> Scores:
    """Level and slope of the estimates of each age, (N, 2 A)."""
    of_age = (known.age[:, None] == np.unique(known.age)).astype(np.float64)  # (N, A)
    return np.concatenate([of_age, of_age * known.estimate[:, None]], axis=1)


def _first(known: Known, count: int, uniform: float, rng: np.random.Generator) -> Rows:
    """Rows of the highest estimate, and a share drawn uniformly of all others, which shows what these are."""
    likely = max(0, count - math.ceil(uniform * count))
    best = top(known.estimate, likely) if likely else np.empty(0, np.int64)
    others = np.delete(np.arange(len(known.estimate)), best)
    return np.concatenate([best, rng.choice(others, count - likely, replace=False)])


def _parts(spend: int, rounds: int) -> list[int]:
    """`spend` rows in `rounds` parts as equal as can be, none empty."""
    ends = [spend * (i + 1) // rounds for i in range(rounds)]
    return [part for part in np.diff([0, *ends]).tolist() if part]


def _draws(step: int, rows: Rows, scores: Scores, labels: Rows, *, cold: bool) -> Iterator[Draw]:
    """The rows of one part as draws of their clusters, labels ascending."""
    for arm in np.unique(labels[rows]).tolist():
        own = labels[rows] == arm
        yield Draw(step, arm, rows[own], scores[own], cold)
        step += 1
