"""The ways from influence to a selection, each a value: under a budget, or by scoring all rows.

A budget of all rows is the full method by definition, as no order of drawing can change what is kept: it then
asks for all rows at once, and so computes what the full method computes, to the bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ConfigError
from clusterucb.selection.bandit import DrawBatchArms, Influence, OnDraw, Selection, select
from clusterucb.selection.budget import Budget
from clusterucb.selection.checks import check_scores
from clusterucb.selection.known import Known
from clusterucb.selection.linear_ucb import LinearUCB
from clusterucb.selection.policies import POLICIES, Policy, UCBBeta, policy
from clusterucb.selection.rivals import ClusterLess, Landmarks
from clusterucb.selection.share import top

RowPolicy = LinearUCB | ClusterLess | Landmarks
"""What draws and keeps row by row, by what is known of each."""
DrawOrder = Literal["uniform", "stale"]
Asks = Literal["nothing", "estimates", "features"]
"""What a selector is to be told of rows before they are drawn: features come with estimates."""


class Selector:
    """What turns the influence of rows into a selection.

    Attributes:
        clusters: label of each row, to be told with the result, (N,).
        spend: rows whose influence is asked for, at most.
        asks: what it wants to be told of the rows.
    """

    def __init__(self, clusters: NDArray[np.int64], budget: Budget, asks: Asks = "nothing") -> None:
        self.clusters = clusters
        self.spend, self._keep = budget.spend(len(clusters)), budget.keep(len(clusters))
        self.asks: Asks = asks if self.spend < len(clusters) else "nothing"

    def __call__(
        self, influence: Influence, seed: int = 0, on_draw: OnDraw | None = None, known: Known | None = None
    ) -> Selection:
        """Select; `on_draw` is told of each draw, where there are draws.

        Raises ConfigError where something is asked and nothing is known.
        """
        if self.spend == len(self.clusters):
            return self._score_all(influence)
        if known is None and self.asks != "nothing":
            raise ConfigError(
                f"{type(self).__name__}: needs {self.asks} of all rows; give what is known of them as `known`"
            )
        return self._draw(influence, known, seed=seed, on_draw=on_draw)

    def _score_all(self, influence: Influence) -> Selection:
        """The best rows of all; `drawn` is by falling score, of equal scores the lower row first."""
        every = np.arange(len(self.clusters))
        scores = check_scores(influence(every.copy()), every)
        rows, drawn, labels = top(scores, self._keep), np.argsort(-scores, kind="stable"), self.clusters
        return Selection(rows, scores[rows], labels[rows], drawn, scores[drawn], labels[drawn], cold=0)

    def _draw(self, influence: Influence, known: Known | None, **run: Any) -> Selection:
        raise NotImplementedError


class FullScoring(Selector):
    """Score all rows in one call and keep the top `floor(top_p * N)`, of equal scores the lower row first.

    `clusters` is the label of each row, (N,), zeros where there are none. Raises ConfigError where `top_p` is
    out of range, or none of the rows.
    """

    def __init__(self, clusters: NDArray[np.int64], top_p: float = Budget.top_p) -> None:
        super().__init__(clusters, Budget(1.0, top_p=top_p))


class ClusterUCB(Selector):
    """Let the bandit decide whose influence is computed: what `select` selects, with the same settings.

    `clusters` is the label of each row, (N,). `draw_order` is that of the rows of a cluster: `uniform` or, by
    the estimates that are known, `stale`. Raises ConfigError where a share is out of range or at odds with
    another.
    """

    def __init__(
        self,
        clusters: NDArray[np.int64],
        policy: Policy = UCBBeta(),  # noqa: B008 - a frozen value
        budget: float = Budget.budget,
        cold_start: float = Budget.cold_start,
        top_p: float = Budget.top_p,
        draw_batch: int = 8,
        draw_batch_arms: DrawBatchArms = "one",
        draw_order: DrawOrder = "uniform",
    ) -> None:
        asks: Asks = "estimates" if draw_order == "stale" else "nothing"
        super().__init__(clusters, Budget(budget, cold_start, top_p), asks)
        self._select = partial(
            select,
            clusters,
            policy=policy,
            budget=budget,
            cold_start=cold_start,
            top_p=top_p,
            draw_batch=draw_batch,
            draw_batch_arms=draw_batch_arms,
        )

    def _draw(self, influence: Influence, known: Known | None, **run: Any) -> Selection:
        estimate = known.estimate if known is not None and self.asks == "estimates" else None
        return self._select(influence, estimate=estimate, **run)


class RowUCB(Selector):
    """Let what is known of each row decide whose influence is computed: what a policy over rows selects.

    `clusters` is the label of each row, (N,). Raises ConfigError where a share is out of range.
    """

    def __init__(
        self,
        clusters: NDArray[np.int64],
        policy: RowPolicy = LinearUCB(),  # noqa: B008 - a frozen value
        budget: float = Budget.budget,
        top_p: float = Budget.top_p,
    ) -> None:
        asks: Asks = "nothing" if isinstance(policy, ClusterLess) else "features"
        super().__init__(clusters, Budget(budget, top_p=top_p, by_row=True), asks)
        self._select = partial(policy.select, clusters, budget=budget, top_p=top_p)

    def _draw(self, influence: Influence, known: Known | None, **run: Any) -> Selection:
        return self._select(known, influence, **run)


def named_policy(
    name: str, *, beta: float = 1.0, ucb_p: float = 0.25, rounds: int = 10, stop: float = 0.0
) -> Policy | RowPolicy:
    """The policy of that name, over clusters or over rows; options that it does not have are not read.

    Raises ConfigError for an unknown name, and for an option out of range.
    """
    match name:
        case "linear_ucb":
            return LinearUCB(beta, rounds, stop=stop)
        case "cluster_less":
            return ClusterLess()
        case "landmarks":
            return Landmarks()
    return policy(name, beta=beta, ucb_p=ucb_p, names=(*POLICIES, "linear_ucb", "cluster_less", "landmarks"))
