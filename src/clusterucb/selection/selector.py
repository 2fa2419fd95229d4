"""The ways from influence to a selection, each a frozen value: under a budget, or by scoring all rows.

Call one with the influence of rows, a seed, and what is told of each draw. A budget of all rows is the full
method by definition, as no order of drawing can change what is kept: it then asks for all rows at once, and
so computes what the full method computes, to the bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ConfigError
from clusterucb.selection.bandit import Draw, DrawBatchArms, Influence, Selection, select
from clusterucb.selection.checks import check_scores
from clusterucb.selection.known import Known
from clusterucb.selection.linear_ucb import LinearUCB, linear_ucb
from clusterucb.selection.policies import POLICIES, Policy, UCBBeta, policy
from clusterucb.selection.share import share, top

OnDraw = Callable[[Draw], None]
DrawOrder = Literal["uniform", "stale"]
Asks = Literal["nothing", "estimates", "features"]
"""What a selector is to be told of rows before they are drawn: features come with estimates."""


class Selector(Protocol):
    """What turns the influence of rows into a selection."""

    @property
    def spend(self) -> int:
        """Rows whose influence is asked for."""

    @property
    def asks(self) -> Asks:
        """What it wants to be told of the rows."""

    def __call__(
        self,
        influence: Influence,
        seed: int = 0,
        on_draw: OnDraw | None = None,
        known: Known | None = None,
    ) -> Selection:
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

    @property
    def asks(self) -> Asks:
        """Nothing: it will know."""
        return "nothing"

    def __call__(
        self,
        influence: Influence,
        seed: int = 0,
        on_draw: OnDraw | None = None,
        known: Known | None = None,
    ) -> Selection:
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


class _Budgeted(ABC):
    """What selects under a budget; one of all rows is `FullScoring`."""

    clusters: NDArray[np.int64]
    budget: float
    top_p: float

    @property
    def spend(self) -> int:
        """The budget in rows."""
        return share(self.budget, len(self.clusters))

    @property
    def asks(self) -> Asks:
        """What it wants to be told of the rows; nothing, if all are scored."""
        return self._asks if self.spend < len(self.clusters) else "nothing"

    def __call__(
        self,
        influence: Influence,
        seed: int = 0,
        on_draw: OnDraw | None = None,
        known: Known | None = None,
    ) -> Selection:
        """Select; `on_draw` is told of each draw.

        Raises ConfigError where something is asked and nothing is known.
        """
        if self.spend == len(self.clusters):
            return FullScoring(self.clusters, self.top_p)(influence)
        return self._select(influence, seed, on_draw, known)

    @property
    @abstractmethod
    def _asks(self) -> Asks: ...

    @abstractmethod
    def _select(
        self, influence: Influence, seed: int, on_draw: OnDraw | None, known: Known | None
    ) -> Selection: ...


@dataclass(frozen=True, eq=False)
class ClusterUCB(_Budgeted):
    """Let the bandit decide whose influence is computed: what `select` selects.

    Attributes:
        clusters: label of each row, (N,).
        policy, budget, cold_start, top_p, draw_batch, draw_batch_arms: as in `select`.
        draw_order: of the rows of a cluster, `uniform` or, by the estimates that are known, `stale`.
    """

    clusters: NDArray[np.int64]
    policy: Policy = UCBBeta()  # noqa: RUF009 - a frozen value
    budget: float = 0.2
    cold_start: float = 0.02
    top_p: float = 0.05
    draw_batch: int = 8
    draw_batch_arms: DrawBatchArms = "one"
    draw_order: DrawOrder = "uniform"

    @property
    def _asks(self) -> Asks:
        return "estimates" if self.draw_order == "stale" else "nothing"

    def _select(
        self, influence: Influence, seed: int, on_draw: OnDraw | None, known: Known | None
    ) -> Selection:
        return select(
            self.clusters,
            influence,
            self.policy,
            budget=self.budget,
            cold_start=self.cold_start,
            top_p=self.top_p,
            draw_batch=self.draw_batch,
            draw_batch_arms=self.draw_batch_arms,
            estimate=_needed(known, "draw_order='stale'").estimate if self.draw_order == "stale" else None,
            seed=seed,
            on_draw=on_draw,
        )


@dataclass(frozen=True, eq=False)
class RowUCB(_Budgeted):
    """Let what is known of each row decide whose influence is computed: what `linear_ucb` selects.

    Attributes:
        clusters: label of each row, (N,).
        policy, budget, top_p: as in `linear_ucb`.
    """

    clusters: NDArray[np.int64]
    policy: LinearUCB = LinearUCB()  # noqa: RUF009 - a frozen value
    budget: float = 0.2
    top_p: float = 0.05

    @property
    def _asks(self) -> Asks:
        return "features"

    def _select(
        self, influence: Influence, seed: int, on_draw: OnDraw | None, known: Known | None
    ) -> Selection:
        return linear_ucb(
            self.clusters,
            _needed(known, f"{self.policy}"),
            influence,
            self.policy,
            budget=self.budget,
            top_p=self.top_p,
            seed=seed,
            on_draw=on_draw,
        )


def named_policy(
    name: str, *, beta: float = 1.0, ucb_p: float = 0.25, rounds: int = 10, stop: float = 0.0
) -> Policy | LinearUCB:
    """The policy of that name, over clusters or over rows; options that it does not have are not read.

    Raises ConfigError for an unknown name, and for an option out of range.
    """
    if name == "linear_ucb":
        return LinearUCB(beta, rounds, stop=stop)
    return policy(name, beta=beta, ucb_p=ucb_p, names=(*POLICIES, "linear_ucb"))


def _needed(known: Known | None, why: str) -> Known:
    if known is None:
        raise ConfigError(f"{why}: needs what is known of the rows; give it as `known`")
    return known
