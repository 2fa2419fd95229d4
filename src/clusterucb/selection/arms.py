"""What a policy sees of the clusters: statistics of the draws of every arm that can still be drawn.

An arm whose rows are all seen leaves the arrays, so no policy can choose it. Nothing is computed from
the history of draws: a draw updates the numbers of its arm, and costs the same after a million others. Nor
are thresholds, which two heaps of the distinct draws on either side of a quantile follow, in O(log draws).
"""

from __future__ import annotations

import copy
import math
from array import array
from collections import defaultdict
from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Arms:
    """The open arms, in ascending order of their ids; all arrays are aligned, and read-only.

    A custom policy is any function of this object; every arm was drawn before a policy is asked. `rng` is
    the run's only generator.
    """

    ids: NDArray[np.int64]  # cluster labels
    n: NDArray[np.float64]  # draws so far: whole numbers, as floats since formulas divide by them
    unseen: NDArray[np.int64]  # rows not drawn yet, at least one
    mean: NDArray[np.float64]  # of the draws; 0 without a draw
    std: NDArray[np.float64]  # population standard deviation of the draws; 0 without a draw
    largest: NDArray[np.float64]  # largest single draw; -inf without a draw

    def __init__(self, sizes: Mapping[int, int], rng: np.random.Generator) -> None:
        """`sizes`: cluster label -> number of rows, at least one each."""
        self.rng = rng
        self.total = 0  # T: draws so far of all arms, exhausted ones included
        self._moments = {arm: _Moments() for arm in sorted(sizes)}
        self._slots, self._scores = array("q"), array("d")  # of every draw so far, in draw order
        self._thresholds: dict[float, Threshold] = {}
        k = len(sizes)
        self._show(
            ids=np.array(list(self._moments), np.int64),
            n=np.zeros(k),
            unseen=np.array([sizes[arm] for arm in self._moments], np.int64),
            mean=np.zeros(k),
            std=np.zeros(k),
            largest=np.full(k, -np.inf),
            slot=np.arange(k),  # an arm's place among all arms, open or not
        )

    def threshold(self, p: float) -> float:
        """tau, the top-`p` quantile of all draws so far, `np.quantile(draws, 1 - p)`; -inf without a draw."""
        return self._threshold(p).value

    def share_above(self, p: float) -> NDArray[np.float64]:
        """Fraction of each open arm's draws that are >= `threshold(p)`, float[open]."""
        share: NDArray[np.float64] = self._threshold(p).reach[self._columns["slot"]] / self.n
        return share

    def record(self, arm: int, scores: NDArray[np.float64]) -> None:
        """Count draws of the open arm with id `arm`; `scores` is float[b], 1 <= b <= its unseen rows."""
        at, columns, values = self.ids.searchsorted(arm), self._columns, scores.tolist()
        self._scores.extend(values)
        self._slots.extend([columns["slot"][at]] * len(values))
        columns["mean"][at], columns["std"][at] = self._moments[arm].add(values)
        columns["largest"][at] = max(columns["largest"][at], *values)
        self._count(at, len(values))

    def copy(self) -> Arms:
        """The same arms, in which draws can be imagined."""
        twin = copy.copy(self)
        twin._show(**{name: column.copy() for name, column in self._columns.items()})
        return twin

    def imagine(self, arm: int) -> None:
        """Count a draw of the open arm with id `arm`, one draw or more old, as if it had scored the mean.

        So `n`, `unseen` and `total` count it, the mean stays and the deviation shrinks. What is known of
        real draws only stays: the largest draw, thresholds, and the draws that reach them.
        """
        at = self.ids.searchsorted(arm)
        n = self._columns["n"][at]
        self._columns["std"][at] *= math.sqrt(n / (n + 1))
        self._count(at, 1)

    def _count(self, at: np.intp, draws: int) -> None:
        columns = self._columns
        self.total += draws
        columns["n"][at] += draws
        columns["unseen"][at] -= draws
        if not columns["unseen"][at]:
            self._show(**{name: np.delete(column, at) for name, column in columns.items()})

    def _show(self, **columns: NDArray[Any]) -> None:
        """Public arrays are read-only views, so that a policy cannot change what it is shown."""
        self._columns = columns
        for name in ("ids", "n", "unseen", "mean", "std", "largest"):
            view = columns[name].view()
            view.flags.writeable = False
            setattr(self, name, view)

    def _threshold(self, p: float) -> Threshold:
        """Made at the first call for `p`; every later call adds only the draws since the one before."""
        if p not in self._thresholds:
            self._thresholds[p] = Threshold(p, len(self._moments))
        threshold = self._thresholds[p]
        for t in range(threshold.draws, len(self._scores)):
            threshold.add(self._slots[t], self._scores[t])
        return threshold


class _Moments:
    """Mean and population standard deviation of one arm's draws, in O(1) a draw.

    Sums of deviations from the arm's first draw, not Welford's recurrence: sums of integers, or of
    multiples of 1/64, are exact, so arms with equal draws in another order tie exactly. It is stable:
    no draw lies further than std * sqrt(n - 1) from the mean (Samuelson's inequality), the first neither,
    so the difference below loses at most a factor n.
    """

    __slots__ = ("_d1", "_d2", "_first", "_n", "_sum")

    def __init__(self) -> None:
        self._n = 0
        self._first = self._sum = self._d1 = self._d2 = 0.0

    def add(self, values: list[float]) -> tuple[float, float]:
        """Count some draws; mean and deviation of all so far."""
        if not self._n:
            self._first = values[0]
        for x in values:
            d = x - self._first
            self._sum += x
            self._d1 += d
            self._d2 += d * d
        self._n += len(values)
        spread = max(self._n * self._d2 - self._d1 * self._d1, 0.0)
        return self._sum / self._n, math.sqrt(spread / (self._n * self._n))


class Threshold:
    """tau, the top-`p` quantile of all draws, equal to `np.quantile(draws, 1 - p)` (linear), ties exact.

    With m draws, x their sorted values and at = (m - 1)(1 - p), tau lies between x[floor(at)] and
    x[ceil(at)], and the draws that reach it are those from x[ceil(at)] on.
    """

    def __init__(self, p: float, slots: int) -> None:
        self.draws = 0  # how many
        self.value = -math.inf  # tau
        self.reach = np.zeros(slots)  # draws >= tau of each slot, whole numbers; not to be written to
        self._q = 1 - p
        self._slots_of: defaultdict[float, list[int]] = defaultdict(list)  # distinct value -> who drew it
        self._low: list[float] = []  # distinct values < tau, negated: a max-heap
        self._high: list[float] = []  # distinct values >= tau, a min-heap
        self._below = 0  # draws < tau

    def add(self, slot: int, value: float) -> None:
        """Count one draw."""
        slots = self._slots_of[value]
        if value < self.value:
            self._below += 1
            if not slots:
                heappush(self._low, -value)
        else:
            self.reach[slot] += 1
            if not slots:
                heappush(self._high, value)
        slots.append(slot)
        self.draws += 1
        self._settle()

    def _settle(self) -> None:
        """Move whole groups of equal draws until `_high` is what reaches tau."""
        at = (self.draws - 1) * self._q
        floor, ceil = math.floor(at), math.ceil(at)
        while self._below > ceil:
            self._move(self._low, self._high, 1)
        while self._below + len(self._slots_of[self._high[0]]) <= ceil:
            self._move(self._high, self._low, -1)
        self.value = x1 = self._high[0]
        if self._below > floor:
            x0, part = -self._low[0], at - floor
            self.value = x0 + (x1 - x0) * part if part < 0.5 else x1 - (x1 - x0) * (1 - part)  # as numpy
            if self.value <= x0:  # no float lies between them
                self._move(self._low, self._high, 1)

    def _move(self, source: list[float], to: list[float], reaching: int) -> None:
        """The equal draws next to tau change sides: 1, they reach it from now on, or -1, no longer."""
        value = heappop(source)
        heappush(to, -value)
        slots = self._slots_of[-reaching * value]
        self._below -= reaching * len(slots)
        for slot in slots:
            self.reach[slot] += reaching
