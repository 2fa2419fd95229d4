"""Selection row by row: what is thought of every row decides which rows' influence is computed.

The bandit of bandit.py takes the rows of a cluster to be alike. Here each row has an expectation of its own,
from what is known of it before it is drawn: a linear bandit with optimism (LinUCB: Li et al., WWW 2010, arXiv
1003.0146; Abbasi-Yadkori et al., NeurIPS 2011), drawn in rounds.

    influence_i = a + b estimate_i + <features_i, w> + c_cluster(i) + noise_i      (regression.py)
    score_i     = mean_i + beta * sqrt(variance_i + noise of cluster(i))

a and b are of the estimate's age: what an old one is worth is learnt from the draws. Where estimates and
features say nothing, mean and deviation of the clusters are left, and the score is that of `ucb_beta`.
The rows kept are those of highest influence, known or expected: one that is sure enough need not be drawn.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from clusterucb.errors import ConfigError
from clusterucb.selection.bandit import Draw, Influence, OnDraw, Rows, Scores, Selection
from clusterucb.selection.budget import Budget
from clusterucb.selection.checks import check_labels, check_scores, check_seed
from clusterucb.selection.known import Known
from clusterucb.selection.regression import Regression
from clusterucb.selection.share import top

SURE = 6.0  # deviations beyond which a row is on its side for certain
PRIOR_DRAWS = 3  # a cluster's noise begins as if so many draws of it had had the noise of all


@dataclass(frozen=True)
class LinearUCB:
    """How rows are drawn.

    Attributes:
        beta: deviations above the mean.
        rounds: in how many parts the budget is drawn; what is thought of rows is renewed after each.
        first: share of the budget in the first part; the others are equal.
        uniform: share of the first part that is drawn from all clusters in turn, uniformly within each; the
            rest are the rows of highest estimate.
        stop: the share of the kept rows that scoring all rows may be expected to replace: once it is no more,
            no more rows are drawn. 0 draws all of the budget.

    Raises:
        ConfigError: a value out of range.
    """

    beta: float = 1.0
    rounds: int = 10
    first: float = 0.2
    uniform: float = 0.5
    stop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ConfigError(f"LinearUCB(beta={self.beta}): must be a finite number, 0 or more")
        if self.rounds < 1:
            raise ConfigError(f"LinearUCB(rounds={self.rounds}): must be at least 1")
        for name, value in (("first", self.first), ("uniform", self.uniform)):
            if not 0 < value <= 1:
                raise ConfigError(f"LinearUCB({name}={value}): must be above 0 and at most 1")
        if not 0 <= self.stop < 1:
            raise ConfigError(f"LinearUCB(stop={self.stop}): must be at least 0 and below 1")

    def select(
        self, clusters: ArrayLike, known: Known | None, influence: Influence, **settings: Any
    ) -> Selection:
        """What `linear_ucb` selects this way, with its settings."""
        assert known is not None  # as it asks for features
        return linear_ucb(clusters, known, influence, self, **settings)

    def parts(self, spend: int) -> list[int]:
        """`spend` rows in `rounds` parts, none empty."""
        first = max(1, min(spend, round(self.first * spend))) if self.rounds > 1 else spend
        ends = [first + (spend - first) * i // max(self.rounds - 1, 1) for i in range(self.rounds)]
        return [part for part in np.diff([0, *ends]).tolist() if part]


def linear_ucb(
    clusters: ArrayLike,
    known: Known,
    influence: Influence,
    how: LinearUCB = LinearUCB(),
    *,
    budget: float = 0.2,
    top_p: float = 0.05,
    seed: int = 0,
    on_draw: OnDraw | None = None,
) -> Selection:
    """Find the most influential rows of a pool while computing the influence of only a part of them.

    1. Draw the rows of highest estimate, and some uniformly from all clusters in turn.
    2. Until `floor(budget * N)` rows are drawn, or `how.stop` is reached: fit the model to all draws, draw
       the rows of highest score.
    3. The top `floor(top_p * N)` of all rows, by their influence where they were drawn and by what is
       expected of it where not; of equal ones the lower row first.

    Arguments, result and errors are those of `select`; `known` is of the same N rows, and the budget may be
    less than `top_p`.
    """
    labels, n = check_labels(clusters), len(known.estimate)
    if len(labels) != n:
        raise ConfigError(f"clusters of {len(labels)} rows, known of {n}: must be of the same rows")
    shares = Budget(budget, top_p=top_p, by_row=True)
    spend, keep = shares.spend(n), shares.keep(n)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    belief = _Belief(labels, known)
    count, *parts = how.parts(spend)
    first = _first(labels, known, count, math.ceil(how.uniform * count), rng)
    steps = itertools.count()

    def observe(rows: Rows, *, cold: bool = False) -> None:
        scores = check_scores(influence(rows.copy()), rows)
        if on_draw is not None:
            for arm in np.unique(labels[rows]).tolist():
                own = labels[rows] == arm
                on_draw(Draw(next(steps), arm, rows[own], scores[own], cold))
        belief.see(rows, scores)

    observe(first, cold=True)
    for part in parts:
        if how.stop and belief.change(keep) <= how.stop:
            break
        observe(belief.best(part, how.beta))
    expected = belief.expected()
    rows, drawn, cold = top(expected, keep), belief.rows, len(first)
    scores, change = expected[rows], belief.change(keep)
    return Selection(rows, scores, labels[rows], drawn, belief.scores, labels[drawn], cold, change, expected)


class _Belief:
    """What is thought of every row, by what is known of it and what was drawn."""

    def __init__(self, labels: Rows, known: Known) -> None:
        self._arms = np.unique(labels, return_inverse=True)[1].reshape(-1)
        self._regression = Regression(_columns(known), known.features, self._arms)
        self._open = np.ones(len(labels), bool)
        self.rows, self.scores = np.empty(0, np.int64), np.empty(0)  # drawn so far, in draw order

    def see(self, rows: Rows, scores: Scores) -> None:
        """Count draws, and think anew."""
        self._open[rows] = False
        self._regression.see(rows, scores)
        self.rows, self.scores = np.concatenate([self.rows, rows]), np.concatenate([self.scores, scores])
        self._posterior = self._regression.fit()
        self._mean = self._posterior.mean()
        self._noise = self._noise_of_arms()[self._arms]
        self._widest = np.sqrt(self._noise + self._posterior.variance_bound())  # at least the deviation

    def expected(self) -> Scores:
        """Influence of every row, where it was computed, or what is expected of it, (N,)."""
        expected: Scores = self._mean.copy()
        expected[self.rows] = self.scores
        return expected

    def best(self, count: int, beta: float) -> Rows:
        """The open rows with the highest `mean + beta * deviation`, ascending.

        A row's deviation is computed only where its bound can bring the row among them.
        """
        mean = np.where(self._open, self._mean, -np.inf)
        at_least = mean + beta * np.sqrt(self._noise)
        at_most = mean + beta * self._widest
        near = np.flatnonzero((at_most >= np.partition(at_least, -count)[-count]) & self._open)
        return near[top(mean[near] + beta * self._deviation(near), count)]

    def change(self, keep: int) -> float:
        """The share of the best `keep` rows that are expected to be others once all rows are scored.

        Chances are those of normal distributions; of those that would leave and of those that would come,
        whichever are more.
        """
        expected = self.expected()
        kept = top(expected, keep)
        last = expected[kept].min()
        near = np.flatnonzero(self._open & (np.abs(self._mean - last) < SURE * self._widest))
        passes = _normal((self._mean[near] - last) / self._deviation(near))  # chance to be above the last
        inside = np.isin(near, kept)
        return min(1.0, float(max((1 - passes[inside]).sum(), passes[~inside].sum())) / keep)

    def _deviation(self, rows: Rows) -> Scores:
        """Of the influence of some open rows, their own noise included, (n,)."""
        deviation: Scores = np.sqrt(self._noise[rows] + self._posterior.variance(rows))
        return deviation

    def _noise_of_arms(self) -> Scores:
        """Variance of a row's own part in each cluster, (K,): of its draws, drawn towards that of all."""
        left = (self.scores - self._mean[self.rows]) ** 2
        counts = self._regression.counts
        sums = np.bincount(self._arms[self.rows], left, len(counts))
        return (sums + PRIOR_DRAWS * self._posterior.noise) / (counts + PRIOR_DRAWS)


def _columns(known: Known) -> Scores:
    """Level and slope of the estimates of each age, (N, 2 A)."""
    of_age = (known.age[:, None] == np.unique(known.age)).astype(np.float64)  # (N, A)
    return np.concatenate([of_age, of_age * known.estimate[:, None]], axis=1)


def _first(labels: Rows, known: Known, count: int, uniform: int, rng: np.random.Generator) -> Rows:
    """Rows of the highest estimate and, of all others, `uniform` rows of every cluster in turn."""
    best = top(known.estimate, count - uniform) if uniform < count else np.empty(0, np.int64)
    others = rng.permutation(np.delete(np.arange(len(labels)), best))
    by_cluster = others[np.argsort(labels[others], kind="stable")]
    _, starts, sizes = np.unique(labels[by_cluster], return_index=True, return_counts=True)
    turn = np.arange(len(others)) - np.repeat(starts, sizes)  # how many of its cluster come before a row
    order = np.lexsort((rng.random(len(others)), turn))
    return np.concatenate([best, by_cluster[order[:uniform]]])


def _normal(z: Scores) -> Scores:
    """Phi(z), (n,)."""
    return np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z.tolist()])
