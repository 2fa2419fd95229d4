"""The ways from influence to a selection, each a frozen value: under a budget, or by scoring all rows.

Call one with the influence of rows, a seed, and what is told of each draw. A budget of all rows is the full
method by definition, as no order of drawing can change what is kept: it then asks for all rows at once, and
so computes what the full method computes, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clusterucb.selection.bandit import Draw, DrawBatchArms, Influence, Selection, select
from clusterucb.selection.checks import check_scores
from clusterucb.selection.policies import Policy, UCBBeta
from clusterucb.selection.share import share
from clusterucb.selection.top import top

__all__ = ["ClusterUCB", "FullScoring", "Selector"]

OnDraw = Callable[[Draw], None]


class Selector(Protocol):
    """What turns the influence of rows into a selection."""

    @property
    def spend(self) -> int:
        """Rows whose influence is asked for."""

    def __call__(self, influence: Influence, seed: int = 0, on_draw: OnDraw | None = None) -> Selection:
        """Select; `on_draw` is told of each draw, where there are draws."""


@dataclass(frozen=True, eq=False)
class FullScoring:
    """Score all rows in one call and keep the top `floor(top_p * N)`, of equal scores the lower row first.

    Attributes:
        clusters: label of each row, to be told with the result, (N,); zeros where there are none.
        top_p: share of the rows that is kept.
    """

    clusters: NDArray[np.int64]
    top_p: float = 0.05

    @property
    def spend(self) -> int:
        """All N rows."""
        return len(self.clusters)

    def __call__(self, influence: Influence, seed: int = 0, on_draw: OnDraw | None = None) -> Selection:
        """The best rows of all; `drawn` is by falling score, and nothing depends on the seed."""
        every = np.arange(self.spend)
        scores = check_scores(influence(every.copy()), every)
        rows = top(scores, share(self.top_p, self.spend))
        order = np.argsort(-scores, kind="stable")
        return Selection(
            rows=rows,
            scores=scores[rows],
            clusters=self.clusters[rows],
            drawn=order,
            drawn_scores=scores[order],
            drawn_clusters=self.clusters[order],
            cold=0,
        )


@dataclass(frozen=True, eq=False)
class ClusterUCB:
    """Let the bandit decide whose influence is computed.

    Attributes:
        clusters: label of each row, (N,).
        policy, budget, cold_start, top_p, draw_batch, draw_batch_arms: as in `select`.
    """

    clusters: NDArray[np.int64]
    policy: Policy = UCBBeta()  # noqa: RUF009 - a frozen value
    budget: float = 0.2
    cold_start: float = 0.02
    top_p: float = 0.05
    draw_batch: int = 8
    draw_batch_arms: DrawBatchArms = "one"

    @property
    def spend(self) -> int:
        """The budget in rows."""
        return share(self.budget, len(self.clusters))

    def __call__(self, influence: Influence, seed: int = 0, on_draw: OnDraw | None = None) -> Selection:
        """What `select` selects, or `FullScoring` where the budget is all rows."""
        if self.spend == len(self.clusters):
            return FullScoring(self.clusters, self.top_p)(influence)
        return select(
            self.clusters,
            influence,
            self.policy,
            budget=self.budget,
            cold_start=self.cold_start,
            top_p=self.top_p,
            draw_batch=self.draw_batch,
            draw_batch_arms=self.draw_batch_arms,
            seed=seed,
            on_draw=on_draw,
        )
