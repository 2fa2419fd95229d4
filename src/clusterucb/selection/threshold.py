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

    With m draws and x their sorted values, tau lies between x[r] and x[r + 1], r = floor((m - 1)(1 - p)).
    """

    def __init__(self, p: float, slots: int) -> None:
        self._q = 1 - p
        self._draws = 0
        self._slots_at: dict[float, list[int]] = {}  # distinct value -> slots that drew it
        self._low: list[float] = []  # distinct values below x[r], negated: a max-heap
        self._high: list[float] = []  # the others, a min-heap: x[r] is its root
        self._below = 0  # draws with a value below x[r]
        self._reach: NDArray[np.float64] = np.zeros(slots)  # draws >= x[r], by slot

    def add(self, slot: int, value: float) -> None:
        """Count one draw."""
        known = self._slots_at.get(value)
        if known is None:
            self._slots_at[value] = [slot]
        else:
            known.append(slot)
        if self._high and value < self._high[0]:
            self._below += 1
            if known is None:
                heappush(self._low, -value)
        else:
            self._reach[slot] += 1
            if known is None:
                heappush(self._high, value)
        self._draws += 1
        self._settle(int((self._draws - 1) * self._q))

    def _settle(self, rank: int) -> None:
        """Move whole groups of equal draws until the root of `_high` is x[rank]."""
        high, low = self._high, self._low
        while self._below > rank:
            value = -heappop(low)
            heappush(high, value)
            _add(self._reach, self._slots_at[value], 1)
            self._below -= len(self._slots_at[value])
        while self._below + len(self._slots_at[high[0]]) <= rank:
            value = heappop(high)
            heappush(low, -value)
            _add(self._reach, self._slots_at[value], -1)
            self._below += len(self._slots_at[value])

    @property
    def value(self) -> float:
        """tau; -inf before the first draw."""
        if not self._draws:
            return -np.inf
        high = self._high
        at = (self._draws - 1) * self._q
        part = at - int(at)
        x0 = high[0]
        if not part or self._below + len(self._slots_at[x0]) >= int(at) + 2:
            return x0
        x1 = min(high[1:3])  # the second smallest of a heap is a child of its root
        return x0 + (x1 - x0) * part if part < 0.5 else x1 - (x1 - x0) * (1 - part)  # as numpy rounds it

    def reach(self) -> NDArray[np.float64]:
        """Draws >= tau of each slot, whole numbers, float[slots]; not to be written to."""
        if not self._draws or self.value <= self._high[0]:
            return self._reach
        reach: NDArray[np.float64] = self._reach.copy()
        _add(reach, self._slots_at[self._high[0]], -1)
        return reach


def _add(counts: NDArray[np.float64], slots: list[int], by: int) -> None:
    if len(slots) == 1:
        counts[slots[0]] += by
    else:
        np.add.at(counts, slots, by)
