"""The published policies: each scores the open arms, and the best arm is drawn next.

A policy is any function from `Arms` to one number an open arm, the larger the better; of equal arms the
first in id order is drawn. Formulas: ClusterUCB (Wang et al., Findings of EMNLP 2025, arXiv 2506.10288).
An arm without a draw comes first, except with `Random`.

A policy may have a ceiling: what the score of an arm cannot exceed while others are drawn. Then not every
arm is scored for every draw (shortlist.py), and the arms drawn are the same.
"""

# ruff: noqa: D102  (a policy has its formula in the docstring of its class)

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ConfigError
from clusterucb.selection.arms import Arms
from clusterucb.selection.shortlist import HORIZON, Ceiling

Scores = NDArray[np.float64]
Policy = Callable[[Arms], Scores]

POLICIES = ("ucb_beta", "ucb1", "ucb_threshhard", "ucb_threshnormal", "random")
STD_FLOOR = 1e-12  # keeps the division defined for an arm of equal draws, and changes no other arm


@dataclass(frozen=True)
class UCBBeta:
    """`mean + beta * std`, std of the population: the default."""

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ConfigError(f"UCBBeta(beta={self.beta}): must be a finite number, 0 or more")

    def __call__(self, arms: Arms) -> Scores:
        return _undrawn_first(arms, arms.mean + self.beta * arms.std)

    def ceiling(self, arms: Arms) -> Ceiling:
        """The score itself: it changes with draws of the arm only."""
        return Ceiling(self(arms))


@dataclass(frozen=True)
class UCB1:
    """`mean + sqrt(2 ln T / n)`, T the draws of all arms (Auer, Cesa-Bianchi and Fischer, 2002)."""

    def __call__(self, arms: Arms) -> Scores:
        return self._at(arms, arms.total)

    def ceiling(self, arms: Arms) -> Ceiling:
        """The score some draws from now, as it rises with T."""
        last = arms.total + HORIZON
        return Ceiling(self._at(arms, last), lambda _: () if arms.total <= last else None)

    def _at(self, arms: Arms, total: int) -> Scores:
        n = np.maximum(arms.n, 1) if arms.undrawn else arms.n
        return _undrawn_first(arms, arms.mean + np.sqrt(2 * math.log(max(total, 1)) / n))


@dataclass(frozen=True)
class UCBThreshHard:
    """The fraction of the arm's draws >= tau, the top-`ucb_p` quantile of all draws so far.

    Where the fraction of every open arm is zero: the arm's largest single draw.
    """

    ucb_p: float = 0.25

    def __post_init__(self) -> None:
        _check_ucb_p(self, self.ucb_p)

    def __call__(self, arms: Arms) -> Scores:
        reached = arms.share_above(self.ucb_p)
        return _undrawn_first(arms, reached if np.count_nonzero(reached) else arms.largest)

    def ceiling(self, arms: Arms) -> Ceiling:
        """The score itself: without a draw of the arm, it rises only where tau sinks to earlier ones."""
        some_reached = np.count_nonzero(arms.reach(self.ucb_p))

        def above(score: float) -> list[int] | None:
            if some_reached and not np.count_nonzero(arms.reach(self.ucb_p)):
                return None  # the policy would compare largest draws now
            return arms.passed(self.ucb_p, score if some_reached else 0.0)

        return Ceiling(self(arms), above)


@dataclass(frozen=True)
class UCBThreshNormal:
    """The chance `1 - Phi(z)` of a draw above tau, `z = (tau - mean) / std`, if the arm's draws were normal.

    Returned is `-z`. `1 - Phi` falls strictly with z, so both order the arms alike; but in floats it is
    exactly 0 or 1 for any z beyond 38 or below -8, where `-z` still tells arms apart. The std of an arm
    of equal draws, such as a single one, is taken as `STD_FLOOR`.
    """

    ucb_p: float = 0.25

    def __post_init__(self) -> None:
        _check_ucb_p(self, self.ucb_p)

    def __call__(self, arms: Arms) -> Scores:
        return self._at(arms, arms.threshold(self.ucb_p))

    def ceiling(self, arms: Arms) -> Ceiling:
        """The score at a tau as low as some draws hardly bring it: a draw moves it by a deviation over T."""
        tau = arms.threshold(self.ucb_p)
        lowest = tau - (arms.mean.std() + arms.std.mean()) * HORIZON / arms.total
        return Ceiling(self._at(arms, lowest), lambda _: () if arms.threshold(self.ucb_p) >= lowest else None)

    def _at(self, arms: Arms, tau: float) -> Scores:
        return _undrawn_first(arms, (arms.mean - tau) / np.maximum(arms.std, STD_FLOOR))


@dataclass(frozen=True)
class Random:
    """Uniform over the open arms, however many rows each still has."""

    def __call__(self, arms: Arms) -> Scores:
        scores = np.zeros(len(arms.ids))
        scores[arms.rng.integers(len(scores))] = 1
        return scores


def policy(name: str, *, beta: float = 1.0, ucb_p: float = 0.25, names: Sequence[str] = POLICIES) -> Policy:
    """The published policy of that name, one of `POLICIES`; options that it does not have are not read.

    Raises ConfigError for an unknown name, which says that it must be one of `names`, and for an option out
    of range.
    """
    match name:
        case "ucb_beta":
            return UCBBeta(beta)
        case "ucb1":
            return UCB1()
        case "ucb_threshhard":
            return UCBThreshHard(ucb_p)
        case "ucb_threshnormal":
            return UCBThreshNormal(ucb_p)
        case "random":
            return Random()
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"policy({name!r}): must be one of {', '.join(names)}{hint}")


def _undrawn_first(arms: Arms, scores: Scores) -> Scores:
    return np.where(arms.n == 0, np.inf, scores) if arms.undrawn else scores


def _check_ucb_p(value: UCBThreshHard | UCBThreshNormal, ucb_p: float) -> None:
    if not 0 < ucb_p <= 1:
        raise ConfigError(f"{type(value).__name__}(ucb_p={ucb_p}): must be between 0 and 1, and not 0")
