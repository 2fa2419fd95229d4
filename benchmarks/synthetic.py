"""Features and directions made up to look like real ones, for benchmarks that need many.

The shares of variance are those of the 240 rows of `make demo`: with `--formula less` 0.43 of a feature is
one direction that all rows share (Adam's momentum), some tenths lie in a few dozen directions, the rest is
spread. Scores then vary about as widely as the demo's (0.02 and 0.03).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SHARED, LATENT, SPREAD = 0.43, 0.25, 0.32
AXES = 64
BLOCK = 2048


def features(rows: int, dim: int, seed: int = 0) -> Iterator[NDArray[np.float16]]:
    """Rows of length 1 in blocks, the same for the same seed."""
    rng = np.random.default_rng(seed)
    shared, axes = _basis(dim)
    weights = np.sqrt(LATENT * _shares())
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        x = rng.standard_normal((count, dim), dtype=np.float32)
        x *= np.float32(np.sqrt(SPREAD / dim))
        x += (rng.standard_normal((count, AXES), dtype=np.float32) * weights) @ axes
        x += np.sqrt(SHARED) * rng.normal(1, 0.1, (count, 1)).astype(np.float32) * shared
        yield (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def directions(subtasks: int, dim: int, seed: int = 1) -> NDArray[np.float32]:
    """Plain gradients know no momentum: little of the shared direction, (S, d) of length 0.6."""
    rng = np.random.default_rng(seed)
    shared, axes = _basis(dim)
    latent = rng.standard_normal((subtasks, AXES), dtype=np.float32) * np.float32(0.45 / np.sqrt(AXES))
    spread = rng.standard_normal((subtasks, dim), dtype=np.float32) * np.float32(0.38 / np.sqrt(dim))
    return latent @ axes + spread + np.float32(0.1) * shared


def _basis(dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    axes = np.random.default_rng(2).normal(size=(AXES + 1, dim)) / np.sqrt(dim)
    return axes[0].astype(np.float32), axes[1:].astype(np.float32)


def _shares() -> NDArray[np.float32]:
    falling = 1 / np.arange(1, AXES + 1)
    return (falling / falling.sum()).astype(np.float32)
