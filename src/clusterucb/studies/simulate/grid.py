"""What a simulation tries: a value that is checked when it is made, before any store is read. numpy only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from clusterucb.errors import ConfigError
from clusterucb.selection.budget import Budget
from clusterucb.selection.checks import check_draws, check_seed
from clusterucb.selection.policies import Random


@dataclass(frozen=True)
class Grid:
    """Every combination is tried with every policy; the names are those of a run's settings.

    A seed decides draws and nothing else: the clusters of one k are the same for all seeds, so a spread
    over seeds is that of the draws alone.

    Attributes:
        budgets: shares of the pool whose influence may be looked at, cold start included.
        ks: numbers of clusters; None is the square root of the rows, at most half of the smallest budget.
        csps: cold starts, shares of every cluster.
        seeds: of the draws.
        top_p: the share of the pool that is selected.
        draw_batch: rows drawn at once.
        iterations, cluster_seed, centre: of k-means.

    Raises:
        ConfigError: a value out of range or at odds with another, or nothing to try.
    """

    budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8)
    ks: Sequence[int | None] = (None,)
    csps: Sequence[float] = (0.02,)
    seeds: Sequence[int] = tuple(range(10))
    top_p: float = 0.05
    draw_batch: int = 8
    iterations: int = 20
    cluster_seed: int = 0
    centre: bool = True

    def __post_init__(self) -> None:
        for name in ("budgets", "ks", "csps", "seeds"):
            values = getattr(self, name)
            if not len(values) or len(set(values)) < len(values):
                raise ConfigError(f"Grid({name}={list(values)}): must hold at least one value, none twice")
        for k in self.ks:
            if k is not None and k < 1:
                raise ConfigError(f"Grid(ks={list(self.ks)}): a number of clusters must be at least 1")
        for budget, csp in itertools.product(self.budgets, self.csps):
            Budget(budget, csp, self.top_p)
        check_draws(Random(), self.draw_batch, "one")
        for seed in self.seeds:
            check_seed(seed)
