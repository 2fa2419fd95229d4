"""The published policies: each scores the open arms, and the best arm is drawn next.

A policy is any function from `Arms` to one number an open arm, the larger the better; of equal arms the
first in id order is drawn. Formulas: ClusterUCB (Wang et al., Findings of EMNLP 2025, arXiv 2506.10288).
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
        return arms.mean + self.beta * arms.std


@dataclass(frozen=True)
class UCB1:
    """`mean + sqrt(2 ln T / n)`, T the draws of all arms (Auer, Cesa-Bianchi and Fischer, 2002)."""

    def __call__(self, arms: Arms) -> Scores:
        bonus: Scores = np.sqrt(2 * math.log(arms.total) / arms.n)
        return arms.mean + bonus


@dataclass(frozen=True)
class _Thresholded:
    """What a policy by threshold has."""

    ucb_p: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.ucb_p <= 1:
            name = type(self).__name__
            raise ConfigError(f"{name}(ucb_p={self.ucb_p}): must be between 0 and 1, and not 0")


class UCBThreshHard(_Thresholded):
    """The fraction of the arm's draws >= tau, the top-`ucb_p` quantile of all draws so far.

    Where the fraction of every open arm is zero: the arm's largest single draw.
    """

    def __call__(self, arms: Arms) -> Scores:
        reached = arms.share_above(self.ucb_p)
        return reached if reached.any() else arms.largest


class UCBThreshNormal(_Thresholded):
    """The chance `1 - Phi(z)` of a draw above tau, `z = (tau - mean) / std`, if the arm's draws were normal.

    Returned is `-z`. `1 - Phi` falls strictly with z, so both order the arms alike; but in floats it is
    exactly 0 or 1 for any z beyond 38 or below -8, where `-z` still tells arms apart. The std of an arm
    of equal draws, such as a single one, is taken as `STD_FLOOR`.
    """

    def __call__(self, arms: Arms) -> Scores:
        return (arms.mean - arms.threshold(self.ucb_p)) / np.maximum(arms.std, STD_FLOOR)


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
