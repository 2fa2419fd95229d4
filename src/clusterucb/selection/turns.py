"""Takers, who take rows in turn, so that no loud one takes all: each its best of those that are left.

Takers are the directions themselves, or several tasks that are kept apart: a task's score of a row is the
largest over the task's own directions. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clusterucb.selection.bandit import Rows, Selection
from clusterucb.selection.round_robin import Similarities, in_turns


@dataclass(frozen=True, eq=False)
class Turns:
    """Who takes rows; every direction, unless there are tasks.

    Attributes:
        tasks: names of T of them, which a selection then has beside its rows.
        codes: the task of each direction, ascending, each with one at least, (S,).
        shares: of the selected rows, in any unit, one a task; the same for each if there are none.
    """

    tasks: Sequence[str] = ()
    codes: NDArray[np.int64] | None = None
    shares: Sequence[float] = ()

    def scores(self, similarities: Similarities) -> Similarities:
        """Of rows for each taker, (T, n), by their similarities to the directions, (S, n)."""
        if self.codes is None:
            return similarities
        starts = np.flatnonzero(np.diff(self.codes, prepend=-1))
        found: Similarities = np.maximum.reduceat(similarities, starts, axis=0)
        return found

    def select(
        self, selection: Selection, rows: Rows, blocks: Iterable[Similarities], labels: NDArray[np.int64]
    ) -> Selection:
        """`selection` with as many rows as it keeps, taken of others.

        Args:
            selection: of any rows.
            rows: to take from, ascending, (n,).
            blocks: similarities of the directions to runs of these, in their order, (S, b) each.
            labels: the cluster of every row, (N,).
        """
        taken = in_turns(map(self.scores, blocks), len(selection.rows), self.shares)
        kept, whose = rows[taken.rows], taken.takers.tolist()
        return replace(
            selection,
            rows=kept,
            scores=taken.similarities,
            clusters=labels[kept],
            targets=[self.tasks[taker] for taker in whose] if self.tasks else (),
        )
