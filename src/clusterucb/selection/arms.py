"""What a policy sees of the clusters: statistics of the draws of every arm that can still be drawn.

An arm whose rows are all seen leaves the arrays, so no policy can choose it. Nothing is computed from
the history of draws: a draw updates the numbers of its arm, and costs the same after a million others.

The running quantile of all draws and, for each arm, how many of its draws reach it.

Knows numbers and slots (an arm's place among all arms), nothing of policies or rows. A draw costs
O(log draws): two heaps hold the distinct values on either side of the quantile, and a count changes
only for the draws that the quantile passes over.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("n", "unseen", "mean", "std", "largest", "ids")


class Arms:
    """The open arms, in ascending order of their ids; all arrays are aligned, and read-only.

    A custom policy is any function of this object; `rng` is the run's only generator. A policy with a
    ceiling may be shown only those open arms that can be the best (shortlist.py).
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
        self.total = 0  # T: draws so far of all arms, exhausted ones included
        self._slot_of = {arm: slot for slot, arm in enumerate(arms)}  # an arm's place among all arms
        self._moments = [_Moments() for _ in arms]  # by slot, as are sizes
        self._sizes = [sizes[arm] for arm in arms]
        self._table: tuple[NDArray[Any], ...] = (  # COLUMNS by slot
            np.zeros(len(arms)),
            np.array(self._sizes, dtype=np.int64),
            np.zeros(len(arms)),
            np.zeros(len(arms)),
            np.full(len(arms), -np.inf),
            np.array(arms, dtype=np.int64),
        )
        self._shown = np.arange(len(arms))  # slots, ascending
        self._columns: tuple[NDArray[Any], ...] = self._table  # of those slots: what the policy views
        self._slots = array("q")  # of every draw so far, in draw order, exhausted arms included
        self._scores = array("d")
        self._thresholds: dict[float, Threshold] = {}
        self._expose(self._shown, self._table)

    def history(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Arm and score of every draw so far, in draw order, each [T]. O(T): for the end, not for a draw."""
        return self._table[-1][np.array(self._slots)], np.array(self._scores)

    def threshold(self, p: float) -> float:
        """tau, the top-`p` quantile of all draws so far, `np.quantile(draws, 1 - p)`; -inf without a draw."""
        return self._threshold(p).value

    def share_above(self, p: float) -> NDArray[np.float64]:
        """Fraction of each open arm's draws that are >= `threshold(p)`, float[open]; 0 without a draw."""
        return self.reach(p) / (np.maximum(self.n, 1) if self.undrawn else self.n)

    def reach(self, p: float) -> NDArray[np.float64]:
        """How many draws of each open arm are >= `threshold(p)`, whole numbers, float[open]."""
        return self._threshold(p).reach[self._shown]

    def passed(self, p: float, share: float) -> list[int]:
        """Ids of the arms that the last draws recorded may have raised to `share_above(p)` >= `share`.

        Without the arms drawn: those with a draw that `threshold(p)` has sunk to or below.
        """
        threshold, moments = self._threshold(p), self._moments
        risen = [slot for slot in threshold.passed if threshold.reach[slot] / moments[slot].n >= share]
        return [int(self._table[-1][slot]) for slot in risen]

    def record(self, arm: int, scores: NDArray[np.float64]) -> None:
        """Count draws of the open arm with id `arm`; `scores` is float[b], 1 <= b <= its unseen rows."""
        slot, values = self._slot_of[arm], scores.tolist()
        moments = self._moments[slot]
        self.undrawn -= not moments.n
        moments.add(values)
        self._scores.extend(values)
        self._slots.extend([slot] * len(values))
        self.total = len(self._scores)
        unseen = self._sizes[slot] - moments.n
        self._write(slot, moments.n, unseen, moments.mean, moments.std, moments.largest)

    def imagine(self, arm: int) -> None:
        """Count a draw of the open arm with id `arm`, one draw or more old, as if it had scored the mean.

        So `n`, `unseen` and `total` count it, the mean stays and the deviation shrinks. What is known of
        real draws only stays: the largest draw, thresholds, and the draws that reach them. `record` puts
        real draws in the place of the imagined.
        """
        slot = self._slot_of[arm]
        at, _ = self._find(slot)
        n, unseen, mean, std, largest, _ = (column[at].item() for column in self._columns)
        self.total += 1
        self._write(slot, n + 1, unseen - 1, mean, std * math.sqrt(n / (n + 1)), largest)

    def show_all(self) -> None:
        """Show all open arms."""
        self._show(np.flatnonzero(self._table[1]))

    def show_only(self, places: NDArray[np.int64]) -> None:
        """Of the arms shown, go on to show those at `places`, ascending."""
        self._show(self._shown[places])

    def show_also(self, ids: Iterable[int]) -> None:
        """Show these arms too, those that are open."""
        for arm in ids:
            at, shown = self._find(slot := self._slot_of[arm])
            if not shown and self._table[1][slot]:
                self._show(np.insert(self._shown, at, slot))

    def _write(self, slot: int, n: float, unseen: int, mean: float, std: float, largest: float) -> None:
        """Set an arm's statistics; while it is open it is shown, even if it was not before."""
        at, shown = self._find(slot)
        if not shown:
            self._show(np.insert(self._shown, at, slot))
        columns = self._columns
        columns[0][at] = n
        columns[1][at] = unseen
        columns[2][at] = mean
        columns[3][at] = std
        columns[4][at] = largest
        if not unseen:
            self._table[1][slot] = 0
            self._expose(np.delete(self._shown, at), tuple(np.delete(column, at) for column in columns))

    def _find(self, slot: int) -> tuple[int, bool]:
        """Where a slot is, or would be, among those shown, and whether it is there."""
        at = bisect_left(self._places, slot)
        return at, at < len(self._places) and self._places[at] == slot

    def _show(self, slots: NDArray[np.int64]) -> None:
        if self._columns is not self._table:  # but copies of some of its rows, changed since
            for column, values in zip(self._table, self._columns, strict=True):
                column[self._shown] = values
        whole = len(slots) == len(self._moments)
        self._expose(slots, self._table if whole else tuple(column[slots] for column in self._table))

    def _expose(self, slots: NDArray[np.int64], columns: tuple[NDArray[Any], ...]) -> None:
        """Public arrays are read-only views, so that a policy cannot change what it is shown."""
        self._shown, self._places, self._columns = slots, slots.tolist(), columns
        for name, values in zip(COLUMNS, columns, strict=True):
            view = values.view()
            view.flags.writeable = False
            setattr(self, name, view)

    def _threshold(self, p: float) -> Threshold:
        """Made at the first call for `p`; every later call adds only the draws since the one before."""
        threshold = self._thresholds.get(p)
        if threshold is None:
            threshold = self._thresholds[p] = Threshold(p, len(self._moments))
        start, stop = threshold.draws, len(self._scores)
        if start < stop:
            threshold.passed.clear()
            for t in range(start, stop):
                threshold.add(self._slots[t], self._scores[t])
        return threshold


class _Moments:
    """Mean, population standard deviation and largest of one arm's draws, in O(1) a draw.

    Sums of deviations from the arm's first draw, not Welford's recurrence: sums of integers, or of
    multiples of 1/64, are exact, so arms with equal draws in another order tie exactly. It is stable:
    no draw lies further than std * sqrt(n - 1) from the mean (Samuelson's inequality), the first neither,
    so the difference below loses at most a factor n.
    """

    __slots__ = ("_d1", "_d2", "_first", "_sum", "largest", "mean", "n", "std")

    def __init__(self) -> None:
        self.n = 0
        self.mean = self.std = 0.0
        self.largest = -math.inf
        self._first = self._sum = self._d1 = self._d2 = 0.0

    def add(self, values: list[float]) -> None:
        if not self.n:
            self._first = values[0]
        for x in values:
            d = x - self._first
            self._sum += x
            self._d1 += d
            self._d2 += d * d
            if x > self.largest:
                self.largest = x
        self.n = n = self.n + len(values)
        self.mean = self._sum / n
        self.std = math.sqrt(max(n * self._d2 - self._d1 * self._d1, 0.0) / (n * n))


class Threshold:
    """tau, the top-`p` quantile of all draws, equal to `np.quantile(draws, 1 - p)` (linear), ties exact.

    With m draws, x their sorted values and at = (m - 1)(1 - p), tau lies between x[floor(at)] and
    x[ceil(at)], and the draws that reach it are those from x[ceil(at)] on.
    """

    draws: int  # how many
    value: float  # tau; -inf before the first draw
    reach: NDArray[np.float64]  # draws >= tau of each slot, whole numbers; not to be written to
    passed: list[int]  # slots of the draws that tau has sunk to or below; emptied by who reads it

    def __init__(self, p: float, slots: int) -> None:
        self.draws = 0
        self.value = -np.inf
        self.reach = np.zeros(slots)
        self.passed = []
        self._q = 1 - p
        self._slots_at: dict[float, list[int]] = {}  # distinct value -> slots that drew it
        self._low: list[float] = []  # distinct values < tau, negated: a max-heap
        self._high: list[float] = []  # distinct values >= tau, a min-heap
        self._below = 0  # draws < tau

    def add(self, slot: int, value: float) -> None:
        """Count one draw."""
        known = self._slots_at.get(value)
        if known is None:
            self._slots_at[value] = [slot]
        else:
            known.append(slot)
        if value < self.value:
            self._below += 1
            if known is None:
                heappush(self._low, -value)
        else:
            self.reach[slot] += 1
            if known is None:
                heappush(self._high, value)
        self.draws += 1
        self._settle()

    def _settle(self) -> None:
        """Move whole groups of equal draws until `_high` is what reaches tau."""
        high, slots_at = self._high, self._slots_at
        at = (self.draws - 1) * self._q
        floor = int(at)
        ceil = floor + (at > floor)
        while self._below > ceil:
            self._sink()
        while self._below + len(slots_at[high[0]]) <= ceil:
            self._climb()
        self.value = x1 = high[0]
        if self._below > floor:
            x0, part = -self._low[0], at - floor
            self.value = x0 + (x1 - x0) * part if part < 0.5 else x1 - (x1 - x0) * (1 - part)  # as numpy
            if self.value <= x0:  # no float lies between them
                self._sink()

    def _sink(self) -> None:
        value = -heappop(self._low)
        heappush(self._high, value)
        slots = self._slots_at[value]
        _add(self.reach, slots, 1)
        self.passed += slots
        self._below -= len(slots)

    def _climb(self) -> None:
        value = heappop(self._high)
        heappush(self._low, -value)
        slots = self._slots_at[value]
        _add(self.reach, slots, -1)
        self._below += len(slots)


def _add(counts: NDArray[np.float64], slots: list[int], by: int) -> None:
    if len(slots) == 1:
        counts[slots[0]] += by
    else:
        np.add.at(counts, slots, by)
