"""The course of a bandit's draws: which arms were drawn when, and how good what they found was."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOWS = 24
ROWS = 4
"""Of a window, at least."""


@dataclass(frozen=True, eq=False)
class Course:
    """Draws in windows of equal length, the first of which is the cold start.

    Attributes:
        ends: rows drawn at the end of each window, (w,).
        arms: clusters with the most draws, the most drawn first, (a,).
        shares: of the draws of a window, each arm's, and the other clusters' together, (a + 1, w).
        mean: influence of the rows of a window, (w,).
        threshold: the lowest of the best `keep` rows so far at each window's end; NaN before there are so
            many, (w,).
        kept: share of a window's draws that were selected in the end, (w,).
        breadth: clusters that a window's draws are spread over: exp of the entropy of its shares, (w,).
    """

    ends: NDArray[np.int64]
    arms: list[int]
    shares: NDArray[np.float64]
    mean: NDArray[np.float64]
    threshold: NDArray[np.float64]
    kept: NDArray[np.float64]
    breadth: NDArray[np.float64]


def course(
    arms: NDArray[np.int64], scores: NDArray[np.float64], cold: int, keep: int, leading: int = 8
) -> Course:
    """Follow draws in their order.

    Args:
        arms, scores: cluster and influence of each drawn row, (n,).
        cold: how many of the first are the cold start.
        keep: rows that are selected in the end.
        leading: arms that are told apart.
    """
    ends = _ends(len(arms), cold)
    names, drawn = np.unique(arms, return_counts=True)
    most = names[np.argsort(-drawn, kind="stable")[:leading]].tolist()
    places = [slice(start, end) for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]
    shares = np.array([[np.mean(arms[place] == arm) for place in places] for arm in most])
    running = _running_threshold(scores, keep)
    return Course(
        ends=ends,
        arms=most,
        shares=np.vstack([shares, np.maximum(0, 1 - shares.sum(0))]),
        mean=np.array([scores[place].mean() for place in places]),
        threshold=running[ends - 1],
        kept=np.array([np.mean(scores[place] >= running[-1]) for place in places]),
        breadth=np.array([_breadth(arms[place]) for place in places]),
    )


def _ends(drawn: int, cold: int) -> NDArray[np.int64]:
    """The cold start's end, if it is any, and equal steps from there on."""
    windows = max(1, min(WINDOWS, (drawn - cold) // ROWS))
    ends = np.linspace(cold, drawn, windows + 1).astype(np.int64)
    return np.unique(ends[ends > 0])


def _running_threshold(scores: NDArray[np.float64], keep: int) -> NDArray[np.float64]:
    """The lowest of the `keep` highest scores among the first 1, 2, ..., n; NaN for the first keep - 1."""
    best: list[float] = []
    found = np.full(len(scores), np.nan)
    for i, score in enumerate(scores.tolist()):
        if len(best) < keep:
            heapq.heappush(best, score)
        else:
            heapq.heappushpop(best, score)
        if len(best) == keep:
            found[i] = best[0]
    return found


def _breadth(arms: NDArray[np.int64]) -> float:
    _, drawn = np.unique(arms, return_counts=True)
    shares = drawn / drawn.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
