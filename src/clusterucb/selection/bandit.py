"""ClusterUCB, one re-selection: a bandit over clusters decides which rows' influence is worth computing.

Wang et al., Findings of EMNLP 2025, arXiv 2506.10288. Knows neither models nor gradients: the influence
of rows comes from a function, be it a live model, a store on disk or another machine. Which arm is drawn
is the policy's choice; which of its rows, the deck's: in random order as published, or by an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.selection.arms import Arms
from clusterucb.selection.checks import (
    check_counts,
    check_estimate,
    check_labels,
    check_scores,
    check_settings,
)
from clusterucb.selection.policies import Policy, UCBBeta
from clusterucb.selection.share import cold_draws, share, top
from clusterucb.selection.shortlist import Shortlist

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
Influence = Callable[[Rows], Scores]
DrawBatchArms = Literal["one", "many"]


@dataclass(frozen=True, eq=False)
class Draw:
    """Rows drawn from one arm in one step."""

    step: int  # from 0, cold-start draws included
    arm: int  # cluster label
    rows: Rows  # int64[b]
    scores: Scores  # float64[b], their influence
    cold: bool  # drawn in the cold start


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows kept, and all that was drawn to find them."""

    rows: Rows  # int64[kept], in pool order
    scores: Scores  # float64[kept], influence of `rows`; what is expected of it where a row was not drawn
    clusters: NDArray[np.int64]  # int64[kept], cluster of `rows`
    drawn: Rows  # int64[spent], in draw order, no row twice
    drawn_scores: Scores  # float64[spent]
    drawn_clusters: NDArray[np.int64]  # int64[spent]
    cold: int  # how many of the first draws were the cold start
    expected_change: float | None = None  # share of `rows` that scoring all would replace, if estimated

    @property
    def spent(self) -> int:
        """Rows whose influence was computed, cold start included."""
        return len(self.drawn)

    @property
    def threshold(self) -> float:
        """The smallest influence that was kept."""
        return float(self.scores.min())


def select(
    clusters: ArrayLike,
    influence: Influence,
    policy: Policy = UCBBeta(),  # noqa: B008 - a frozen value
    *,
    budget: float = 0.2,
    cold_start: float = 0.02,
    top_p: float = 0.05,
    draw_batch: int = 8,
    draw_batch_arms: DrawBatchArms = "one",
    estimate: ArrayLike | None = None,
    seed: int = 0,
    on_draw: Callable[[Draw], None] | None = None,
) -> Selection:
    """Find the most influential rows of a pool while computing the influence of only a part of them.

    1. Cold start: `max(1, floor(cold_start * |c|))` rows of each cluster c, in one call of `influence`.
    2. Until `floor(budget * N)` rows are drawn: `draw_batch` unseen rows of the arm that the policy likes
       best, fewer where the arm or the budget holds fewer. With `draw_batch_arms="many"`, `draw_batch` rows
       of the arms that it would like best one after the other if each draw scored the mean of its arm.
    3. The top `floor(top_p * N)` of all drawn rows, of equal scores the lower row first.

    `clusters`: int[N], the label of each row, not negative, gaps allowed. `influence`: int64[b] rows ->
    float[b], any finite unit. `budget`, `cold_start`, `top_p`: fractions of N, of a cluster and of N.
    `estimate`: float[N], what each row's influence is thought to be; the rows of an arm, those of the cold
    start too, are then drawn in falling order of it instead of uniformly. `on_draw` is told of each draw once
    it is counted. The same arguments give the same result.

    Raises ConfigError for an argument out of range or at odds with another, InputError for an influence
    of another shape or not finite.
    """
    labels = check_labels(clusters)
    check_settings(policy, budget, cold_start, top_p, draw_batch, draw_batch_arms, seed)
    rng = np.random.default_rng(seed)
    decks = _decks(labels, rng, check_estimate(estimate, len(labels)))
    first = {arm: cold_draws(cold_start, len(deck.rows)) for arm, deck in decks.items()}
    spend, keep = share(budget, len(labels)), share(top_p, len(labels))
    check_counts(len(labels), first, spend, keep, budget=budget, cold_start=cold_start, top_p=top_p)

    arms = Arms({arm: len(deck.rows) for arm, deck in decks.items()}, rng)
    drawn = np.empty(spend, dtype=np.int64)
    step = spent = 0

    def observe(batch: Mapping[int, Rows], *, cold: bool = False) -> None:
        nonlocal step, spent
        start = spent
        for rows in batch.values():
            drawn[spent : spent + len(rows)] = rows
            spent += len(rows)
        asked = drawn[start:spent].copy()  # whatever is done to it, the draws stay
        scores = check_scores(influence(asked), asked)
        for arm, rows in batch.items():
            own, scores = scores[: len(rows)], scores[len(rows) :]
            arms.record(arm, own)
            if on_draw is not None:
                on_draw(Draw(step, arm, rows, own, cold))
            step += 1

    observe({arm: deck.draw(first[arm]) for arm, deck in decks.items()}, cold=True)
    best = Shortlist(policy, arms).best
    while spent < spend:
        count = min(draw_batch, spend - spent)
        picks = {best(): count} if draw_batch_arms == "one" else _picks(best, arms, count)
        observe({arm: decks[arm].draw(count) for arm, count in picks.items()})

    drawn_clusters, drawn_scores = arms.history()
    in_pool_order = np.argsort(drawn)
    kept = in_pool_order[top(drawn_scores[in_pool_order], keep)]
    return Selection(
        rows=drawn[kept],
        scores=drawn_scores[kept],
        clusters=drawn_clusters[kept],
        drawn=drawn,
        drawn_scores=drawn_scores,
        drawn_clusters=drawn_clusters,
        cold=sum(first.values()),
    )


def _picks(best: Callable[[], int], arms: Arms, count: int) -> dict[int, int]:
    """Arm -> rows to draw from it, `count` in all: the best arms as if each draw had scored its arm's mean.

    That changes no mean but makes the arm surer, so arms share a batch, as Gaussian processes' points do in
    Desautels, Krause and Burdick, JMLR 15 (2014).
    """
    picks: dict[int, int] = {}
    for _ in range(count):
        arm = best()
        arms.imagine(arm)
        picks[arm] = picks.get(arm, 0) + 1
    return picks


class _Deck:
    """The rows of one arm in the order in which they are drawn."""

    __slots__ = ("_next", "rows")

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._next = 0

    def draw(self, count: int) -> Rows:
        """The next `count` rows, or the fewer that are left."""
        rows = self.rows[self._next : self._next + count]
        self._next += len(rows)
        return rows


def _decks(labels: NDArray[np.int64], rng: np.random.Generator, estimate: Scores | None) -> dict[int, _Deck]:
    """Cluster label -> its rows, labels ascending: in random order, or by falling estimate, equals shuffled.

    Drawing from the front of a uniform permutation equals drawing uniformly without replacement: given
    the rows drawn so far, each order of the others is equally likely, and how much is drawn from an arm
    depends on drawn rows only. One permutation of the pool, restricted to a cluster, is a uniform one of
    that cluster, independent of the others'.
    """
    order = rng.permutation(len(labels)).astype(np.int64, copy=False)
    if estimate is not None:
        order = order[np.argsort(-estimate[order], kind="stable")]
    labels = labels.astype(np.min_scalar_type(labels.max()))  # two bytes or fewer are sorted in O(N)
    order = order[np.argsort(labels[order], kind="stable")]
    order.flags.writeable = False  # every draw is a slice of it
    labels = labels[order]
    starts = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    ids = labels[[0, *starts.tolist()]].tolist()
    return {arm: _Deck(rows) for arm, rows in zip(ids, np.split(order, starts.tolist()), strict=True)}
