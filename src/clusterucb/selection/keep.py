"""Keep rules: what a period trains on, of all that it and the periods before it have learned. numpy only.

    now      I_p                               what is thought of a row at the model as it is
    sum      (I_1 + ... + I_p) / p             as LESS sums its checkpoints before it ranks (arXiv 2402.04333)
    mean     M_p = (M_(p-1) + I_p) / 2         a moving mean, as LEAD smooths (arXiv 2505.07437); M_1 = I_1
    once     I_p                               but rows least often trained on first
    static   I_1                               the first selection serves all periods, and there is no other

I_p(i) is the influence of row i where it was drawn in period p, and what the selector expects of it where
not. A bandit that expects nothing of single rows leaves what was known of a row last or, of one that was
never drawn, the mean of its cluster's draws. No rule takes a gradient more than `now`.

A row of the task itself influences the target less once it is learned, and is forgotten if it leaves. So half
of what is kept may be for such rows, where a caller knows them.

Near duplicates give way, if that is asked: of the rows in the order in which a rule keeps them, row i is
passed over, as long as others are left, if a row j that is kept before it has cos(f_i, f_j) > `near`. So TSDS
(arXiv 2410.11303) discounts what a kernel density calls near duplicates; the kernel here is a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clusterucb.selection.bandit import Rows, Scores, Selection

Keep = Literal["now", "sum", "mean", "once", "static"]
BLOCK = 1024
"""Rows that are compared with those kept at once."""


@dataclass(frozen=True, eq=False)
class Earlier:
    """What an earlier period has left.

    Attributes:
        rows: that were trained on, (L,).
        drawn, scores: rows that were drawn and their influence, (n,).
        learned: I_p of all rows, (N,); None where no row was drawn.
    """

    rows: Rows
    drawn: Rows
    scores: Scores
    learned: Scores | None


@dataclass(frozen=True, eq=False)
class Apart:
    """How near duplicates are told.

    Attributes:
        near: the cosine above which two rows are, below 1.
        features: of rows (n,), (n, d), none of them 0.
    """

    near: float
    features: Callable[[Rows], NDArray[np.floating]]

    def first(self, order: Rows, count: int) -> Rows:
        """The first `count` of rows, (n,), those last that are near duplicates of one that is kept before."""
        found: list[int] = []  # places in `order`
        kept: list[NDArray[np.float32]] = []  # their features, of norm 1
        for start in range(0, len(order), BLOCK):
            block = self.features(order[start : start + BLOCK]).astype(np.float32)  # (b, d)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            passed = np.zeros(len(block), bool)
            for before in kept:
                passed |= (block @ before.T > self.near).any(1)
            alike, places = block @ block.T > self.near, []
            for place in range(len(block)):
                if not passed[place]:
                    places.append(place)
                    passed |= alike[place]
            kept.append(block[places])
            found += [start + place for place in places]
            if len(found) >= count:
                break
        left = np.delete(np.arange(len(order)), found)
        return order[np.concatenate([found, left]).astype(np.int64)[:count]]


def kept(
    rule: Keep,
    selection: Selection,
    labels: NDArray[np.int64],
    earlier: Sequence[Earlier],
    apart: Apart | None = None,
    own: NDArray[np.bool_] | None = None,
) -> Selection:
    """`selection` with the rows, as many, that the rule keeps, and with what it has learned of all rows.

    Args:
        rule: `now` and `static` have nothing to remember.
        selection: of this period.
        labels: cluster of each row, (N,).
        earlier: what the periods before it have left, the first one first.
        apart: by what near duplicates give way, if they do, to others of which as much is known.
        own: rows of the task itself, (N,), which are half of what is kept, if as many are known, or more.
    """
    if rule in ("now", "static"):
        if apart is None and own is None:
            return replace(selection, learned=None)
        now, (order, scores) = None, _drawn_or_expected(selection, len(labels))
    else:
        now = learned(selection, labels, earlier)
        before = [period.learned for period in earlier if period.learned is not None]
        scores = _scores(rule, [*before, now])
        times = np.zeros(len(labels), np.int64)  # that each row was trained on
        for period in earlier if rule == "once" else ():
            times[period.rows] += 1
        order = np.lexsort((-scores, times))
    count = len(selection.rows)
    if own is not None:
        stay = np.flatnonzero(own[order])[: count // 2]
        order = np.concatenate([order[stay], np.delete(order, stay)])
    rows = np.sort(apart.first(order, count) if apart else order[:count])
    return replace(selection, rows=rows, scores=scores[rows], clusters=labels[rows], learned=now)


def _drawn_or_expected(selection: Selection, n: int) -> tuple[Rows, Scores]:
    """The rows of which a selector knows something, the best first, of equals what it kept; scores of all."""
    scores, others = np.full(n, -np.inf), np.ones(n, bool)
    scores[selection.drawn], others[selection.rows] = selection.drawn_scores, False
    scores = scores if selection.learned is None else selection.learned
    return np.lexsort((others, -scores))[: int(np.isfinite(scores).sum())], scores


def learned(selection: Selection, labels: NDArray[np.int64], earlier: Sequence[Earlier]) -> Scores:
    """I_p, (N,)."""
    if selection.learned is not None:
        return selection.learned
    counts = np.bincount(selection.drawn_clusters, minlength=labels.max() + 1)
    sums = np.bincount(selection.drawn_clusters, selection.drawn_scores, len(counts))
    found: Scores = (sums / np.maximum(counts, 1))[labels]
    for period in earlier:
        found[period.drawn] = period.scores
    found[selection.drawn] = selection.drawn_scores
    return found


def _scores(rule: Keep, history: Sequence[Scores]) -> Scores:
    """By which rows are kept after these periods, (N,), in the unit of influence."""
    match rule:
        case "sum":
            mean: Scores = np.mean(history, axis=0)
            return mean
        case "mean":
            return reduce(lambda before, now: (before + now) / 2, history)
    return history[-1]
