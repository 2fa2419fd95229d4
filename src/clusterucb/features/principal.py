"""Features in few dimensions: those in which they differ most.

Principal components by subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011), not centred, so
that inner products are kept as well as so few dimensions can. The store is read block by block, a pass an
iteration.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.influence import Vectors

SPARE = 16  # dimensions more than asked for, so that those asked for are found in few iterations


def principal(features: Vectors, dim: int, *, iterations: int = 3, block: int = 1024) -> NDArray[np.float32]:
    """Rows (N, d) as their `dim` largest components, or all d if these are fewer, (N, min(d, dim)).

    Memory: `block` rows, and (d, dim + 16) twice.
    """
    n, d = features.shape
    starts = range(0, n, block)

    def rows(start: int) -> NDArray[np.float32]:
        return features[start : start + block].astype(np.float32)

    if d <= dim:
        return np.concatenate([rows(start) for start in starts])
    basis = np.random.default_rng(0).standard_normal((d, min(d, dim + SPARE)), np.float32)
    for _ in range(iterations):
        moved = np.zeros_like(basis)
        for start in starts:
            x = rows(start)
            moved += x.T @ (x @ basis)
        basis, _triangle = np.linalg.qr(moved)
    found = np.concatenate([rows(start) @ basis for start in starts])  # (N, dim + 16)
    _, vectors = np.linalg.eigh(found.T.astype(np.float64) @ found)
    largest: NDArray[np.float32] = found @ vectors[:, : -dim - 1 : -1].astype(np.float32)
    return largest


_BLOCK = 8
_ITERATIONS = 15


def principal_axes(centred: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """The two unit vectors along which the rows (n, d), of mean 0, vary most, (d, 2), and their shares.

    Each axis is turned so that its largest coordinate is positive.
    """
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(centred.shape[1], min(_BLOCK, *centred.shape))).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis, _upper = np.linalg.qr(centred.T @ (centred @ basis))
    _left, lengths, right = np.linalg.svd(centred @ basis, full_matrices=False)
    axes = np.zeros((centred.shape[1], 2), np.float32)
    axes[:, : len(right)] = (basis @ right.T)[:, :2]
    axes *= np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0) < 0, -1, 1)
    squares = np.zeros(2)
    squares[: len(lengths)] = lengths[:2].astype(np.float64) ** 2
    total = float(np.square(centred, dtype=np.float64).sum()) or 1.0
    return axes, (float(squares[0] / total), float(squares[1] / total))
