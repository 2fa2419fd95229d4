"""The running quantile of all draws and, for each arm, how many of its draws reach it.

Knows numbers and slots (an arm's place among all arms), nothing of policies or rows. A draw costs
O(log draws): two heaps hold the distinct values on either side of the quantile, and a count changes
only for the draws that the quantile passes over.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

__all__ = ["Threshold"]


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
