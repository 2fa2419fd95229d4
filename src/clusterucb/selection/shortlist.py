"""The best open arm, without scoring all of them for every draw.

Knows arms and a policy, nothing of rows. A draw changes the statistics of one arm, and of the world only
what few policies look at. So the policy scores a shortlist: of the arms whose ceilings are highest, while
the best of them is above the ceilings of all others. Then all arms are scored, and a new list is made.
What decides is the policy's own formula on the same numbers, so the arm is the one it would choose of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ConfigError
from clusterucb.selection.arms import Arms

if TYPE_CHECKING:
    from clusterucb.selection.policies import Policy

SIZE = 256  # arms of a list: a numpy call on fewer is hardly faster
ALL = 512  # so many arms are scored all
HORIZON = 128  # draws that a ceiling should outlast: a longer one is looser


@dataclass(frozen=True, eq=False)
class Ceiling:
    """What the open arms' scores cannot exceed until the arm is drawn.

    `above` is asked before each choice: ids of the arms of which this is no longer true, those that may
    have the given score or more, or None if that may be any arm.
    """

    scores: NDArray[np.float64]  # float[open]
    above: Callable[[float], Iterable[int] | None] = lambda _: ()


class Shortlist:
    """Chooses the open arm with the largest score, the first of equals, as `policy` scores `arms`."""

    def __init__(self, policy: Policy, arms: Arms) -> None:
        self._policy, self._arms = policy, arms
        self._ceiling: Callable[[Arms], Ceiling] | None = getattr(policy, "ceiling", None)
        self._above: Callable[[float], Iterable[int] | None]
        self._rest: tuple[float, int] | None = None  # the best of the arms not listed, by their ceilings

    def best(self) -> int:
        """Id of the best arm."""
        if self._rest is not None:
            above = self._above(self._rest[0])
            if above is not None and len(self._arms.ids):
                self._arms.show_also(above)
                best = self._choose()
                if best > self._rest:
                    return -best[1]
            self._arms.show_all()
        best = self._choose()
        self._rest = self._shorten(best)
        return -best[1]

    def _choose(self) -> tuple[float, int]:
        """Score and negated id of the best arm shown: of two such pairs, the larger is the better arm."""
        arms = self._arms
        scores = np.asarray(self._policy(arms))
        if scores.shape != arms.ids.shape:
            raise ConfigError(
                f"policy {self._policy!r}: returned shape {scores.shape}:"
                f" expected {arms.ids.shape}, one number an open arm"
            )
        at = scores.argmax()  # NaN counts as the largest
        score, arm = scores[at].item(), arms.ids[at].item()
        if score != score:
            raise ConfigError(f"policy {self._policy!r}: gave NaN for cluster {arm}: expected a number")
        return score, -arm

    def _shorten(self, best: tuple[float, int]) -> tuple[float, int] | None:
        """Show only the arms with the highest ceilings, where `best` is above the rest; say the rest's."""
        if self._ceiling is None or len(self._arms.ids) <= max(SIZE, ALL):
            return None
        ceiling = self._ceiling(self._arms)
        scores, split = ceiling.scores, len(self._arms.ids) - SIZE - 1
        near = np.flatnonzero(scores >= np.partition(scores, split)[split])
        near = near[np.argsort(-scores[near], kind="stable")]
        rest = near[SIZE]
        highest = (scores[rest].item(), -self._arms.ids[rest].item())
        if best <= highest:
            return None
        self._above = ceiling.above
        self._arms.show_only(np.sort(near[:SIZE]))
        return highest
