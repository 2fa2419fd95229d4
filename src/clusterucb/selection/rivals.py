"""The published rivals of a bandit: a few influences, drawn at once and uniformly, stand for all. numpy only.

    cluster_less   score_i = mean influence of the rows drawn of i's cluster         (DataFlex's cluster_less)
    landmarks      score_i = mean + k_i' (K + r I)^-1 (y - mean)  (Influence Distillation, arXiv 2505.19051)

DataFlex draws 4 of 64 rows a cluster, a budget of 6 %. Of landmarks y is the influence, K the inner products
of their features and k_i those with row i's; the ridge r is the one, of a grid, whose leave-one-out errors
are smallest. The top rows by score are kept, drawn or not: a landmark's score is its influence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clusterucb.selection.bandit import Draw, Influence, OnDraw, Rows, Scores, Selection
from clusterucb.selection.budget import Budget
from clusterucb.selection.checks import check_labels, check_scores, check_seed
from clusterucb.selection.known import Known
from clusterucb.selection.share import top

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""r, over the mean square length of the landmarks' features."""


@dataclass(frozen=True)
class Rival:
    """What rivals share: one draw of the whole budget, and then the top of all rows by what it tells."""

    def select(
        self,
        clusters: Rows,
        known: Known | None,
        influence: Influence,
        *,
        budget: float = 0.2,
        top_p: float = 0.05,
        seed: int = 0,
        on_draw: OnDraw | None = None,
    ) -> Selection:
        """As `linear_ucb` has it."""
        labels, shares = check_labels(clusters), Budget(budget, top_p=top_p, by_row=True)
        check_seed(seed)
        rng = np.random.default_rng(seed)
        drawn = self._drawn(labels, shares.spend(len(labels)), rng)
        scores = check_scores(influence(drawn.copy()), drawn)
        if on_draw is not None:
            for step, arm in enumerate(np.unique(labels[drawn]).tolist()):
                own = labels[drawn] == arm
                on_draw(Draw(step, arm, drawn[own], scores[own], True))
        told = self._told(labels, known, drawn, scores)
        shuffled = rng.permutation(len(labels))  # so that of equal scores no source comes first
        rows = np.sort(shuffled[top(told[shuffled], shares.keep(len(labels)))])
        cold = len(drawn)
        return Selection(rows, told[rows], labels[rows], drawn, scores, labels[drawn], cold, learned=told)

    def _drawn(self, labels: Rows, count: int, rng: np.random.Generator) -> Rows:
        """Rows to draw, (count,)."""
        raise NotImplementedError

    def _told(self, labels: Rows, known: Known | None, drawn: Rows, scores: Scores) -> Scores:
        """The score of every row, (N,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class ClusterLess(Rival):
    """A few rows of each cluster, whose mean is every member's score."""

    def _drawn(self, labels: Rows, count: int, rng: np.random.Generator) -> Rows:
        shuffled = rng.permutation(len(labels))
        turn = np.empty(len(labels), np.int64)  # how many of its cluster come before a row
        for arm in np.unique(labels):
            own = np.flatnonzero(labels[shuffled] == arm)
            turn[own] = np.arange(len(own))
        return shuffled[np.argsort(turn, kind="stable")[:count]]

    def _told(self, labels: Rows, known: Known | None, drawn: Rows, scores: Scores) -> Scores:
        counts = np.bincount(labels[drawn], minlength=labels.max() + 1)
        means = np.bincount(labels[drawn], scores, len(counts)) / np.maximum(counts, 1)
        means[counts == 0] = scores.mean()
        told: Scores = means[labels]
        return told


@dataclass(frozen=True)
class Landmarks(Rival):
    """Rows drawn uniformly, and a kernel ridge regression from them to all others."""

    def _drawn(self, labels: Rows, count: int, rng: np.random.Generator) -> Rows:
        return rng.permutation(len(labels))[:count]

    def _told(self, labels: Rows, known: Known | None, drawn: Rows, scores: Scores) -> Scores:
        assert known is not None  # as it asks for features
        x = known.features[drawn].astype(np.float64)  # (n, D)
        values, vectors = np.linalg.eigh(x @ x.T)
        centred = vectors.T @ (scores - scores.mean())
        scale = max(float(values.mean()), np.finfo(np.float64).tiny)

        def left_out(ridge: float) -> float:
            """Mean square of the errors on each landmark by all others, as if the mean were known."""
            kept = 1 / (np.maximum(values, 0) + ridge * scale)
            inverse = vectors**2 @ kept
            return float(np.mean((vectors @ (kept * centred) / inverse) ** 2))

        weights = vectors @ (centred / (np.maximum(values, 0) + min(RIDGES, key=left_out) * scale))
        told: Scores = scores.mean() + known.features.astype(np.float64) @ (x.T @ weights)
        told[drawn] = scores
        return told
