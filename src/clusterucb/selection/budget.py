"""How much of a pool may be looked at and how much of it is kept: a value that refuses what cannot hold.

Its shares are checked when it is made, before a pool is known; what they are in rows, when that is asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from clusterucb.errors import ConfigError
from clusterucb.selection.share import share, smallest_share


@dataclass(frozen=True)
class Budget:
    """Shares of a pool of any number of rows.

    Attributes:
        budget: of the pool, whose influence may be computed, cold start included.
        cold_start: of every cluster, that is drawn first, at least one row of each: the paper's csp.
        top_p: of the pool, that is kept.
        by_row: rows are drawn by what is known of each, not by their clusters. There is no cold start then,
            and rows may be kept that were not drawn.

    Raises:
        ConfigError: a share is out of range, or above the budget that it is a part of.
    """

    budget: float = 0.2
    cold_start: float = 0.02
    top_p: float = 0.05
    by_row: bool = False

    def __post_init__(self) -> None:
        for name, value in (("budget", self.budget), ("top_p", self.top_p)):
            if not 0 < value <= 1:
                raise ConfigError(f"Budget({name}={value}): must be above 0 and at most 1, of the pool")
        if not 0 <= self.cold_start <= 1:
            raise ConfigError(
                f"Budget(cold_start={self.cold_start}): must be between 0 and 1, of every cluster (--csp)"
            )
        if self.by_row:
            return
        drawn = "the cold start is part of the budget; raise budget or lower cold_start (--csp)"
        kept = "only rows that were drawn can be kept; raise budget or lower top_p"
        for name, value, why in (("csp", self.cold_start, drawn), ("top_p", self.top_p, kept)):
            if self.budget < value:
                raise ConfigError(f"budget {self.budget} is below {name} {value}: {why}")

    def spend(self, rows: int) -> int:
        """How many of so many rows may be drawn, `floor(budget * rows)`; ConfigError where that is none."""
        return _at_least_one("budget", self.budget, "draws", rows)

    def keep(self, rows: int) -> int:
        """How many of so many rows are kept, `floor(top_p * rows)`; ConfigError where that is none."""
        return _at_least_one("top_p", self.top_p, "selects", rows)

    def cold_draws(self, sizes: Sequence[int]) -> list[int]:
        """Rows of the cold start in each cluster c, `max(1, floor(cold_start * |c|))`.

        None of a cluster without rows, and none at all by row. Raises ConfigError where the budget is less.
        """
        if self.by_row:
            return [0] * len(sizes)
        first = [max(1, share(self.cold_start, size)) if size else 0 for size in sizes]
        self._check_cold_start(sum(first), sum(map(bool, sizes)), sum(sizes))
        return first

    def check_clusters(self, k: int, rows: int) -> None:
        """Refuse so many clusters of so many rows, however large each will be.

        Raises ConfigError where there are fewer rows, or the budget has none of each cluster to draw.
        """
        if k > rows:
            raise ConfigError(f"k is {k}, but the pool has {rows} usable rows; lower k")
        if not self.by_row:
            self._check_cold_start(k, k, rows)

    def _check_cold_start(self, draws: int, k: int, rows: int) -> None:
        if draws > (spend := self.spend(rows)):
            raise ConfigError(
                f"budget {self.budget} is {spend} of {rows} rows, but the cold start takes {draws}: "
                f"{self.cold_start} (--csp) of each of k={k} clusters, at least 1; raise budget or lower k"
            )


def default_k(n: int, budget_rows: int) -> int:
    """`sqrt(n)` clusters, rounded; at most half the rows of the budget, as each costs a cold-start draw."""
    return max(1, min(round(math.sqrt(n)), budget_rows // 2))


def _at_least_one(name: str, value: float, does: str, rows: int) -> int:
    count = share(value, rows)
    if not count:
        least = smallest_share(max(rows, 1))
        raise ConfigError(f"{name} is {value}: {does} none of {rows} rows; raise it to {least}")
    return count
