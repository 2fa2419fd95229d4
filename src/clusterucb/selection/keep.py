"""Keep rules: what a period trains on, of all that it and the periods before it have learned. numpy only.

    now      I_p                               what is thought of a row at the model as it is
    sum      (I_1 + ... + I_p) / p             as LESS sums its checkpoints before it ranks (arXiv 2402.04333)
    mean     M_p = (M_(p-1) + I_p) / 2         a moving mean, as LEAD smooths (arXiv 2505.07437); M_1 = I_1
    once     I_p                               but rows least often trained on first
    static   I_1                               the first selection serves all periods, and there is no other

I_p(i) is the influence of row i where it was drawn in period p, and what the selector expects of it where
not. A bandit that expects nothing of single rows leaves what was known of a row last or, of one that was
never drawn, the mean of its cluster's draws. No rule takes a gradient more than `now`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clusterucb.selection.bandit import Rows, Scores, Selection

Keep = Literal["now", "sum", "mean", "once", "static"]


@dataclass(frozen=True, eq=False)
class Earlier:
    """What an earlier period has left.

    Attributes:
        rows: that were trained on, (L,).
        drawn, scores: rows that were drawn and their influence, (n,).
        learned: I_p of all rows, (N,).
    """

    rows: Rows
    drawn: Rows
    scores: Scores
    learned: Scores


def kept(
    rule: Keep, selection: Selection, labels: NDArray[np.int64], earlier: Sequence[Earlier]
) -> Selection:
    """`selection` with the rows, as many, that the rule keeps, and with what it has learned of all rows.

    Args:
        rule: `now` and `static` keep what was selected, and have nothing to remember.
        selection: of this period.
        labels: cluster of each row, (N,).
        earlier: what the periods before it have left, the first one first.
    """
    if rule in ("now", "static"):
        return replace(selection, learned=None)
    now = learned(selection, labels, earlier)
    scores = _scores(rule, [*(period.learned for period in earlier), now])
    times = np.zeros(len(labels), np.int64)  # that each row was trained on
    for period in earlier if rule == "once" else ():
        times[period.rows] += 1
    rows = np.sort(np.lexsort((-scores, times))[: len(selection.rows)])
    return replace(selection, rows=rows, scores=scores[rows], clusters=labels[rows], learned=now)


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
