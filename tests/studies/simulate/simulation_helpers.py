"""Random problems, and the slow reference that a simulation is compared with."""

from __future__ import annotations

import numpy as np
import torch

import clusterucb as cu


def problem(seed=0, n=200, groups=5, name="p", shift=0.0, stale=False):
    """Rows around a few directions, whose influence depends on the direction."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, n)
    features = rng.normal(size=(groups, 16))[group] + 0.3 * rng.normal(size=(n, 16))
    scores = rng.normal(size=groups)[group] + 0.5 * rng.normal(size=n) + shift
    old = scores + rng.normal(size=n) if stale else None
    return cu.Problem(name, scores, features.astype(np.float32), old)


def best_rows(scores, count, among=None):
    """The `count` best rows, one by one: the largest score, of equal ones the lowest row."""
    left = list(range(len(scores))) if among is None else sorted(among)
    best = set()
    for _ in range(count):
        row = max(left, key=lambda row: (scores[row], -row))
        left.remove(row)
        best.add(row)
    return best


def write_less(folder, rows, dtype=torch.float16, **save):
    """A gradient file where LESS puts it."""
    file = folder / f"dim{len(rows[0])}" / "all_orig.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.as_tensor(np.asarray(rows)).to(dtype), file, **save)
    return folder
