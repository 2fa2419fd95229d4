"""Several tasks, kept apart: each takes its best row in turn, so that no loud one takes all. numpy only.

A task's score of a row is the largest over the task's own directions. Whose turn it is: that of the task with
the fewest rows for its share; of equal ones, the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clusterucb.selection.bandit import Rows, Selection


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks that rows are selected for.

    Attributes:
        names: T of them.
        codes: the task of each direction, ascending, each with one at least, (S,).
        shares: of the selected rows, in any unit, one a task; the same for each if there are none.
    """

    names: Sequence[str]
    codes: NDArray[np.int64]
    shares: Sequence[float] = ()

    def scores(self, features: NDArray[np.floating], directions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Of rows (n, d) for each task, by directions (S, d), (T, n)."""
        products = directions.astype(np.float64) @ features.T.astype(np.float64)
        starts = np.flatnonzero(np.diff(self.codes, prepend=-1))
        found: NDArray[np.float64] = np.maximum.reduceat(products, starts, axis=0)
        return found.astype(np.float32).astype(np.float64)

    def select(
        self, selection: Selection, rows: Rows, scores: NDArray[np.float64], labels: NDArray[np.int64]
    ) -> Selection:
        """`selection` with as many of `rows`, (n,), as it keeps, taken in turn by their `scores`, (T, n)."""
        taken = in_turns(scores, len(selection.rows), self.shares)
        places = np.array(sorted(taken), np.int64)
        owners = [taken[place] for place in places.tolist()]
        kept = rows[places]
        return replace(
            selection,
            rows=kept,
            scores=scores[owners, places],
            clusters=labels[kept],
            targets=[self.names[owner] for owner in owners],
        )


def in_turns(scores: NDArray[np.float64], count: int, shares: Sequence[float] = ()) -> dict[int, int]:
    """`count` of n rows, each with the task that took it, by scores (T, n); of equal ones the lower row."""
    weights = np.array(shares or [1.0] * len(scores))
    queues = [iter(np.argsort(-own, kind="stable").tolist()) for own in scores]
    taken: dict[int, int] = {}
    counts = np.zeros(len(scores))
    while len(taken) < count:
        task = int(np.argmin((counts + 1) / weights))
        row = next(row for row in queues[task] if row not in taken)
        taken[row] = task
        counts[task] += 1
    return taken
