"""Features in few dimensions: those in which they differ most.

Principal components by subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011), not centred, so
that inner products are kept as well as so few dimensions can. The store is read block by block, a pass an
iteration.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.influence import Vectors

_SPARE = 16  # dimensions more than asked for, so that those asked for are found in few iterations


def principal(features: Vectors, dim: int, *, iterations: int = 3, block: int = 1024) -> NDArray[np.float32]:
    """Rows (N, d) as their `dim` largest components, or all d if these are fewer, (N, min(d, dim)).

    Memory: `block` rows, and (d, dim + 16) twice.
    """
    if features.shape[1] <= dim:
        return np.concatenate([*_blocks(features, block)])
    _, found, vectors = _subspace(features, dim, iterations, block)
    largest: NDArray[np.float32] = found @ vectors
    return largest


def axes(features: Vectors, dim: int, *, block: int = 1024) -> NDArray[np.float32]:
    """The `dim` unit vectors, or all d, along which rows (N, d) are largest, the first the most, (d, dim)."""
    basis, _, vectors = _subspace(features, dim, 4, block)
    largest: NDArray[np.float32] = basis @ vectors
    return largest


def principal_axes(centred: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """The two unit vectors along which the rows (n, d), of mean 0, vary most, (d, 2), and their shares.

    Each axis is turned so that its largest coordinate is positive.
    """
    basis, _, vectors = _subspace(centred, 2, 15, len(centred))
    axes = np.zeros((len(basis), 2), np.float32)
    axes[:, : vectors.shape[1]] = basis @ vectors
    axes *= np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0) < 0, -1, 1)
    squares = np.square(centred @ axes, dtype=np.float64).sum(0)
    total = float(np.square(centred, dtype=np.float64).sum()) or 1.0
    return axes, (float(squares[0] / total), float(squares[1] / total))


def _subspace(features: Vectors, dim: int, iterations: int, block: int) -> tuple[NDArray[np.float32], ...]:
    """A basis (d, s) in which the largest components are, the rows in it (N, s), and these (s, dim)."""
    d = features.shape[1]
    basis = np.random.default_rng(0).standard_normal((d, min(d, dim + _SPARE)), np.float32)
    for _ in range(iterations):
        moved = np.zeros_like(basis)
        for x in _blocks(features, block):
            moved += x.T @ (x @ basis)
        basis, _triangle = np.linalg.qr(moved)
    found = np.concatenate([x @ basis for x in _blocks(features, block)])
    _, vectors = np.linalg.eigh(found.T.astype(np.float64) @ found)
    return basis, found, vectors[:, : -dim - 1 : -1].astype(np.float32)


def _blocks(features: Vectors, block: int) -> Iterator[NDArray[np.float32]]:
    return (
        features[start : start + block].astype(np.float32, copy=False)
        for start in range(0, len(features), block)
    )
