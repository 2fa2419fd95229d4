"""What a policy sees of the clusters: statistics of the draws of every arm that can still be drawn.

An arm whose rows are all seen leaves the arrays, so no policy can choose it. Nothing is computed from
the history of draws: a draw updates the numbers of its arm, and costs the same after a million others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clusterucb.selection.threshold import Threshold

__all__ = ["Arms"]


class Arms:
    """The open arms, in ascending order of their ids; all arrays are aligned, and read-only.

    A custom policy is any function of this object; `rng` is the run's only generator.
    """

    ids: NDArray[np.int64]  # cluster labels
    n: NDArray[np.float64]  # draws so far: whole numbers, as floats since formulas divide by them
    unseen: NDArray[np.int64]  # rows not drawn yet, at least one
    mean: NDArray[np.float64]  # of the draws; 0 without a draw
    std: NDArray[np.float64]  # population standard deviation of the draws; 0 without a draw
    largest: NDArray[np.float64]  # largest single draw; -inf without a draw

    def __init__(self, sizes: Mapping[int, int], rng: np.random.Generator) -> None:
        """`sizes`: cluster label -> number of rows, at least one each."""
        arms = sorted(sizes)
        self.rng = rng
        self.undrawn = len(arms)  # open arms without a draw
        self._moments = [_Moments() for _ in arms]  # by slot: an arm's place among all arms
        self._slots: list[int] = []  # of every draw so far, in draw order, exhausted arms included
        self._scores: list[float] = []
        self._thresholds: dict[float, tuple[Threshold, list[int]]] = {}
        self._columns = {
            "ids": np.array(arms, dtype=np.int64),
            "n": np.zeros(len(arms)),
            "unseen": np.array([sizes[arm] for arm in arms], dtype=np.int64),
            "mean": np.zeros(len(arms)),
            "std": np.zeros(len(arms)),
            "largest": np.full(len(arms), -np.inf),
            "_slot": np.arange(len(arms)),
        }
        self._all_ids = self._columns["ids"]
        self._expose()

    @property
    def total(self) -> int:
        """T: draws so far of all arms, exhausted ones included."""
        return len(self._scores)

    def history(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Arm and score of every draw so far, in draw order, each [T]. O(T): for the end, not for a draw."""
        return self._all_ids[self._slots], np.array(self._scores, dtype=np.float64)

    def threshold(self, p: float) -> float:
        """tau, the top-`p` quantile of all draws so far, `np.quantile(draws, 1 - p)`; -inf without a draw."""
        return self._threshold(p).value

    def share_above(self, p: float) -> NDArray[np.float64]:
        """Fraction of each open arm's draws that are >= `threshold(p)`, float[open]; 0 without a draw."""
        reach = self._threshold(p).reach()
        if len(self.ids) < len(reach):
            reach = reach[self._columns["_slot"]]
        return reach / (np.maximum(self.n, 1) if self.undrawn else self.n)

    def record(self, arm: int, scores: NDArray[np.float64]) -> None:
        """Count draws of the open arm with id `arm`; `scores` is float[b], 1 <= b <= its unseen rows."""
        column = self._columns
        i = int(self.ids.searchsorted(arm))
        slot = int(column["_slot"][i])
        moments, values = self._moments[slot], scores.tolist()
        self.undrawn -= not moments.n
        for value in values:
            moments.add(value)
        self._scores += values
        self._slots += [slot] * len(values)
        column["n"][i] = moments.n
        column["mean"][i] = moments.mean
        column["std"][i] = moments.std
        column["largest"][i] = moments.largest
        column["unseen"][i] -= len(values)
        if column["unseen"][i] == 0:
            self._columns = {name: np.delete(values, i) for name, values in column.items()}
            self._expose()

    def _expose(self) -> None:
        """Public arrays are read-only views, so that a policy cannot change what it is shown."""
        for name, values in self._columns.items():
            view = values.view()
            view.flags.writeable = False
            setattr(self, name, view)

    def _threshold(self, p: float) -> Threshold:
        """Made at the first call for `p`; every later call adds only the draws since the one before."""
        if p not in self._thresholds:
            self._thresholds[p] = Threshold(p, len(self._moments)), [0]
        threshold, seen = self._thresholds[p]
        for t in range(seen[0], self.total):
            threshold.add(self._slots[t], self._scores[t])
        seen[0] = self.total
        return threshold


class _Moments:
    """Mean, population standard deviation and largest of one arm's draws, in O(1) a draw.

    Sums of deviations from the arm's first draw, not Welford's recurrence: sums of integers, or of
    multiples of 1/64, are exact, so arms with equal draws in another order tie exactly. It is stable:
    no draw lies further than std * sqrt(n - 1) from the mean (Samuelson's inequality), the first neither,
    so the difference below loses at most a factor n.
    """

    __slots__ = ("_d1", "_d2", "_first", "_sum", "largest", "n")

    def __init__(self) -> None:
        self.n = 0
        self.largest = -math.inf
        self._first = self._sum = self._d1 = self._d2 = 0.0

    def add(self, x: float) -> None:
        if not self.n:
            self._first = x
        d = x - self._first
        self.n += 1
        self._sum += x
        self._d1 += d
        self._d2 += d * d
        if x > self.largest:
            self.largest = x

    @property
    def mean(self) -> float:
        return self._sum / self.n

    @property
    def std(self) -> float:
        return math.sqrt(max(self.n * self._d2 - self._d1 * self._d1, 0.0) / (self.n * self.n))
