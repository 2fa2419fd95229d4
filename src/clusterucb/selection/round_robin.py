"""Turns: each target row takes its most similar row of the pool that is not taken yet, until enough are.

The selection of RDS+ (Ivison et al. 2025, arXiv 2503.01807). Knows similarities only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Similarities = NDArray[np.float32]
Found = tuple[NDArray[np.int32], Similarities]  # rows, and how similar each is


def round_robin(blocks: Iterable[Similarities], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`count` rows in the order in which they are taken, (count,), and the similarity to who took each.

    Of equally similar rows the lower is taken first. As fewer than `count` rows are taken at any turn, the
    `count` most similar rows of each target row are all that can matter: memory holds 16 bytes for each.

    Args:
        blocks: similarities of the n target rows to runs of the pool's rows, in the rows' order, (n, b) each.
        count: at most the number of the pool's rows.
    """
    rows, similarities = _most_similar(blocks, count)  # (n, count)
    queues = [zip(*best, strict=True) for best in zip(rows, similarities, strict=True)]
    taken: dict[int, float] = {}  # row -> similarity, as they are taken
    for queue in itertools.cycle(queues):
        if len(taken) == count:
            break
        row, similarity = next(found for found in queue if found[0] not in taken)
        taken[row] = similarity
    return np.array(list(taken), np.int64), np.array(list(taken.values()), np.float64)


def in_turns(blocks: Iterable[Similarities], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What `round_robin` finds, in the order of the rows."""
    taken, similarities = round_robin(blocks, count)
    in_order = np.argsort(taken)
    return taken[in_order], similarities[in_order]


def _most_similar(blocks: Iterable[Similarities], count: int) -> Found:
    """The `count` most similar rows of each target row, best first, (n, count) each."""
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
