"""The best rows of a store for any number of targets, in one pass over it.

Each thread reads and multiplies rows of its own. A row's score is that of `influence`, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.features.influence import Vectors
from clusterucb.selection.share import top

BLOCK = 512
"""Rows read at once: enough that a disk gives all it has."""
COLUMNS = 16
"""Directions come in so many, as products do in a core."""
WAITING = 3
"""Threads above one a core: those that wait for the disk."""


def scores_of_all(
    features: Vectors,
    directions: NDArray[np.floating],
    owners: NDArray[np.int64],
    advance: Callable[[int], object] = lambda _rows: None,
) -> NDArray[np.float32]:
    """Score of every row for every target, (T, N): the largest over the target's directions.

    All products have one shape, so that a row's scores do not depend on where it lies.

    Args:
        features: (N, d).
        directions: of all targets, (S, d).
        owners: the target of each direction, ascending from 0, each with one at least, (S,).
        advance: told the number of rows after each block.
    """
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    found = np.empty((len(starts), len(features)), np.float32)
    to_all = torch.zeros(features.shape[1], -(-len(directions) // COLUMNS) * COLUMNS)  # (d, S and some 0)
    to_all[:, : len(directions)] = torch.from_numpy(directions.T)
    threads = torch.get_num_threads()
    workers = threads + WAITING
    rooms = Queue[torch.Tensor]()  # used again: fresh memory would cost more than the products
    for _ in range(workers):
        rooms.put(torch.zeros(BLOCK, features.shape[1]))

    def block(at: int) -> int:
        read, room = features[at : at + BLOCK], rooms.get()
        room[: len(read)] = torch.from_numpy(read)
        products = (room @ to_all).numpy()[: len(read), : len(directions)]  # (B, S)
        found[:, at : at + len(read)] = np.maximum.reduceat(products, starts, axis=1).T
        rooms.put(room)
        return len(read)

    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for rows in pool.map(block, range(0, len(features), BLOCK)):
                advance(rows)
    finally:
        torch.set_num_threads(threads)
    return found


def best_first(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The `count` best of N rows, (count,), by falling score, of equal ones the lower row first."""
    rows = top(scores, count)
    return rows[np.argsort(-scores[rows], kind="stable")]


def nearest(features: Vectors, rows: NDArray[np.int64], targets: NDArray[np.floating]) -> NDArray[np.int64]:
    """For each of `rows`, (n,), the most like of the target's, which have directions (T, d), (n,)."""
    found = (features[row : row + 1].astype(np.float64) @ targets.T for row in rows.tolist())
    return np.array([products.argmax() for products in found], np.int64)
