"""ClusterUCB, one re-selection: a bandit over clusters decides which rows' influence is worth computing.

Wang et al., Findings of EMNLP 2025, arXiv 2506.10288. Knows neither models nor gradients: the influence
of rows comes from a function, be it a live model, a store on disk or another machine. Which arm is drawn
is the policy's choice; which of its rows, the deck's: in random order as published, or by an estimate.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.errors import ConfigError
from clusterucb.selection.arms import Arms
from clusterucb.selection.budget import Budget
from clusterucb.selection.checks import check_draws, check_labels, check_scores, check_seed
from clusterucb.selection.policies import Policy, UCBBeta
from clusterucb.selection.share import top

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


OnDraw = Callable[[Draw], None]


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
    learned: Scores | None = None  # float64[N], influence of all rows, known or expected, if it is
    targets: Sequence[str] = ()  # the task that took each of `rows`, where several are kept apart

    @property
    def spent(self) -> int:
        """Rows whose influence was computed, cold start included."""
        return len(self.drawn)

    @property
    def undrawn(self) -> Selection:
        """The same, by what was known of all rows without drawing one."""
        drawn, scores, clusters = self.drawn[:0], self.drawn_scores[:0], self.drawn_clusters[:0]
        return replace(self, drawn=drawn, drawn_scores=scores, drawn_clusters=clusters)

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
    on_draw: OnDraw | None = None,
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

    Raises ConfigError for an argument out of range or at odds with another, InputError for an influence or
    estimate of another shape or not finite.
    """
    labels, shares = check_labels(clusters), Budget(budget, cold_start, top_p)
    check_draws(policy, draw_batch, draw_batch_arms)
    check_seed(seed)
    n, rng = len(labels), np.random.default_rng(seed)
    decks = _decks(labels, rng, estimate)
    sizes = {arm: len(deck) for arm, deck in decks.items()}
    first = dict(zip(sizes, shares.cold_draws(list(sizes.values())), strict=True))
    spend, keep = shares.spend(n), shares.keep(n)
    drawn, drawn_scores = np.empty(spend, np.int64), np.empty(spend)
    arms, steps = Arms(sizes, rng), itertools.count()

    def draw(picks: Mapping[int, int], *, cold: bool = False) -> None:
        """Rows to draw of each arm, or the fewer that it has, in one call of the influence."""
        batch = {arm: decks[arm][:most] for arm, most in picks.items()}
        asked = np.concatenate(list(batch.values()))
        scores = check_scores(influence(asked.copy()), asked)  # whatever is done to the copy, the draws stay
        now = slice(arms.total, arms.total + len(asked))
        drawn[now], drawn_scores[now] = asked, scores
        for arm, rows in batch.items():
            own, scores = scores[: len(rows)], scores[len(rows) :]
            decks[arm] = decks[arm][len(rows) :]
            arms.record(arm, own)
            if on_draw is not None:
                on_draw(Draw(next(steps), arm, rows, own, cold))

    draw(first, cold=True)
    cold = arms.total
    while (left := spend - arms.total) > 0:
        batch = min(draw_batch, left)
        draw({_best(policy, arms): batch} if draw_batch_arms == "one" else _best_many(policy, arms, batch))
    in_pool_order = np.argsort(drawn)
    kept = in_pool_order[top(drawn_scores[in_pool_order], keep)]
    rows, scores = drawn[kept], drawn_scores[kept]
    return Selection(rows, scores, labels[rows], drawn, drawn_scores, labels[drawn], cold)


def _best(policy: Policy, arms: Arms) -> int:
    """The open arm with the largest score, of equal ones the first in id order."""
    scores = np.asarray(policy(arms))
    if scores.shape != arms.ids.shape:
        raise ConfigError(
            f"policy {policy!r}: returned shape {scores.shape}:"
            f" expected {arms.ids.shape}, one number an open arm"
        )
    at = scores.argmax()  # NaN counts as the largest
    if np.isnan(scores[at]):
        raise ConfigError(f"policy {policy!r}: gave NaN for cluster {arms.ids[at]}: expected a number")
    return int(arms.ids[at])


def _best_many(policy: Policy, arms: Arms, draws: int) -> dict[int, int]:
    """Arm -> rows to draw from it, `draws` in all: the best arms as if each draw had scored its arm's mean.

    That changes no mean but makes the arm surer, so arms share a batch, as Gaussian processes' points do in
    Desautels, Krause and Burdick, JMLR 15 (2014).
    """
    imagined, picks = arms.copy(), Counter[int]()
    for _ in range(draws):
        arm = _best(policy, imagined)
        imagined.imagine(arm)
        picks[arm] += 1
    return picks


def _decks(
    labels: NDArray[np.int64], rng: np.random.Generator, estimate: ArrayLike | None
) -> dict[int, Rows]:
    """Cluster label -> its rows, labels ascending: in random order, or by falling estimate, equals shuffled.

    Drawing from the front of a uniform permutation equals drawing uniformly without replacement: given
    the rows drawn so far, each order of the others is equally likely, and how much is drawn from an arm
    depends on drawn rows only. One permutation of the pool, restricted to a cluster, is a uniform one of
    that cluster, independent of the others'.
    """
    order = rng.permutation(len(labels)).astype(np.int64, copy=False)
    if estimate is not None:
        estimate = check_scores(estimate, np.arange(len(labels)), "estimate")
        order = order[np.argsort(-estimate[order], kind="stable")]
    labels = labels.astype(np.min_scalar_type(labels.max()))  # two bytes or fewer are sorted in O(N)
    order = order[np.argsort(labels[order], kind="stable")]
    order.flags.writeable = False  # every draw is a slice of it
    ids, starts = np.unique(labels[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:].tolist()), strict=True))
