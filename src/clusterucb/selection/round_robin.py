"""Turns: each taker takes its most similar row of the pool that is not taken yet, until enough are.

Whose turn it is: that of the taker with the fewest rows for its share; of equal ones, the first. With target
rows as takers, alike, it is the selection of RDS+ (Ivison et al. 2025, arXiv 2503.01807). Knows similarities
only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Similarities = NDArray[np.float32]
Found = tuple[NDArray[np.int32], Similarities]  # rows, and how similar each is


class Taken(NamedTuple):
    """Rows, the similarity of each to who took it, and the number of that taker, (count,) each."""

    rows: NDArray[np.int64]
    similarities: NDArray[np.float64]
    takers: NDArray[np.int64]


def round_robin(blocks: Iterable[Similarities], count: int, shares: Sequence[float] = ()) -> Taken:
    """`count` rows in the order in which they are taken.

    Of equally similar rows the lower is taken first. As fewer than `count` rows are taken at any turn, the
    `count` most similar rows of each taker are all that can matter: memory holds 16 bytes for each.

    Args:
        blocks: similarities of the n takers to runs of the pool's rows, in the rows' order, (n, b) each.
        count: at most the number of the pool's rows.
        shares: of the rows, in any unit, above 0, one a taker; the same for each if there are none.
    """
    rows, similarities = _most_similar(blocks, count)  # (n, count)
    queues = [zip(*best, strict=True) for best in zip(rows, similarities, strict=True)]
    taken: dict[int, tuple[float, int]] = {}  # row -> similarity and taker, as they are taken
    for taker in _turns(shares or [1.0] * len(queues)):
        if len(taken) == count:
            break
        row, similarity = next(found for found in queues[taker] if found[0] not in taken)
        taken[row] = (similarity, taker)
    found, takers = zip(*taken.values(), strict=True)
    return Taken(np.array(list(taken), np.int64), np.array(found, np.float64), np.array(takers, np.int64))


def in_turns(blocks: Iterable[Similarities], count: int, shares: Sequence[float] = ()) -> Taken:
    """What `round_robin` finds, in the order of the rows."""
    taken = round_robin(blocks, count, shares)
    in_order = np.argsort(taken.rows)
    return Taken(taken.rows[in_order], taken.similarities[in_order], taken.takers[in_order])


def _turns(shares: Sequence[float]) -> Iterator[int]:
    """Whose turn it is, without end."""
    if len(set(shares)) == 1:
        yield from itertools.cycle(range(len(shares)))
    weights, counts = np.array(shares), np.zeros(len(shares))
    while True:
        taker = int(np.argmin((counts + 1) / weights))
        counts[taker] += 1
        yield taker


def _most_similar(blocks: Iterable[Similarities], count: int) -> Found:
    """The `count` most similar rows of each taker, best first, (n, count) each."""
    found: list[Found] = []
    start = 0
    for block in blocks:
        rows = np.arange(start, start + block.shape[1], dtype=np.int32)
        start += len(rows)
        found.append((np.broadcast_to(rows, block.shape), block))
        if sum(block.shape[1] for _, block in found) >= 2 * count:  # so that a row is not sorted too often
            found = [_best(found, count)]
    return _best(found, count)


def _best(found: list[Found], count: int) -> Found:
    """The `count` best of all; equals stay in their order, which is that of the rows."""
    rows, similarities = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(similarities, order, 1)
